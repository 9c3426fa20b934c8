package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// ForbiddenError says that this host does not let the caller make namespaces,
// and what to change.
type ForbiddenError struct {
	Step   string // what was tried
	Remedy string
	Err    error
}

// Error names the step, the kernel's answer and the remedy.
func (e *ForbiddenError) Error() string {
	text := "sandbox: cannot " + e.Step
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text + "; " + e.Remedy
}

// Unwrap is the kernel's answer.
func (e *ForbiddenError) Unwrap() error { return e.Err }

// precheck refuses early where a setting already tells the outcome.
func precheck(user bool) error {
	if !user {
		return nil
	}
	if remedy := blocked(sysctl); remedy != "" && os.Geteuid() != 0 {
		return &ForbiddenError{Step: "make a user namespace as uid " + fmt.Sprint(os.Geteuid()), Remedy: remedy}
	}
	return nil
}

// blocked reads the settings that forbid unprivileged user namespaces and
// answers with what to do; empty if none of them does.
func blocked(read func(string) (string, bool)) string {
	const root = ", or run as root"
	if v, ok := read("kernel.unprivileged_userns_clone"); ok && v == "0" {
		return "allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1" + root
	}
	if v, ok := read("user.max_user_namespaces"); ok && v == "0" {
		return "allow user namespaces: sysctl -w user.max_user_namespaces=15000" + root
	}
	if v, ok := read("kernel.apparmor_restrict_unprivileged_userns"); ok && v == "1" {
		return "AppArmor restricts user namespaces of ordinary programs: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0" + root
	}
	return ""
}

// forbidden explains a refusal of clone(2) or of the first steps inside.
func forbidden(step string, user bool, err error) error {
	e := &ForbiddenError{Step: step, Err: err}
	switch remedy := blocked(sysctl); {
	case user && remedy != "":
		e.Remedy = remedy
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EUSERS):
		e.Remedy = "a limit on namespaces is reached: raise user.max_user_namespaces, user.max_net_namespaces, user.max_pid_namespaces and user.max_mnt_namespaces by sysctl -w"
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES):
		e.Remedy = permissionRemedy(user)
	case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS):
		e.Remedy = "this kernel lacks one of user, net, mount, pid, uts or ipc namespaces; use a kernel built with CONFIG_NAMESPACES, CONFIG_USER_NS and CONFIG_NET_NS"
	default:
		return fmt.Errorf("sandbox: cannot %s: %w", step, err)
	}
	return e
}

func permissionRemedy(user bool) string {
	advice := []string{}
	if user && os.Geteuid() != 0 {
		advice = append(advice, "run as root (sudo)")
	}
	advice = append(advice,
		"in a container run it with --privileged, or with --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined",
		"in a chroot only root may make namespaces")
	return strings.Join(advice, "; ")
}
