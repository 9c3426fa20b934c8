package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/marrowmesh/marrow/internal/lab/sandbox"
	"github.com/marrowmesh/marrow/internal/manifest"
)

// InsideVerb is the first argument of the program inside the sandbox; the
// second is a Spec in JSON. A program that calls Up must, first of all in its
// main, call sandbox.MaybeInit and, where sandbox.Inside says so,
// cluster.Main.
const InsideVerb = "lab-inside"

// Spec is what the lab inside the sandbox is told.
type Spec struct {
	Name     string   `json:"name"`
	Dir      string   `json:"dir"` // the state directory
	Nodes    int      `json:"nodes"`
	Commands Commands `json:"commands"`
	NoMesh   bool     `json:"no_mesh,omitempty"`
	NoIPv6   bool     `json:"no_ipv6,omitempty"`
	Env      []string `json:"env,omitempty"`
	Zones    []string `json:"zones,omitempty"`
	BinDir   string   `json:"bin_dir"`
	// Limit of each step of the components' start, shorter than the caller's
	// patience, so that the lab's own account of what is wrong comes first.
	Limit time.Duration `json:"limit"`
}

// Lab is a lab that this process started.
type Lab struct {
	*Client
	Name string
	PID  int // pid 1 of the sandbox

	ended chan struct{}
	exit  error
}

// Up starts a lab and returns when its first manifests are applied and every
// pod is ready. A stale directory of a killed lab is swept first. On any error
// nothing is left.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if err := o.Normalize(); err != nil {
		return nil, err
	}
	// Manifests are judged before anything is made.
	objects, err := ReadManifests(os.Stdin, o.Files...)
	if err != nil {
		return nil, err
	}
	state := StateOf(o.Root, o.Name)
	if err := prepare(state); err != nil {
		return nil, err
	}
	l := &Lab{Client: NewClient(state), Name: o.Name, ended: make(chan struct{})}
	if err := l.start(ctx, o); err != nil {
		return nil, errors.Join(err, Down(context.WithoutCancel(ctx), o.Root, o.Name))
	}
	if err := l.settle(ctx, o, objects); err != nil {
		err = fmt.Errorf("lab %s: %w%s", o.Name, err, l.lastWords())
		return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	return l, nil
}

// prepare makes an empty state directory, over the remains of a killed lab.
func prepare(state State) error {
	if state.Exists() {
		if err := state.Remove(); err != nil {
			return err
		}
	}
	for _, dir := range []string{state.Objects(), state.Logs(), state.CA()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the lab's directory: %w", err)
		}
	}
	// From here on `list` sees it and `down` can sweep it.
	return os.WriteFile(state.lock(), nil, 0o600)
}

