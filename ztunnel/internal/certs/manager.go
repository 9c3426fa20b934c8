package certs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
)

// Fetch gets a new certificate for an identity from the authority.
type Fetch func(ctx context.Context, id identity.ID) (*mtls.Certificate, error)

// ErrForgotten is what waiters get when the identity's last pod went.
var ErrForgotten = errors.New("identity forgotten: its last pod on this node is gone")

// Priority orders fetches that are due.
type Priority int

// From least to most urgent.
const (
	Background Priority = iota // renewal
	Warmup                     // ahead of need
	RealTime                   // a connection waits
)

// Parallel is how many fetches may run at once over all identities.
const Parallel = 8

// fetchLimit bounds one call, so that a dead authority cannot hold the slots for
// ever.
const fetchLimit = time.Minute

// Config is what a Manager needs.
type Config struct {
	Fetch Fetch
	Log   *obs.Logger
	// Parallel is the limit of concurrent fetches; 0 means Parallel (8).
	Parallel int
	// Random gives numbers in [0,1) for jitter; nil means none.
	Random func() float64
}

// Manager is the cache and its scheduler.
type Manager struct {
	cfg  Config
	wake chan struct{} // holds a token when the scheduler must look again

	mu      sync.Mutex
	entries map[identity.ID]*entry
	// inFlight survives a Forget, so that asking again adopts the running fetch.
	// Invariant: len(inFlight) <= cfg.Parallel (TestConcurrencyAndOrder).
	inFlight map[identity.ID]struct{}
}

type entry struct {
	cert     *mtls.Certificate // nil until the first success
	err      error             // why the state is Unavailable
	priority Priority
	due      time.Time     // when to fetch next
	settled  chan struct{} // closed when the state is not Initializing any more
	back     backoff
}

// New makes a manager; Run does the work.
func New(cfg Config) *Manager {
	if cfg.Parallel <= 0 {
		cfg.Parallel = Parallel
	}
	if cfg.Log == nil {
		cfg.Log = obs.Discard()
	}
	return &Manager{cfg: cfg, wake: make(chan struct{}, 1), entries: map[identity.ID]*entry{}, inFlight: map[identity.ID]struct{}{}}
}

// Certificate answers from the cache, or waits for the first fetch of the
// identity. While the state is Unavailable it returns the stored error at once.
func (m *Manager) Certificate(ctx context.Context, id identity.ID, p Priority) (*mtls.Certificate, error) {
	if id.IsZero() {
		return nil, errors.New("certificate for no identity")
	}
	e := m.want(id, p)
	select {
	case <-e.settled:
	case <-ctx.Done():
		return nil, fmt.Errorf("certificate of %v: %w", id, context.Cause(ctx))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.err != nil {
		return nil, fmt.Errorf("certificate of %v: %w", id, e.err)
	}
	return e.cert, nil
}

// Warm fetches ahead of need; it does not wait.
func (m *Manager) Warm(id identity.ID) {
	if !id.IsZero() {
		m.want(id, Warmup)
	}
}

// want finds or queues the identity and raises its priority while it waits for
// its first certificate.
func (m *Manager) want(id identity.ID, p Priority) *entry {
	m.mu.Lock()
	e, known := m.entries[id]
	if !known {
		e = &entry{priority: p, due: time.Now(), settled: make(chan struct{})}
		m.entries[id] = e
	}
	raised := e.initializing() && p > e.priority
	if raised {
		e.priority = p
	}
	m.mu.Unlock()
	if !known || raised {
		m.look()
	}
	return e
}

func (e *entry) initializing() bool { return e.cert == nil && e.err == nil }

// Forget drops the identity. A running fetch is not stopped; its result is used
// only if somebody asks again before it ends.
func (m *Manager) Forget(id identity.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[id]
	if !ok {
		return
	}
	delete(m.entries, id)
	if e.initializing() {
		e.err = ErrForgotten
		close(e.settled)
	}
}

// Source is the certificate of one identity for a connection that waits.
func (m *Manager) Source(id identity.ID) mtls.Source { return source{m, id} }

type source struct {
	m  *Manager
	id identity.ID
}

func (s source) Certificate(ctx context.Context) (*mtls.Certificate, error) {
	return s.m.Certificate(ctx, s.id, RealTime)
}

// State is what the manager knows of an identity.
type State struct {
	ID   identity.ID
	Cert *mtls.Certificate // nil unless available
	Err  error             // nil unless unavailable
}

// Text is the state in the words of the config dump.
func (s State) Text() string {
	switch {
	case s.Err != nil:
		return "Unavailable: " + s.Err.Error()
	case s.Cert != nil:
		return "Available"
	}
	return "Initializing"
}

// States lists all identities, sorted.
func (m *Manager) States() []State {
	m.mu.Lock()
	out := make([]State, 0, len(m.entries))
	for id, e := range m.entries {
		s := State{ID: id, Err: e.err}
		if e.err == nil {
			s.Cert = e.cert
		}
		out = append(out, s)
	}
	m.mu.Unlock()
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return out
}

func (m *Manager) look() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run fetches and renews until ctx ends. Whoever then waits for a certificate
// waits for its own context.
func (m *Manager) Run(ctx context.Context) error {
	g := run.NewGroup(ctx)
	g.Go("certificate scheduler", func(ctx context.Context) error {
		timer := time.NewTimer(0)
		defer timer.Stop()
		for ctx.Err() == nil {
			for {
				id, ok := m.next()
				if !ok {
					break
				}
				g.Go("fetch certificate", func(ctx context.Context) error { m.fetch(ctx, id); return nil })
			}
			timer.Reset(m.idle())
			select {
			case <-ctx.Done():
			case <-m.wake:
			case <-timer.C:
			}
		}
		return nil
	})
	return g.Wait()
}

// next takes the most urgent identity that is due, if a slot is free.
func (m *Manager) next() (identity.ID, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.inFlight) >= m.cfg.Parallel {
		return identity.ID{}, false
	}
	now := time.Now()
	var best identity.ID
	var be *entry
	for id, e := range m.entries {
		if _, busy := m.inFlight[id]; busy || e.due.After(now) {
			continue
		}
		if be == nil || e.priority > be.priority || e.priority == be.priority && e.due.Before(be.due) {
			best, be = id, e
		}
	}
	if be == nil {
		return identity.ID{}, false
	}
	m.inFlight[best] = struct{}{}
	return best, true
}

