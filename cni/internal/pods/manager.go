package pods

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/cni/internal/redirect"
	"github.com/marrowmesh/marrow/internal/netsys/ruleset"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/zds"
)

// Batch is what changed. The first of a Source is everything.
type Batch struct {
	Pods       map[string]*Pod              // by uid; nil = gone
	Namespaces map[string]map[string]string // labels by name; nil = gone
}

// Source is where pods come from and annotations go to.
type Source interface {
	// Watch delivers batches until ctx ends, then closes the channel.
	Watch(ctx context.Context) (<-chan Batch, error)
	// Annotate sets the redirection annotation, or removes it if state is
	// empty. A pod that is gone is no error.
	Annotate(ctx context.Context, p Pod, state string) error
}

// Namespace is a pod's network namespace, held open.
type Namespace interface {
	Addrs() ([]netip.Addr, error)
	Apply(s ruleset.Set) error
	Undo(s ruleset.Set) error
	DupFD() (int, error)
	Close() error
}

// Proxy is the node proxy.
type Proxy interface {
	Add(ctx context.Context, uid string, info zds.Info, fd int) error
	Del(ctx context.Context, uid string) error
}

// Config is what a Manager works with.
type Config struct {
	Source    Source
	Selection Selection
	Redirect  redirect.Options
	Open      func(path string) (Namespace, error) // refuses the node's own namespace
	Loopback6 func(n Namespace) bool               // whether lo of the pod has IPv6; nil = as Redirect says
	Proxy     Proxy
	Probes    func(pods []redirect.Enrolled) error // brings the node's probe rules into force
	CloseFD   func(fd int)
	Log       *obs.Logger
	OnState   func(before, after string) // metrics; may be nil
}

const (
	retryFirst  = 5 * time.Millisecond
	retryLimit  = 5 * time.Second
	proxyLimit  = 5 * time.Second
	lookups     = 10
	lookupPause = 10 * time.Millisecond
)

// Errors of Enrol.
var (
	ErrNotEligible = errors.New("pod is not to be enrolled")
	ErrUnknownPod  = errors.New("no such pod on this node")
)

// errWait is a step that can only go on after a change.
var errWait = errors.New("waits for a change")

// Manager drives all pods of the node.
type Manager struct {
	cfg    Config
	synced chan struct{}

	mu     sync.Mutex
	pods   map[string]*entry
	spaces map[string]map[string]string
	probes []redirect.Enrolled // what is in force
	group  *run.Group
}

// entry is one pod. Fields are guarded by Manager.mu; ns and stage are
// changed by the pod's worker alone.
type entry struct {
	pod     Pod
	gone    bool
	given   string // namespace path from the plugin: newer than the pod's
	opened  string // path that ns was opened from
	rules   string // what is in force there
	ns      Namespace
	stage   stage
	note    string // the annotation's value, as far as we know
	old     bool   // here before us: what is in force in it is not known
	last    error
	gen     int           // counts changes
	working bool          // a worker runs
	poke    chan struct{} // wakes it
	waiters []chan error
}

type stage uint8

const (
	outside    stage = iota // nothing of ours is in force
	redirected              // rules are in the namespace
	served                  // the proxy took it
)

func (s stage) String() string { return [...]string{"outside", "pending", "enrolled"}[s] }

// New makes a manager that does nothing yet.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, synced: make(chan struct{}), pods: map[string]*entry{}, spaces: map[string]map[string]string{}}
}

// Synced is closed when the first batch is known.
func (m *Manager) Synced() <-chan struct{} { return m.synced }

// Run follows the source until ctx ends. Pods stay as they are then.
func (m *Manager) Run(ctx context.Context) error {
	g := run.NewGroup(ctx)
	batches, err := m.cfg.Source.Watch(g.Context())
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	m.mu.Lock()
	m.group = g
	m.mu.Unlock()
	g.Go("follow pods", func(ctx context.Context) error {
		for first := true; ; first = false {
			select {
			case <-ctx.Done():
				return nil
			case b, ok := <-batches:
				if !ok {
					if ctx.Err() != nil {
						return nil //nolint:nilerr // it ended because it was told to
					}
					return errors.New("the source of pods ended")
				}
				if err := m.take(b, first); err != nil {
					return err
				}
			}
		}
	})
	err = g.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.pods {
		if e.ns != nil {
			_ = e.ns.Close()
			e.ns = nil
		}
	}
	return err
}

