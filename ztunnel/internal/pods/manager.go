package pods

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/zds"
)

// retryEvery is the pause between attempts to start what failed.
const retryEvery = 5 * time.Second

// Namespace is a pod's network namespace, open until Close.
type Namespace interface {
	// ID is equal for descriptors of the same namespace.
	ID() (dev, ino uint64)
	// Start binds the pod's listeners and serves until the drain is over.
	Start(uid string, info zds.Info, drain *run.Drain) (Proxy, error)
	Close() error
}

// Proxy serves one pod.
type Proxy interface {
	// Wait returns when the drain is over and all connections have ended, or,
	// with an error, when the pod cannot be served any more.
	Wait() error
}

// Config is what a Manager needs.
type Config struct {
	// Open takes over the descriptor of a namespace, also when it fails.
	Open func(fd int) (Namespace, error)
	// Drain is the end of the process; every pod's drain follows it.
	Drain *run.Drain
	// Ready is the task "workload proxy manager".
	Ready *run.Task
	Log   *obs.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// Metrics are the counts of the manager.
type Metrics struct {
	active, pending  prometheus.Gauge
	started, stopped prometheus.Counter
}

// NewMetrics registers the counts.
func NewMetrics(r prometheus.Registerer) *Metrics {
	return &Metrics{
		active:  obs.Gauge(r, "workload_manager_active_proxy_count", "The total number current workloads with active proxies.").WithLabelValues(),
		pending: obs.Gauge(r, "workload_manager_pending_proxy_count", "The total number current workloads with pending proxies.").WithLabelValues(),
		started: obs.Counter(r, "workload_manager_proxies_started_total", "The total number of proxies that were started.").WithLabelValues(),
		stopped: obs.Counter(r, "workload_manager_proxies_stopped_total", "The total number of proxies that were stopped.").WithLabelValues(),
	}
}

// Manager is the zds.Handler of the proxy.
type Manager struct {
	cfg Config
	// ended waits for proxies that were cut, so that nothing is left after Wait.
	ended *run.Group

	mu sync.Mutex
	// Invariant: no uid is in running and, with the same namespace, in pending
	// (TestAddWhilePendingDropsIt).
	running map[string]*pod
	pending map[string]*pod
	named   map[string]struct{} // by the snapshot that is arriving
	// byInfo are the proxies of running, for connections that ask by the pod's name. It has its own lock because mu is
	// held while listeners are bound.
	byInfo   served
	snapshot bool // of the present session was received
	session  bool
}

// served finds proxies by pod.
type served struct {
	mu  sync.RWMutex
	all map[zds.Info]*pod
}

func (s *served) add(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[zds.Info]*pod{}
	}
	s.all[p.info] = p
}

// remove leaves a successor of the same name alone.
func (s *served) remove(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[p.info] == p {
		delete(s.all, p.info)
	}
}

// pod is one entry of running or pending, which owns ns.
type pod struct {
	uid   string
	info  zds.Info
	ns    Namespace
	drain *run.Drain
	proxy Proxy // nil while pending
}

func (p *pod) sameNamespace(ns Namespace) bool {
	d1, i1 := p.ns.ID()
	d2, i2 := ns.ID()
	return d1 == d2 && i1 == i2
}

// New makes a manager without pods.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, ended: run.NewGroup(context.Background()), running: map[string]*pod{}, pending: map[string]*pod{}, named: map[string]struct{}{}}
}

// Run tries pending pods again until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	t := time.NewTicker(retryEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			m.retry()
		}
	}
}

// Wait returns when all proxies have ended; start the process's drain before.
func (m *Manager) Wait() {
	m.mu.Lock()
	for uid, p := range m.pending {
		m.dropPending(uid, p)
	}
	m.update()
	m.mu.Unlock()
	_ = m.ended.Wait() // the errors were logged where they came up
}

// Session begins or ends a conversation. A new one starts with a clean list of
// what is pending; running proxies stay until the snapshot has spoken.
func (m *Manager) Session(up bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session, m.snapshot = up, false
	clear(m.named)
	if up {
		for uid, p := range m.pending {
			m.dropPending(uid, p)
		}
	}
	m.update()
}

