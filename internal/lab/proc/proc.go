package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Netns is a network namespace to run in; fabric.Netns is one.
type Netns interface {
	FD() int
	Name() string
}

// File is a file that exists only inside the mounts of one process.
type File struct {
	Path string // absolute; under /run or /var/run, or under a Mount of kind tmpfs
	Data []byte
	Mode fs.FileMode // zero means 0644
}

// Mount makes one more file or directory visible.
type Mount struct {
	// Source is a file or directory of the host. Empty means a new tmpfs.
	Source string
	// Target is where it appears. It is created under /run; elsewhere it must
	// exist.
	Target   string
	ReadOnly bool
}

// Spec says what to run and in which surroundings.
type Spec struct {
	Name  string // for messages: "shop/web-1 app"
	Netns Netns
	Argv  []string // Argv[0] is looked up in the PATH of Env
	Env   []string // complete; nothing is inherited
	Dir   string   // empty means /

	// ResolvConf is the content of /etc/resolv.conf; empty keeps the host's.
	ResolvConf []byte
	Files      []File
	Mounts     []Mount

	// ShareProc keeps the lab's /proc and process ids instead of those of the
	// container alone, for programs that open other pods' namespaces by path.
	// Its processes are then one session, which ends with the main process.
	ShareProc bool

	// Standard streams. A nil Stdin is /dev/null, a nil writer discards. An
	// *os.File is handed over as it is; anything else goes through a pipe.
	Stdin          *os.File
	Stdout, Stderr io.Writer
}

// Status is how a process ended.
type Status struct {
	Code   int            // exit code; 128+n when signal n ended it
	Signal syscall.Signal // zero if it exited by itself
}

// String reads as `exit status 1` or `signal: killed`.
func (s Status) String() string {
	if s.Signal != 0 {
		return "signal: " + s.Signal.String()
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

// Process is a started program.
type Process struct {
	spec   Spec
	cmd    *exec.Cmd
	born   time.Time
	done   chan struct{}
	status atomic.Pointer[Status]

	mu    sync.Mutex
	execs []*Process // to end with this process, where the kernel does not see to it
}

// PID is the process's id in the lab's pid namespace.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and its output is complete.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status is how the process ended; ok is false while it runs.
func (p *Process) Status() (s Status, ok bool) {
	if got := p.status.Load(); got != nil {
		return *got, true
	}
	return Status{}, false
}

// Wait waits for the end of the process or of ctx.
func (p *Process) Wait(ctx context.Context) (Status, error) {
	select {
	case <-p.done:
		return *p.status.Load(), nil
	case <-ctx.Done():
		return Status{}, fmt.Errorf("wait for %s: %w", p.spec.Name, context.Cause(ctx))
	}
}

// Signal sends a signal to the main process; one that has ended is no error.
func (p *Process) Signal(s syscall.Signal) error {
	err := p.cmd.Process.Signal(s)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("send %v to %s (pid %d): %w", s, p.spec.Name, p.PID(), err)
	}
	return nil
}

// Stop asks the process to end, waits for the grace period and kills it with
// everything it started. A program that would not notice is not waited for.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	// Start returns in the middle of execve, which only then forgets the signal
	// handlers of the process's former life.
	if young := settled - time.Since(p.born); grace > 0 && young > 0 {
		select {
		case <-p.done:
		case <-time.After(young):
		}
	}
	if grace > 0 && (p.spec.ShareProc || p.notices(syscall.SIGTERM)) {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-p.done:
			return nil
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	// A killed process ends without delay; its end is worth waiting for even
	// when ctx is over, since the caller is about to take its network away.
	<-p.done
	return nil
}

// settled is the age at which a process surely runs its own program.
const settled = 50 * time.Millisecond

// waitDelay bounds how long output is read on after the main process has
// ended, should another process still hold the pipe.
const waitDelay = 2 * time.Second

// Start runs the program of the Spec. It returns when the program runs.
func Start(spec Spec) (*Process, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	config, err := json.Marshal(initConfigOf(spec))
	if err != nil {
		return nil, fmt.Errorf("start %s: encode: %w", spec.Name, err)
	}
	in, feed, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	defer func() { _ = feed.Close() }()
	said, report, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, errors.Join(err, in.Close()))
	}
	defer func() { _ = said.Close() }()

	p := newProcess(spec)
	p.cmd.Path = "/proc/self/exe"
	p.cmd.Args = []string{initName}
	p.cmd.ExtraFiles = []*os.File{in, report}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS}
	if !spec.ShareProc {
		p.cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID
	}
	err = onThread(func() error {
		if err := unix.Setns(spec.Netns.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace of %s: %w", spec.Netns.Name(), err)
		}
		return p.cmd.Start()
	})
	_, _ = in.Close(), report.Close() // only the child's copies count
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	go p.wait()
	// Both can fail only if the child has ended, which the report tells.
	_, _ = feed.Write(config)
	_ = feed.Close()
	if problem, err := io.ReadAll(said); err != nil || len(problem) > 0 {
		_ = p.Signal(syscall.SIGKILL)
		<-p.done
		return nil, fmt.Errorf("start %s: %w", spec.Name, errors.Join(err, textError(problem)))
	}
	p.born = time.Now()
	return p, nil
}

