package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The names (argv[0]) under which the program runs inside. They are how a
// process knows its part without a word in the environment, which every
// descendant would inherit.
const (
	initName = "marrow-sandbox-init"
	boxName  = "marrow-sandbox"

	statusFD = 3 // the pipe on which the inside says how the start went

	// lastBreath is how long a program that failed to start may take to end.
	lastBreath = 5 * time.Second

	statusReady = 'R'
	statusError = 'E'
)

// Config says what runs inside and how the caller stays with it.
type Config struct {
	// Args are the arguments (os.Args[1:]) of the program inside.
	Args []string
	// Env is the environment inside; nil means the caller's.
	Env []string
	// Dir is the working directory inside; empty means the caller's.
	Dir string
	// Hostname is set in the new uts namespace; empty leaves it.
	Hostname string

	// Detach leaves the sandbox running when Enter returns; otherwise the
	// sandbox ends at the latest with the caller, even a killed one.
	Detach bool
	// ReadyTimeout limits how long a detached start may take; zero means two
	// minutes.
	ReadyTimeout time.Duration

	// ForceUser makes a user namespace even where root could do without.
	ForceUser bool

	// Standard streams; nil means /dev/null.
	Stdin, Stdout, Stderr *os.File

	// Started, if set, is called with the pid (as the caller sees it) of the
	// sandbox's pid 1 as soon as that exists.
	Started func(pid int)
}

// Result is how Enter ended.
type Result struct {
	PID      int // pid 1 of the sandbox as the caller sees it
	ExitCode int // of the program inside; 128+n when a signal ended it; 0 when detached
}

// initSpec travels to the init process in its first argument.
type initSpec struct {
	Hostname string   `json:"hostname,omitempty"`
	User     bool     `json:"user,omitempty"`
	Args     []string `json:"args"`
}

// Enter starts the program again inside new namespaces.
//
// In the foreground it returns when the program inside has ended. Detached it
// returns when the program inside has called Box.Ready, or has failed.
func Enter(ctx context.Context, cfg Config) (Result, error) {
	user := cfg.ForceUser || !canDoWithoutUser()
	if err := precheck(user); err != nil {
		return Result{}, err
	}
	status, inner, err := os.Pipe()
	if err != nil {
		return Result{}, fmt.Errorf("sandbox: status pipe: %w", err)
	}
	defer func() { _ = status.Close() }()
	cmd, err := command(cfg, user, inner)
	if err != nil {
		return Result{}, errors.Join(err, inner.Close())
	}

	// The parent-death signal is tied to the thread that forks, so the whole
	// life of the foreground sandbox is spent on one thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	_ = inner.Close() // only the child's copy counts
	if err != nil {
		return Result{}, forbidden("start the first process of new namespaces", user, err)
	}
	res := Result{PID: cmd.Process.Pid}
	if cfg.Started != nil {
		cfg.Started(res.PID)
	}
	if cfg.Detach {
		return detach(ctx, cfg, cmd, status, res)
	}
	return foreground(ctx, cmd, status, res)
}

func command(cfg Config, user bool, inner *os.File) (*exec.Cmd, error) {
	spec, err := json.Marshal(initSpec{Hostname: cfg.Hostname, User: user, Args: cfg.Args})
	if err != nil {
		return nil, fmt.Errorf("sandbox: encode arguments %q: %w", cfg.Args, err)
	}
	// Not started with exec.CommandContext: cancelling must reach the program
	// inside as a signal it can answer, see foreground.
	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{initName, string(spec)},
		Env:        cfg.Env,
		Dir:        cfg.Dir,
		ExtraFiles: []*os.File{inner},
	}
	// A nil *os.File in the interface fields would not be a nil interface.
	if cfg.Stdin != nil {
		cmd.Stdin = cfg.Stdin
	}
	if cfg.Stdout != nil {
		cmd.Stdout = cfg.Stdout
	}
	if cfg.Stderr != nil {
		cmd.Stderr = cfg.Stderr
	}
	attr := &syscall.SysProcAttr{
		// A session of its own: a terminal's signals reach the sandbox once,
		// forwarded, and not a second time through the process group.
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if !cfg.Detach {
		attr.Pdeathsig = syscall.SIGKILL
	}
	if user {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		attr.GidMappingsEnableSetgroups = false
	}
	cmd.SysProcAttr = attr
	return cmd, nil
}