func (m *Manager) take(b Batch, first bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, labels := range b.Namespaces {
		if labels == nil {
			delete(m.spaces, name)
		} else {
			m.spaces[name] = labels
		}
	}
	for uid, p := range b.Pods {
		e := m.pods[uid]
		switch {
		case p == nil && e == nil:
			continue
		case p == nil:
			e.gone = true
		case e == nil:
			m.pods[uid] = &entry{pod: *p, note: p.Annotations[AnnotationRedirection], old: first, poke: make(chan struct{}, 1)}
		default:
			known := e.pod.IPs
			e.pod, e.gone = *p, false
			if len(e.pod.IPs) == 0 {
				e.pod.IPs = known // of the plugin: the object learns them later
			}
			e.note = p.Annotations[AnnotationRedirection]
		}
	}
	if first {
		// Pods that were enrolled before we started keep their probes while
		// their workers look at them one after another.
		if err := m.setProbes(m.enrolledBefore()); err != nil {
			return err
		}
		close(m.synced)
	}
	for uid, e := range m.pods {
		_, changed := b.Pods[uid]
		_, around := b.Namespaces[e.pod.Namespace]
		if changed || around {
			m.wake(uid, e)
		}
	}
	return nil
}

func (m *Manager) enrolledBefore() []redirect.Enrolled {
	var out []redirect.Enrolled
	for uid, e := range m.pods {
		if wanted, _ := m.judge(e); wanted && e.note == StateEnabled {
			for _, ip := range e.pod.IPs {
				out = append(out, redirect.Enrolled{Addr: ip, UID: uid})
			}
		}
	}
	return out
}

func (m *Manager) judge(e *entry) (bool, string) {
	if e.gone {
		return false, "it is gone"
	}
	return m.cfg.Selection.Judge(e.pod, m.spaces[e.pod.Namespace])
}

// wake has the pod looked at, by its worker or a new one.
func (m *Manager) wake(uid string, e *entry) {
	e.gen++
	if e.working {
		select {
		case e.poke <- struct{}{}:
		default:
		}
		return
	}
	e.working = m.group.Go("pod "+e.pod.String(), func(ctx context.Context) error {
		m.work(ctx, uid, e)
		return nil
	})
}

// Poke has every pod that waits for the proxy tried again now.
func (m *Manager) Poke() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.pods {
		if e.working {
			select {
			case e.poke <- struct{}{}:
			default:
			}
		}
	}
}

// work takes steps until nothing is left to do.
func (m *Manager) work(ctx context.Context, uid string, e *entry) {
	wait := retryFirst
	for ctx.Err() == nil {
		m.mu.Lock()
		gen, wanted := e.gen, false
		var why string
		wanted, why = m.judge(e)
		v := view{uid: uid, pod: e.pod, gone: e.gone, path: cmpOr(e.given, e.pod.Netns), note: e.note, why: why}
		before := e.stage
		v.old, e.old = e.old, false
		m.mu.Unlock()
		var err error
		if wanted {
			err = m.enrol(ctx, e, v)
		} else {
			err = m.remove(ctx, e, v)
		}
		if ctx.Err() != nil {
			return
		}
		done := m.settle(uid, e, gen, before, err, wanted, why)
		if done {
			return
		}
		if err == nil {
			wait = retryFirst
			continue
		}
		pause(ctx, e, wait)
		wait = min(2*wait, retryLimit)
	}
}

// settle notes the outcome of a step; true ends the worker.
func (m *Manager) settle(uid string, e *entry, gen int, before stage, err error, wanted bool, why string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cfg.OnState != nil && before != e.stage {
		m.cfg.OnState(before.String(), e.stage.String())
	}
	answer := err
	if err == nil && !wanted {
		answer = fmt.Errorf("pod %v: %w: %s", e.pod, ErrNotEligible, why)
	}
	if err == nil || !errors.Is(err, errWait) {
		for _, w := range e.waiters {
			w <- answer
		}
		e.waiters = nil
	}
	if err != nil && (e.last == nil || e.last.Error() != err.Error()) && !errors.Is(err, errWait) {
		m.cfg.Log.Warn("pod is not as it should be, trying again", obs.F("pod", e.pod.String()), obs.F("uid", uid), obs.Err(err))
	}
	e.last = err
	if e.gen != gen {
		return false
	}
	if err == nil || errors.Is(err, errWait) {
		e.working = false
		if e.gone {
			delete(m.pods, uid)
		}
		return true
	}
	return false
}

func pause(ctx context.Context, e *entry, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-e.poke:
	case <-t.C:
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// setProbes brings the node's probe rules to the given pods.
func (m *Manager) setProbes(pods []redirect.Enrolled) error {
	slices.SortFunc(pods, func(a, b redirect.Enrolled) int { return a.Addr.Compare(b.Addr) })
	if slices.Equal(pods, m.probes) && m.probes != nil {
		return nil
	}
	if err := m.cfg.Probes(pods); err != nil {
		return fmt.Errorf("probe rules of the node: %w", err)
	}
	m.probes = append(make([]redirect.Enrolled, 0, len(pods)), pods...)
	return nil
}

// probesFor replaces the pod's addresses in the probe rules.
func (m *Manager) probesFor(uid string, ips []netip.Addr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var next []redirect.Enrolled
	for _, p := range m.probes {
		// An address belongs to the pod that got it last.
		if p.UID != uid && !slices.Contains(ips, p.Addr) {
			next = append(next, p)
		}
	}
	for _, ip := range ips {
		next = append(next, redirect.Enrolled{Addr: ip, UID: uid})
	}
	return m.setProbes(next)
}