// Add serves a pod in the namespace behind fd.
func (m *Manager) Add(_ context.Context, uid string, info zds.Info, fd int) error {
	ns, err := m.cfg.Open(fd)
	if err != nil {
		return startError(uid, info, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.update()
	if !m.snapshot {
		m.named[uid] = struct{}{}
	}
	if p, ok := m.running[uid]; ok {
		if p.sameNamespace(ns) {
			_ = ns.Close()
			if old, ok := m.pending[uid]; ok {
				m.dropPending(uid, old)
			}
			return nil
		}
		m.cfg.Log.Info("pod has a new network namespace", obs.F("uid", uid), obs.F("pod", info))
		m.cut(uid, p)
	}
	if old, ok := m.pending[uid]; ok {
		m.dropPending(uid, old) // its namespace may be stale
	}
	p := &pod{uid: uid, info: info, ns: ns}
	if err := m.start(p); err != nil {
		m.pending[uid] = p
		m.cfg.Log.Warn("cannot serve a pod yet", obs.F("uid", uid), obs.F("pod", info), obs.F("retry_in", retryEvery), obs.Err(err))
		return startError(uid, info, err)
	}
	return nil
}

func startError(uid string, info zds.Info, err error) error {
	return fmt.Errorf("failure to start proxy: pod %s %s: %w", uid, info, err)
}

// start binds the pod's listeners and moves it to running. m.mu is held.
func (m *Manager) start(p *pod) error {
	if m.cfg.Drain.Draining() {
		return errors.New("this ztunnel is shutting down")
	}
	p.drain = m.cfg.Drain.Child()
	proxy, err := p.ns.Start(p.uid, p.info, p.drain)
	if err != nil {
		p.drain.Detach()
		return err
	}
	m.running[p.uid] = p
	p.proxy = proxy
	m.byInfo.add(p)
	m.count(func(c *Metrics) { c.started.Inc() })
	m.cfg.Log.Info("serving pod", obs.F("uid", p.uid), obs.F("pod", p.info))
	if !m.ended.Go("pod "+p.uid, func(context.Context) error { m.finish(p, proxy.Wait()); return nil }) {
		// Wait has returned: the process is at its very end.
		p.drain.Cut()
		_ = proxy.Wait()
		_ = p.ns.Close()
		delete(m.running, p.uid)
		m.byInfo.remove(p)
		return errors.New("this ztunnel has shut down")
	}
	return nil
}

// finish follows the end of a proxy. If nobody drained it, its listeners broke,
// and the pod is served again by the next retry.
func (m *Manager) finish(p *pod, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.update()
	p.drain.Detach()
	m.byInfo.remove(p)
	m.count(func(c *Metrics) { c.stopped.Inc() })
	if m.running[p.uid] == p {
		delete(m.running, p.uid)
		if !p.drain.Draining() {
			m.cfg.Log.Error("a pod's proxy ended by itself", obs.F("uid", p.uid), obs.F("pod", p.info), obs.Err(err))
			m.pending[p.uid] = &pod{uid: p.uid, info: p.info, ns: p.ns}
			return
		}
	}
	_ = p.ns.Close()
}

// cut ends a running proxy at once; its rest is waited for in the background.
// m.mu is held.
func (m *Manager) cut(uid string, p *pod) {
	delete(m.running, uid)
	m.byInfo.remove(p)
	m.cfg.Log.Info("pod is not served any more", obs.F("uid", uid), obs.F("pod", p.info))
	p.drain.Cut()
}

func (m *Manager) dropPending(uid string, p *pod) {
	delete(m.pending, uid)
	_ = p.ns.Close()
}

// Keep says that a pod of the snapshot still exists.
func (m *Manager) Keep(_ context.Context, uid string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.named[uid] = struct{}{}
	if _, ok := m.running[uid]; !ok {
		// Without its namespace there is nothing to serve; the agent sends it when
		// it has found it.
		m.cfg.Log.Warn("asked to keep a pod that is not served", obs.F("uid", uid))
	}
	return nil
}

// Del ends a pod; an unknown one is fine.
func (m *Manager) Del(_ context.Context, uid string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.update()
	if p, ok := m.pending[uid]; ok {
		m.dropPending(uid, p)
	}
	if !m.snapshot {
		delete(m.named, uid) // a running proxy ends with the snapshot
		return nil
	}
	if p, ok := m.running[uid]; ok {
		m.cut(uid, p)
	}
	return nil
}

// Snapshot ends every pod that the list did not name.
func (m *Manager) Snapshot(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.update()
	for uid, p := range m.running {
		if _, ok := m.named[uid]; !ok {
			m.cut(uid, p)
		}
	}
	clear(m.named)
	m.snapshot = true
	return nil
}

func (m *Manager) retry() {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.update()
	for uid, p := range m.pending {
		if err := m.start(p); err != nil {
			m.cfg.Log.Warn("still cannot serve a pod", obs.F("uid", uid), obs.F("pod", p.info), obs.Err(err))
			continue
		}
		delete(m.pending, uid)
	}
}

// update brings readiness and gauges in line. m.mu is held.
func (m *Manager) update() {
	if m.session && m.snapshot && len(m.pending) == 0 {
		m.cfg.Ready.Done()
	} else {
		m.cfg.Ready.Undo()
	}
	m.count(func(c *Metrics) {
		c.active.Set(float64(len(m.running)))
		c.pending.Set(float64(len(m.pending)))
	})
}

func (m *Manager) count(f func(*Metrics)) {
	if m.cfg.Metrics != nil {
		f(m.cfg.Metrics)
	}
}

// Serving is the proxy of a pod that takes new connections; nil if there is none here, or it drains.
func (m *Manager) Serving(info zds.Info) Proxy {
	m.byInfo.mu.RLock()
	p := m.byInfo.all[info]
	m.byInfo.mu.RUnlock()
	if p == nil || p.drain.Draining() {
		return nil
	}
	return p.proxy
}

// State is one pod for the dump.
type State struct {
	UID  string
	Info zds.Info
	Up   bool // else pending
}

// States lists all pods by uid.
func (m *Manager) States() []State {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]State, 0, len(m.running)+len(m.pending))
	for _, p := range m.running {
		out = append(out, State{p.uid, p.info, true})
	}
	for uid, p := range m.pending {
		if _, up := m.running[uid]; !up {
			out = append(out, State{p.uid, p.info, false})
		}
	}
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(a.UID, b.UID) })
	return out
}
