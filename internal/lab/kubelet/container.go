package kubelet

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/lab/proc"
)

// container is one container of a pod over all its restarts.
type container struct {
	w    *worker
	spec *corev1.Container
	init bool
	log  *logFile

	mu sync.Mutex
	st state
	p  *proc.Process
}

func newContainer(w *worker, spec *corev1.Container, init bool) *container {
	return &container{
		w: w, spec: spec, init: init,
		log: newLogFile(LogPath(w.cfg.State, w.pod.Namespace, w.pod.Name, spec.Name)),
		st:  state{name: spec.Name, image: spec.Image},
	}
}

func (c *container) snapshot() state {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.st
}

// set changes the state and reports the pod.
func (c *container) set(edit func(*state)) {
	c.mu.Lock()
	edit(&c.st)
	c.mu.Unlock()
	if !c.init {
		c.w.report()
	}
}

// process is the running or last process; nil before the first.
func (c *container) process() *proc.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.p
}

// once runs the container to its end, for init containers.
func (c *container) once(ctx context.Context) (proc.Status, error) {
	p, err := c.start()
	if err != nil {
		return proc.Status{}, err
	}
	status, err := p.Wait(ctx)
	if err != nil {
		// The pod ends: so does the container, before its network goes.
		return status, p.Stop(context.WithoutCancel(ctx), c.w.graceLeft())
	}
	return status, nil
}

// backoff decides how long to wait before a restart.
type backoff struct{ wait time.Duration }

const (
	firstWait = 100 * time.Millisecond
	maxWait   = 10 * time.Second
	// goodRun is how long a container must have run for its earlier failures
	// to be forgotten.
	goodRun = 10 * time.Second
)

func (b *backoff) next(ran time.Duration) time.Duration {
	if b.wait == 0 || ran >= goodRun {
		b.wait = firstWait
		return b.wait
	}
	b.wait = min(2*b.wait, maxWait)
	return b.wait
}

// run starts the container again and again as its pod's policy says, until
// ctx ends; then it ends the process.
func (c *container) run(ctx context.Context) {
	defer c.log.close()
	var back backoff
	for {
		began := time.Now()
		status, err := c.round(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil && !restarts(c.w.pod.Spec.RestartPolicy, status) {
			c.set(func(s *state) { s.running, s.ready, s.done = false, false, true })
			return
		}
		wait := back.next(time.Since(began))
		reason := "CrashLoopBackOff"
		if err != nil {
			reason = "CreateContainerError"
			c.w.cfg.Note("pod %s: %v", c.w.name(), err)
		} else if c.snapshot().restarts < 3 || status.Code != 0 {
			c.w.cfg.Note("pod %s: container %s ended (%s); it is started again in %v", c.w.name(), c.spec.Name, status, wait)
		}
		c.set(func(s *state) {
			s.running, s.ready, s.waiting = false, false, reason
			if err != nil {
				s.message = err.Error()
			} else {
				s.message = fmt.Sprintf("the process ended (%s); back-off %v", status, wait)
			}
		})
		if !pause(ctx, wait) {
			return
		}
		if err == nil {
			c.set(func(s *state) { s.restarts++ })
		}
	}
}

func restarts(policy corev1.RestartPolicy, status proc.Status) bool {
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return status.Code != 0
	default:
		return true
	}
}

