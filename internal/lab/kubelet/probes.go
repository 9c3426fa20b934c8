package kubelet

import (
	"bytes"
	"context"
	"sync"
	"syscall"

	"github.com/marrowmesh/marrow/internal/lab/probe"
	"github.com/marrowmesh/marrow/internal/lab/proc"
)

// probe runs the container's probes until ctx ends: startup first, then
// readiness and liveness side by side.
func (c *container) probe(ctx context.Context, p *proc.Process) {
	t := c.target(p)
	if s := c.spec.StartupProbe; s != nil {
		startup, done := context.WithCancel(ctx)
		probe.Run(startup, s, t, func(r probe.Result) {
			if !r.Well {
				c.unwell("startup", r.Err, p)
			}
			done() // one outcome decides
		})
		done()
		if ctx.Err() != nil {
			return
		}
	}
	if c.spec.ReadinessProbe == nil && c.spec.StartupProbe != nil {
		c.set(func(s *state) { s.ready = true })
	}
	var both sync.WaitGroup
	if r := c.spec.ReadinessProbe; r != nil {
		both.Go(func() {
			probe.Run(ctx, r, t, func(r probe.Result) { c.readiness(r, p) })
		})
	}
	if l := c.spec.LivenessProbe; l != nil {
		both.Go(func() {
			probe.Run(ctx, l, t, func(r probe.Result) {
				if !r.Well {
					c.unwell("liveness", r.Err, p)
				}
			})
		})
	}
	both.Wait()
}

// readiness takes in an outcome, unless the process has ended meanwhile.
func (c *container) readiness(r probe.Result, p *proc.Process) {
	if _, ended := p.Status(); ended {
		return
	}
	before := c.snapshot().ready
	c.set(func(s *state) { s.ready = r.Well && s.running })
	if before && !r.Well {
		c.w.cfg.Note("pod %s: container %s is not ready any more: %v", c.w.name(), c.spec.Name, r.Err)
	}
}

// unwell ends a process that its probe gave up; the policy starts it again.
func (c *container) unwell(kind string, why error, p *proc.Process) {
	c.w.cfg.Note("pod %s: container %s: %s probe failed: %v; it is started again", c.w.name(), c.spec.Name, kind, why)
	grace := graceOf(c.w.pod)
	if err := p.Stop(context.Background(), grace); err != nil {
		c.w.cfg.Note("pod %s: %v", c.w.name(), err)
	}
}

func (c *container) target(p *proc.Process) probe.Target {
	ports := map[string]int32{}
	for _, port := range c.spec.Ports {
		if port.Name != "" {
			ports[port.Name] = port.ContainerPort
		}
	}
	c.w.mu.Lock()
	ip := c.w.addrs[0]
	c.w.mu.Unlock()
	return probe.Target{
		IP: ip, Dial: c.w.node.Netns().DialContext, Ports: ports,
		Exec: func(ctx context.Context, argv []string) (int, string, error) {
			var out bytes.Buffer
			x, err := p.Exec(argv, nil, nil, &out, &out)
			if err != nil {
				return 0, "", err
			}
			status, err := x.Wait(ctx)
			if err != nil {
				_ = x.Signal(syscall.SIGKILL) // it had its time
				<-x.Done()
				return 0, "", err
			}
			return status.Code, out.String(), nil
		},
	}
}