// idle is the time until the next identity is due.
func (m *Manager) idle() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	wait := time.Hour
	if len(m.inFlight) >= m.cfg.Parallel {
		return wait // the end of a fetch wakes the scheduler
	}
	for id, e := range m.entries {
		if _, busy := m.inFlight[id]; !busy {
			wait = min(wait, time.Until(e.due))
		}
	}
	return max(wait, 0)
}

func (m *Manager) fetch(ctx context.Context, id identity.ID) {
	call, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	cert, err := m.cfg.Fetch(call, id)
	if err == nil {
		err = check(id, cert, time.Now())
	}
	m.mu.Lock()
	delete(m.inFlight, id)
	if e, ok := m.entries[id]; ok && ctx.Err() == nil { // else the end of the process, or forgotten meanwhile
		first := e.initializing()
		m.settle(id, e, cert, err)
		if first {
			close(e.settled)
		}
	}
	m.mu.Unlock()
	m.look()
}

// check keeps an authority's mistake from becoming ours.
func check(id identity.ID, c *mtls.Certificate, now time.Time) error {
	switch {
	case c == nil || c.Leaf == nil:
		return errors.New("the authority answered without certificate")
	case c.ID != id:
		return fmt.Errorf("the authority answered with a certificate of %v", c.ID)
	case !c.Leaf.NotAfter.After(now):
		return fmt.Errorf("the authority answered with a certificate that expired at %v", c.Leaf.NotAfter.UTC())
	}
	return nil
}

// settle takes over the end of a fetch. m.mu is held.
func (m *Manager) settle(id identity.ID, e *entry, cert *mtls.Certificate, err error) {
	now := time.Now()
	if err == nil {
		e.cert, e.err, e.priority = cert, nil, Background
		e.back = backoff{}
		e.due = renewal(cert, now)
		m.cfg.Log.Debug("certificate fetched", obs.F("identity", id), obs.F("not_after", cert.Leaf.NotAfter.UTC()), obs.F("renew_at", e.due.UTC()))
		return
	}
	wait := e.back.next(m.cfg.Random)
	e.due = now.Add(wait)
	if e.cert != nil && e.cert.Leaf.NotAfter.After(now) {
		if e.due.After(e.cert.Leaf.NotAfter) {
			e.due = e.cert.Leaf.NotAfter
		}
		m.cfg.Log.Warn("certificate not renewed, the present one is kept", obs.F("identity", id),
			obs.F("not_after", e.cert.Leaf.NotAfter.UTC()), obs.F("retry_in", e.due.Sub(now)), obs.Err(err))
		return
	}
	e.cert, e.err = nil, err
	m.cfg.Log.Warn("certificate not available", obs.F("identity", id), obs.F("retry_in", wait), obs.Err(err))
}

// minRenewal keeps a certificate that is past its half-life when it arrives from
// being fetched in a loop.
const minRenewal = time.Second

// renewal is the middle of the certificate's life.
func renewal(c *mtls.Certificate, now time.Time) time.Time {
	life := c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)
	at := c.Leaf.NotBefore.Add(life / 2)
	if soonest := now.Add(minRenewal); life <= 0 || at.Before(soonest) {
		return soonest
	}
	return at
}
