package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Box is the sandbox as the program inside sees it.
type Box struct {
	HostPID int  // pid 1 of the sandbox as whoever called Enter sees it; 0 if unknown
	User    bool // the sandbox has a user namespace of its own
	Proc    bool // /proc shows the sandbox's own processes; otherwise the host's
}

// MaybeInit must be the first call of main. In a process that Enter started it
// does init's work and never returns, or notes its part and returns; in any
// other process it returns at once.
func MaybeInit() {
	if len(os.Args) == 0 {
		return
	}
	if strings.HasPrefix(os.Args[0], boxName+":") {
		// Nothing that the program starts may hold the status pipe open.
		syscall.CloseOnExec(statusFD)
		return
	}
	if os.Args[0] != initName || len(os.Args) != 2 {
		return
	}
	code, err := runInit(os.Args[1])
	if err != nil {
		sayError(err)
		os.Exit(1)
	}
	os.Exit(code)
}

// Inside reports whether this process is the program inside a sandbox.
func Inside() (*Box, bool) {
	if len(os.Args) == 0 {
		return nil, false
	}
	facts, ok := strings.CutPrefix(os.Args[0], boxName+":")
	if !ok {
		return nil, false
	}
	box := &Box{}
	for fact := range strings.SplitSeq(facts, ",") {
		switch name, value, _ := strings.Cut(fact, "="); name {
		case "pid":
			box.HostPID, _ = strconv.Atoi(value) // zero means unknown
		case "user":
			box.User = true
		case "proc":
			box.Proc = true
		}
	}
	return box, true
}

func boxArg(b Box) string {
	facts := []string{"pid=" + strconv.Itoa(b.HostPID)}
	if b.User {
		facts = append(facts, "user")
	}
	if b.Proc {
		facts = append(facts, "proc")
	}
	return boxName + ":" + strings.Join(facts, ",")
}

// Ready tells whoever called Enter that the program is up; once.
func (b *Box) Ready() error { return say([]byte{statusReady}) }

// Fail tells whoever called Enter why the program is not coming up; once.
func (b *Box) Fail(cause error) { sayError(cause) }

func sayError(cause error) {
	// The reader may be gone (a foreground caller that was killed); then there
	// is nobody left to tell.
	_ = say(append([]byte{statusError}, cause.Error()...))
}

func say(text []byte) error {
	f := os.NewFile(statusFD, "status pipe")
	_, err := f.Write(text)
	return errors.Join(err, f.Close())
}

// runInit is the whole life of the sandbox's pid 1.
func runInit(arg string) (int, error) {
	var spec initSpec
	if err := json.Unmarshal([]byte(arg), &spec); err != nil {
		return 0, fmt.Errorf("sandbox: decode %q: %w", arg, err)
	}
	if os.Getpid() != 1 {
		return 0, fmt.Errorf("sandbox: init runs as pid %d, want 1", os.Getpid())
	}
	box := Box{User: spec.User, HostPID: outerPID()}
	if err := privateMounts(); err != nil {
		return 0, forbidden("make the mounts private", spec.User, err)
	}
	// A container may hide parts of /proc, and the kernel then refuses a fresh
	// one. The old one still works for everything but `ps`.
	box.Proc = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") == nil
	if err := loopbackUp(); err != nil {
		return 0, forbidden("bring up the loopback interface", spec.User, err)
	}
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return 0, forbidden("set the host name", spec.User, err)
		}
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	pid, err := startInside(spec, box)
	if err != nil {
		return 0, err
	}
	go forward(pid, signals)
	return reap(pid)
}

// outerPID is this process's pid in the namespace that /proc still shows.
func outerPID() int {
	link, err := os.Readlink("/proc/self")
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(link)
	if err != nil {
		return 0
	}
	return pid
}

// privateMounts keeps every later mount inside the sandbox.
func privateMounts() error {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// In a chroot / is no mount point. The mount namespace has a root all the
	// same: a thread of its own that enters the namespace anew stands there.
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			ns, err := os.Open("/proc/thread-self/ns/mnt")
			if err != nil {
				return err
			}
			defer func() { _ = ns.Close() }()
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
				return err
			}
			return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}()
	}()
	return <-done
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// startInside starts the program as init's only child.
func startInside(spec initSpec, box Box) (int, error) {
	pid, err := syscall.ForkExec("/proc/self/exe", append([]string{boxArg(box)}, spec.Args...), &syscall.ProcAttr{
		Env:   syscall.Environ(),
		Files: []uintptr{0, 1, 2, statusFD},
	})
	if err != nil {
		return 0, fmt.Errorf("sandbox: start the program inside: %w", err)
	}
	// From here on only the program holds the pipe, so that its end is seen.
	return pid, syscall.Close(statusFD)
}

// forward gives the program every signal that init got, except those the
// runtime and the kernel send for their own purposes.
func forward(pid int, signals <-chan os.Signal) {
	for s := range signals {
		sig, ok := s.(syscall.Signal)
		switch {
		case !ok, sig == syscall.SIGCHLD, sig == syscall.SIGURG, sig == syscall.SIGPIPE:
		default:
			_ = syscall.Kill(pid, sig) // gone means that reap is about to return
		}
	}
}

// reap collects every orphan and answers with the program's exit code.
func reap(program int) (int, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("sandbox: wait: %w", err)
		case pid == program && status.Exited():
			return status.ExitStatus(), nil
		case pid == program && status.Signaled():
			return 128 + int(status.Signal()), nil
		}
	}
}