// start enters the sandbox and waits until the lab answers.
func (l *Lab) start(ctx context.Context, o Options) error {
	spec, err := json.Marshal(Spec{
		Name: o.Name, Dir: l.State.Dir, Nodes: o.Nodes, Commands: o.Commands, NoMesh: o.NoMesh, NoIPv6: o.NoIPv6, Env: o.Env, Zones: o.Zones, BinDir: o.BinDir,
		Limit: min(time.Minute, o.Timeout*2/3),
	})
	if err != nil {
		return fmt.Errorf("encode the lab's description: %w", err)
	}
	log, err := os.OpenFile(l.State.Log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("make the lab's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	pid := make(chan int, 1)
	cfg := sandbox.Config{
		Args: []string{InsideVerb, string(spec)}, Hostname: "lab-" + o.Name, Detach: o.Detach, ForceUser: o.User,
		ReadyTimeout: o.Timeout, Stdout: log, Stderr: log, Started: func(n int) { pid <- n },
	}
	if o.Detach {
		res, err := sandbox.Enter(ctx, cfg)
		l.PID = res.PID
		if err != nil {
			return fmt.Errorf("lab %s: %w%s", o.Name, err, l.lastWords())
		}
		return nil
	}
	// In the foreground Enter returns only when the sandbox has ended, so it
	// has a goroutine whose end is l.ended.
	go func() {
		defer close(l.ended)
		res, err := sandbox.Enter(context.WithoutCancel(ctx), cfg)
		if err == nil && res.ExitCode != 0 {
			err = fmt.Errorf("the lab ended with status %d", res.ExitCode)
		}
		l.exit = err
	}()
	select {
	case l.PID = <-pid:
	case <-l.ended:
		return l.exit
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return l.await(ctx, o.Timeout)
}

// await waits for the control socket to answer.
func (l *Lab) await(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := l.Info(ctx); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-l.ended:
			if l.exit != nil {
				return fmt.Errorf("%w%s", l.exit, l.lastWords())
			}
			return errors.New("the lab ended before it was up" + l.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("the lab did not answer within %v%s", limit, l.lastWords())
		}
	}
}

// settle follows the components' start, applies the first manifests and waits
// for their pods.
func (l *Lab) settle(ctx context.Context, o Options, objects []manifest.Object) error {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	tell := func(text string) {
		if o.Progress != nil {
			o.Progress(Progress{Time: time.Now(), Text: text})
		}
	}
	if err := l.Progress(ctx, o.Progress); err != nil {
		return err
	}
	if len(objects) > 0 {
		tell(fmt.Sprintf("applying %d objects", len(objects)))
		if _, err := l.ApplyObjects(ctx, objects...); err != nil {
			return err
		}
		limit := o.Timeout
		if d, ok := ctx.Deadline(); ok {
			limit = max(time.Second, time.Until(d)-time.Second)
		}
		tell("waiting until every pod is ready")
		if err := l.WaitReady(ctx, limit); err != nil {
			return err
		}
	}
	tell("the lab is up")
	return nil
}

// lastWords are the last lines of the lab's log, for an error message.
func (l *Lab) lastWords() string {
	raw, err := os.ReadFile(l.State.Log())
	text := strings.TrimSpace(string(raw))
	if err != nil || text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	return "\nthe lab's last words:\n  " + strings.Join(lines[max(0, len(lines)-8):], "\n  ")
}

// Ended is closed when a lab in the foreground has ended; a detached lab's is
// never closed.
func (l *Lab) Ended() <-chan struct{} { return l.ended }

// Down ends the lab and removes all that is left of it.
func (l *Lab) Down(ctx context.Context) error {
	defer l.Close()
	return Down(ctx, filepath.Dir(l.State.Dir), l.Name)
}

// Down ends a lab, running or already killed, and removes its directory. A
// running lab gets time to end its pods; one that does not answer is killed.
func Down(ctx context.Context, root, name string) error {
	if root == "" {
		root = DefaultRoot()
	}
	state := StateOf(root, name)
	if !state.Exists() {
		return fmt.Errorf("lab %q: %w (looked in %s)", name, ErrNoLab, root)
	}
	info := state.Info()
	if info.Running {
		c := NewClient(state)
		defer c.Close()
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		// A lab that cannot be asked is killed below.
		asked := c.Shutdown(ask)
		if asked != nil || !gone(ctx, state, shutdownLimit) {
			if err := kill(info.PID); err != nil {
				return fmt.Errorf("lab %s does not end: %w", name, errors.Join(asked, err))
			}
		}
		if !gone(ctx, state, 10*time.Second) {
			return fmt.Errorf("lab %s (pid %d) does not end", name, info.PID)
		}
	}
	waitProcess(ctx, info.PID)
	return state.Remove()
}

// shutdownLimit is longer than a pod's grace period in a lab that shuts down.
const shutdownLimit = 15 * time.Second

// gone waits until nobody holds the lab's lock.
func gone(ctx context.Context, state State, limit time.Duration) bool {
	return poll(ctx, limit, func() bool { return !state.Running() })
}

// waitProcess waits until the sandbox's first process is gone: the kernel ends
// all others before it.
func waitProcess(ctx context.Context, pid int) {
	if pid <= 1 {
		return
	}
	poll(ctx, 10*time.Second, func() bool { return !isSandbox(pid) })
}

func poll(ctx context.Context, limit time.Duration, done func() bool) bool {
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if done() {
			return true
		}
		select {
		case <-tick.C:
		case <-end.C:
			return done()
		case <-ctx.Done():
			return false
		}
	}
}

// kill ends a sandbox by its pid 1, after a look at who that is: process ids
// are used again.
func kill(pid int) error {
	if !isSandbox(pid) {
		return fmt.Errorf("process %d is not the lab's", pid)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// isSandbox reports a living process that sandbox.Enter started.
func isSandbox(pid int) bool {
	if pid <= 1 {
		return false
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	argv0, rest, _ := strings.Cut(string(raw), "\x00")
	return strings.HasPrefix(argv0, "marrow-sandbox") && strings.Contains(rest, InsideVerb)
}
