package certs

import (
	"context"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
)

// followGap bounds how often the whole mesh is looked through while it changes in
// a burst; connections do not wait for it.
const followGap = 20 * time.Millisecond

// Mesh is the view that Follow watches.
type Mesh interface {
	Get() *mesh.View
	// Changed is closed at the next change; it is taken before Get.
	Changed() <-chan struct{}
}

// Follow fetches ahead for the workloads of this node that speak HBONE, and
// forgets an identity when its last one is gone, until ctx ends.
func (m *Manager) Follow(ctx context.Context, view Mesh, node string) error {
	known := map[identity.ID]struct{}{}
	for {
		changed := view.Changed()
		now := map[identity.ID]struct{}{}
		for w := range view.Get().Workloads() {
			if w.Node != node || w.Identity().IsZero() || w.Protocol != mesh.HBONE && !w.NativeTunnel {
				continue
			}
			id := w.Identity()
			now[id] = struct{}{}
			if _, ok := known[id]; !ok {
				m.Warm(id)
			}
		}
		for id := range known {
			if _, ok := now[id]; !ok {
				m.Forget(id)
			}
		}
		known = now
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(followGap):
		case <-ctx.Done():
			return nil
		}
	}
}