// foreground stays until the sandbox ends; signals and the context's end go to
// the program inside, which decides what they mean.
func foreground(ctx context.Context, cmd *exec.Cmd, status *os.File, res Result) (Result, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)

	said := make(chan error, 1)
	go func() { said <- readStatus(status) }()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	done := ctx.Done()
	for {
		select {
		case s := <-signals:
			// An error means that the sandbox has just ended, which the other
			// case reports.
			_ = cmd.Process.Signal(s)
		case <-done:
			_ = cmd.Process.Signal(syscall.SIGTERM)
			done = nil
		case err := <-ended:
			if failed := (<-said); failed != nil && !errors.Is(failed, errNoStatus) {
				return res, failed
			}
			return exitOf(res, err)
		}
	}
}

// exitOf turns what Wait said into an exit code.
func exitOf(res Result, err error) (Result, error) {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err == nil || !ok {
		return res, err
	}
	res.ExitCode = exit.ExitCode()
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		res.ExitCode = 128 + int(ws.Signal())
	}
	return res, nil
}

// detach waits for the word of readiness and lets go.
func detach(ctx context.Context, cfg Config, cmd *exec.Cmd, status *os.File, res Result) (Result, error) {
	limit := cfg.ReadyTimeout
	if limit == 0 {
		limit = 2 * time.Minute
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	said := make(chan error, 1)
	go func() { said <- readStatus(status) }()
	var failed error
	select {
	case err := <-said:
		if err == nil {
			return res, cmd.Process.Release()
		}
		failed = err
	case <-timer.C:
		_ = cmd.Process.Kill()
		failed = fmt.Errorf("sandbox: the program inside was not ready within %v", limit)
	case <-ctx.Done():
		failed = context.Cause(ctx)
	}
	if context.Cause(ctx) == nil {
		// Having said why, the program is about to end by itself, and its
		// status is worth knowing.
		defer time.AfterFunc(lastBreath, func() { _ = cmd.Process.Kill() }).Stop()
	} else {
		_ = cmd.Process.Kill()
	}
	res, err := exitOf(res, cmd.Wait())
	if errors.Is(failed, errNoStatus) {
		failed = fmt.Errorf("sandbox: the program inside ended with status %d before it was ready", res.ExitCode)
	}
	return res, errors.Join(failed, err)
}

var errNoStatus = errors.New("sandbox: the program inside ended without a word")

// readStatus waits for the first word on the status pipe.
func readStatus(r io.Reader) error {
	var kind [1]byte
	switch _, err := io.ReadFull(r, kind[:]); {
	case errors.Is(err, io.EOF):
		return errNoStatus
	case err != nil:
		return fmt.Errorf("sandbox: read status: %w", err)
	case kind[0] == statusReady:
		return nil
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("sandbox: read status: %w", err)
	}
	return &StartError{Text: string(text)}
}

// StartError is what the inside told about its failed start.
type StartError struct{ Text string }

// Error is the inside's own text.
func (e *StartError) Error() string { return e.Text }

// canDoWithoutUser reports whether this process may make the namespaces as it
// is: effective root with CAP_SYS_ADMIN and CAP_NET_ADMIN.
func canDoWithoutUser() bool {
	if os.Geteuid() != 0 {
		return false
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
	return data[0].Effective&need == need
}

// sysctl reads one kernel setting; ok is false where the kernel lacks it.
func sysctl(name string) (value string, ok bool) {
	raw, err := os.ReadFile(filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/")))
	if err != nil {
		return "", false
	}
	return strings.TrimSpace(string(raw)), true
}