func textError(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	return errors.New(string(text))
}

func newProcess(spec Spec) *Process {
	cmd := &exec.Cmd{Env: spec.Env, Stdout: spec.Stdout, Stderr: spec.Stderr, WaitDelay: waitDelay}
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	if spec.Stdin != nil {
		cmd.Stdin = spec.Stdin
	}
	return &Process{spec: spec, cmd: cmd, born: time.Now(), done: make(chan struct{})}
}

func (p *Process) wait() {
	if p.spec.ShareProc {
		p.endSession()
	}
	// The error only repeats the state, or says that a descendant kept the
	// output open past waitDelay, which ends nothing of ours.
	_ = p.cmd.Wait()
	s := Status{Code: p.cmd.ProcessState.ExitCode()}
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		s = Status{Code: 128 + int(ws.Signal()), Signal: ws.Signal()}
	}
	p.status.Store(&s)
	close(p.done)
}

func (s Spec) check() error {
	switch {
	case s.Netns == nil:
		return fmt.Errorf("start %s: no network namespace", s.Name)
	case len(s.Argv) == 0:
		return fmt.Errorf("start %s: empty command; give the container a command", s.Name)
	}
	for _, e := range s.Env {
		if !strings.Contains(e, "=") || strings.ContainsRune(e, 0) {
			return fmt.Errorf("start %s: environment entry %q is not NAME=value", s.Name, e)
		}
	}
	return nil
}

// Exec runs one more program beside p: in its network, mount and pid
// namespaces, with its environment plus env. It ends at the latest with p. If
// p has ended, the program runs in new surroundings made from p's Spec.
func (p *Process) Exec(argv, env []string, stdin *os.File, stdout, stderr io.Writer) (*Process, error) {
	spec := p.spec
	spec.Name += " exec"
	spec.Argv = argv
	spec.Env = append(append([]string{}, p.spec.Env...), env...)
	spec.Stdin, spec.Stdout, spec.Stderr = stdin, stdout, stderr
	if err := spec.check(); err != nil {
		return nil, err
	}
	if _, ended := p.Status(); ended {
		return Start(spec)
	}
	child := newProcess(spec)
	child.cmd.Args = argv
	child.cmd.Dir = spec.dir()
	child.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var err error
	handled := p.cmd.Process.WithHandle(func(pidfd uintptr) {
		err = onLostThread(func() error {
			if err := enter(p.PID(), int(pidfd)); err != nil {
				return err
			}
			// Looked up here, where the process's own files are seen.
			path, err := lookPath(argv[0], spec.Env)
			if err != nil {
				return err
			}
			child.cmd.Path = path
			return child.cmd.Start()
		})
	})
	if errors.Is(handled, os.ErrProcessDone) {
		return Start(spec)
	}
	err = errors.Join(handled, err)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", p.spec.Name, err)
	}
	go child.wait()
	if spec.ShareProc {
		p.adopt(child)
	}
	return child, nil
}

func (s Spec) dir() string {
	if s.Dir == "" {
		return "/"
	}
	return s.Dir
}
