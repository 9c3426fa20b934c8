package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab/components"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/manifest"
)

func cutZone(s string) (region, zone string) {
	region, zone, ok := strings.Cut(s, "/")
	if !ok {
		return "lab", s
	}
	return region, zone
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// waypoint is the command behind the waypoint's image. A missing program of
// ours is told when a waypoint is wanted, not before.
func (c *cluster) waypoint() []string {
	if len(c.spec.Commands.Waypoint) > 0 {
		return c.spec.Commands.Waypoint
	}
	return []string{filepath.Join(c.spec.BinDir, "waypoint")}
}

// bootMesh starts the components and waits until they are ready.
func (c *cluster) bootMesh(ctx context.Context) error {
	if c.spec.NoMesh {
		return nil
	}
	cfg := components.Config{
		Nodes: c.info.Nodes, Ztunnel: c.spec.Commands.Ztunnel, CNI: c.spec.Commands.CNI, ControlPlane: c.spec.Commands.ControlPlane,
		Env: c.spec.Env, Objects: c.state.Objects(), CADir: c.state.CA(), JWKS: c.state.JWKS(), NodeDir: c.state.Node,
	}
	if err := components.Programs(c.spec.BinDir, exists, &cfg); err != nil {
		return err
	}
	c.story.tell("starting the control plane")
	if err := c.startAll(ctx, components.ControlPlane(cfg)); err != nil {
		return err
	}
	c.story.tell("starting an agent and a proxy on %d nodes", len(c.info.Nodes))
	var pods []*corev1.Pod
	for _, node := range c.info.Nodes {
		// The sockets' directories are there before either side looks.
		for _, dir := range []string{components.ZtunnelHostDir(c.state.Node(node)), components.CNIHostDir(c.state.Node(node))} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("make the node's directory: %w", err)
			}
		}
		pods = append(pods, components.CNI(cfg, node), components.Ztunnel(cfg, node))
	}
	return c.startAll(ctx, pods...)
}

func (c *cluster) startAll(ctx context.Context, pods ...*corev1.Pod) error {
	var keys []manifest.Key
	for _, p := range pods {
		plan.DefaultPod(p)
		if err := c.world.put(p); err != nil {
			return err
		}
		keys = append(keys, manifest.KeyOf(p))
	}
	ctx, cancel := context.WithTimeout(ctx, c.spec.Limit)
	defer cancel()
	pending := c.waitFor(ctx, func() []string {
		var out []string
		for _, k := range keys {
			o, ok := c.world.get(k)
			if p, isPod := o.(*corev1.Pod); !ok || !isPod || !plan.IsReady(p) {
				out = append(out, k.Name+": "+c.why(o))
			}
		}
		return out
	})
	if len(pending) > 0 {
		return fmt.Errorf("components are not ready after %v: %s", c.spec.Limit, strings.Join(pending, "; "))
	}
	return nil
}

// waitFor waits until missing answers with nothing, or ctx ends; the last
// answer is returned.
func (c *cluster) waitFor(ctx context.Context, missing func() []string) []string {
	const again = 250 * time.Millisecond // some answers change with time alone
	for {
		changed := c.world.next()
		out := missing()
		if len(out) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return out
		case <-changed:
		case <-time.After(again):
		}
	}
}

// why says what keeps a pod from being ready.
func (c *cluster) why(o manifest.Object) string {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return "does not exist"
	}
	var parts []string
	if p.Status.Reason != "" {
		parts = append(parts, p.Status.Reason+" "+p.Status.Message)
	}
	for _, s := range p.Status.ContainerStatuses {
		switch {
		case s.Ready:
		case s.State.Waiting != nil:
			parts = append(parts, fmt.Sprintf("%s waits (%s: %s)", s.Name, s.State.Waiting.Reason, s.State.Waiting.Message))
		case s.State.Terminated != nil:
			parts = append(parts, fmt.Sprintf("%s ended with status %d", s.Name, s.State.Terminated.ExitCode))
		default:
			parts = append(parts, s.Name+" runs but is not ready")
		}
		if !s.Ready {
			parts = append(parts, c.lastLines(p, s.Name))
		}
	}
	if len(parts) == 0 {
		return "starting"
	}
	return strings.TrimSpace(strings.Join(parts, "; "))
}
