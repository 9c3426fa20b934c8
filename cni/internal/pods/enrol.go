package pods

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/marrowmesh/marrow/internal/zds"
)

// Request is a new pod that waits for its network.
type Request struct {
	Name, Namespace string
	Netns           string
	IPs             []netip.Addr
}

// Enrol puts a new pod into the mesh before its first process runs, and
// waits until that is done.
func (m *Manager) Enrol(ctx context.Context, r Request) error {
	for range lookups {
		answer, found := m.request(r)
		if found {
			select {
			case err := <-answer:
				return err
			case <-ctx.Done():
				return fmt.Errorf("pod %s/%s: %w", r.Namespace, r.Name, ctx.Err())
			}
		}
		t := time.NewTimer(lookupPause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("pod %s/%s: %w", r.Namespace, r.Name, ctx.Err())
		}
	}
	return fmt.Errorf("pod %s/%s: %w", r.Namespace, r.Name, ErrUnknownPod)
}

func (m *Manager) request(r Request) (chan error, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, e := range m.pods {
		if e.gone || e.pod.Name != r.Name || e.pod.Namespace != r.Namespace {
			continue
		}
		answer := make(chan error, 1)
		if wanted, why := m.judge(e); !wanted {
			answer <- fmt.Errorf("pod %v: %w: %s", e.pod, ErrNotEligible, why)
			return answer, true
		}
		// The plugin knows first: the pod object gets its address later.
		e.given = r.Netns
		if len(r.IPs) > 0 {
			e.pod.IPs = r.IPs
		}
		e.waiters = append(e.waiters, answer)
		m.wake(uid, e)
		return answer, true
	}
	return nil, false
}

// Snapshot is every pod that the proxy must serve, for a proxy that connects.
// It waits for the first look at the source: a list that lacks pods would
// make the proxy drop them.
func (m *Manager) Snapshot(ctx context.Context) []zds.Entry {
	select {
	case <-m.synced:
	case <-ctx.Done():
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []zds.Entry
	for uid, e := range m.pods {
		wanted, _ := m.judge(e)
		if !wanted || e.ns == nil && e.note != StateEnabled {
			continue
		}
		entry := zds.Entry{UID: uid, FD: -1, Info: zds.Info{Name: e.pod.Name, Namespace: e.pod.Namespace, ServiceAccount: e.pod.ServiceAccount}}
		if e.ns != nil {
			if fd, err := e.ns.DupFD(); err == nil {
				entry.FD = fd
			}
		}
		out = append(out, entry)
	}
	return out
}

// Status is one pod for the admin pages.
type Status struct {
	UID        string `json:"uid"`
	Pod        string `json:"pod"`
	Wanted     bool   `json:"wanted"`
	Why        string `json:"why"`
	State      string `json:"state"`
	Annotation string `json:"annotation,omitempty"`
	Netns      string `json:"netns,omitempty"`
	Error      string `json:"error,omitempty"`
}

// Dump lists all pods of the node.
func (m *Manager) Dump() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Status, 0, len(m.pods))
	for uid, e := range m.pods {
		s := Status{UID: uid, Pod: e.pod.String(), State: e.stage.String(), Annotation: e.note, Netns: cmpOr(e.opened, e.pod.Netns)}
		s.Wanted, s.Why = m.judge(e)
		if e.last != nil {
			s.Error = e.last.Error()
		}
		out = append(out, s)
	}
	return out
}