// round is one process from its start to its end.
func (c *container) round(ctx context.Context) (proc.Status, error) {
	p, err := c.start()
	if err != nil {
		return proc.Status{}, err
	}
	began := metav1.Now()
	c.set(func(s *state) {
		s.running, s.started, s.waiting, s.message = true, began, "", ""
		s.ready = c.spec.ReadinessProbe == nil && c.spec.StartupProbe == nil
	})
	probing, stop := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		c.probe(probing, p)
	}()
	status, err := p.Wait(ctx)
	stop()
	<-over
	if err != nil {
		if c.w.graceLeft() > 0 {
			c.preStop(ctx, p)
		}
		asked := time.Now()
		if err := p.Stop(context.WithoutCancel(ctx), c.w.graceLeft()); err != nil {
			return proc.Status{}, err
		}
		status, _ = p.Status()
		if status.Signal == syscall.SIGKILL {
			c.w.cfg.Note("pod %s: container %s did not end within %v of SIGTERM and was killed", c.w.name(), c.spec.Name, time.Since(asked).Round(time.Millisecond))
		}
	}
	end := corev1.ContainerStateTerminated{
		ExitCode: int32(status.Code), Signal: int32(status.Signal), Reason: "Completed", StartedAt: began, FinishedAt: metav1.Now(),
	}
	if status.Code != 0 {
		end.Reason = "Error"
	}
	c.set(func(s *state) { s.running, s.ready, s.terminated = false, false, &end })
	return status, nil
}

// preStop runs the container's hook before its end, as far as it is a command
// or a pause.
func (c *container) preStop(ctx context.Context, p *proc.Process) {
	if c.spec.Lifecycle == nil || c.spec.Lifecycle.PreStop == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.w.graceLeft())
	defer cancel()
	hook := c.spec.Lifecycle.PreStop
	switch {
	case hook.Exec != nil && len(hook.Exec.Command) > 0:
		h, err := p.Exec(hook.Exec.Command, nil, nil, c.log, c.log)
		if err == nil {
			if _, err = h.Wait(ctx); err != nil {
				err = h.Signal(syscall.SIGKILL)
			}
		}
		if err != nil {
			c.w.cfg.Note("pod %s: container %s: preStop: %v", c.w.name(), c.spec.Name, err)
		}
	case hook.Sleep != nil:
		pause(ctx, time.Duration(hook.Sleep.Seconds)*time.Second)
	}
}

// start makes the container's surroundings and starts its process.
func (c *container) start() (*proc.Process, error) {
	spec, err := c.processSpec()
	if err != nil {
		return nil, err
	}
	p, err := proc.Start(spec)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.p = p
	return p, nil
}

func (c *container) processSpec() (proc.Spec, error) {
	pod := c.w.pod
	src := c.w.cfg.World.Sources(pod.Namespace)
	env, err := plan.Env(c.spec, pod, src)
	if err != nil {
		return proc.Spec{}, err
	}
	argv := plan.Argv(c.spec, env, c.w.cfg.Waypoint)
	if len(argv) == 0 {
		return proc.Spec{}, fmt.Errorf("container %s: image %q has no program in the lab; give a command", c.spec.Name, c.spec.Image)
	}
	files, err := c.w.files()
	if err != nil {
		return proc.Spec{}, err
	}
	mounts, err := c.w.mounts(c.spec, src)
	if err != nil {
		return proc.Spec{}, err
	}
	return proc.Spec{
		Name: c.w.name() + " " + c.spec.Name, Netns: c.w.netns, Argv: argv, Env: c.w.environment(env), Dir: c.spec.WorkingDir,
		ResolvConf: resolvConf(pod), Files: files, Mounts: mounts,
		// The agent opens other pods' namespaces by the lab's paths.
		ShareProc: c.w.isComponent(),
		Stdout:    c.log, Stderr: c.log,
	}, nil
}

// environment puts what every container has before what it declares; of two
// variables of one name the program sees the last.
func (w *worker) environment(declared []string) []string {
	base := []string{"PATH=" + w.cfg.Path, "HOME=/root", "HOSTNAME=" + w.pod.Name, "LANG=C.UTF-8"}
	has := map[string]bool{}
	for _, kv := range declared {
		name, _, _ := strings.Cut(kv, "=")
		has[name] = true
	}
	var out []string
	for _, kv := range base {
		if name, _, _ := strings.Cut(kv, "="); !has[name] {
			out = append(out, kv)
		}
	}
	return append(out, declared...)
}
