package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
)

func id(sa string) identity.ID { return identity.MustParse("spiffe://td/ns/shop/sa/" + sa) }

// authority is a small CA: it answers after a delay with a certificate of a given
// life, or with the present error.
type authority struct {
	mu    sync.Mutex
	delay time.Duration
	life  time.Duration
	err   error
	other bool
	log   []string
	now   int
	most  int
}

func (a *authority) fetch(ctx context.Context, want identity.ID) (*mtls.Certificate, error) {
	a.mu.Lock()
	a.log = append(a.log, want.ServiceAccount())
	a.now++
	a.most = max(a.most, a.now)
	d := a.delay
	a.mu.Unlock()
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now--
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if a.err != nil {
		return nil, a.err
	}
	if a.other {
		want = id("mallory")
	}
	now := time.Now()
	return &mtls.Certificate{ID: want, Leaf: &x509.Certificate{NotBefore: now, NotAfter: now.Add(a.life)}}, nil
}

func (a *authority) calls() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.log)
}

func (a *authority) order() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.log, " ")
}

func (a *authority) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// bubble runs a test with a manager in fake time.
func bubble(t *testing.T, a *authority, parallel int, f func(t *testing.T, m *Manager)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if a.life == 0 {
			a.life = 24 * time.Hour
		}
		m := New(Config{Fetch: a.fetch, Parallel: parallel})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		f(t, m)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func state(m *Manager, of identity.ID) string {
	for _, s := range m.States() {
		if s.ID == of {
			return s.Text()
		}
	}
	return "none"
}

func TestCoalescing(t *testing.T) {
	a := &authority{delay: time.Second}
	bubble(t, a, 0, func(t *testing.T, m *Manager) {
		var wg sync.WaitGroup
		certs := make([]*mtls.Certificate, 20)
		for i := range certs {
			wg.Go(func() {
				c, err := m.Source(id("a")).Certificate(t.Context())
				if err != nil {
					t.Error(err)
				}
				certs[i] = c
			})
		}
		synctest.Wait()
		if s := state(m, id("a")); s != "Initializing" {
			t.Error(s)
		}
		wg.Wait()
		for _, c := range certs {
			if c != certs[0] {
				t.Fatal("waiters got different certificates")
			}
		}
		if a.calls() != 1 || state(m, id("a")) != "Available" {
			t.Errorf("%d calls, %s", a.calls(), state(m, id("a")))
		}
	})
}

func TestConcurrencyAndOrder(t *testing.T) {
	a := &authority{delay: time.Second}
	bubble(t, a, 1, func(t *testing.T, m *Manager) {
		m.Warm(id("first"))
		synctest.Wait() // its fetch runs
		for _, sa := range []string{"w1", "w2", "w3"} {
			m.Warm(id(sa))
			time.Sleep(time.Millisecond)
		}
		go func() { _, _ = m.Certificate(t.Context(), id("rt"), RealTime) }()
		time.Sleep(time.Millisecond)
		if _, err := m.Certificate(t.Context(), id("w3"), RealTime); err != nil { // moves ahead of w1 and w2
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		// w3 was queued before rt: of equal priority the earlier due goes first.
		if got := a.order(); got != "first w3 rt w1 w2" {
			t.Error(got)
		}
	})
	b := &authority{delay: time.Second}
	bubble(t, b, 0, func(t *testing.T, m *Manager) {
		for i := range 50 {
			m.Warm(id(fmt.Sprint("sa", i)))
		}
		time.Sleep(time.Minute)
		most := 0
		b.set(func() { most = b.most })
		if most != Parallel || b.calls() != 50 {
			t.Errorf("%d at once, %d calls", most, b.calls())
		}
	})
}

func TestRenewalAtHalfLife(t *testing.T) {
	a := &authority{life: 10 * time.Hour}
	bubble(t, a, 0, func(t *testing.T, m *Manager) {
		first, err := m.Certificate(t.Context(), id("a"), RealTime)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5*time.Hour - time.Second)
		if a.calls() != 1 {
			t.Errorf("renewed early: %d calls", a.calls())
		}
		time.Sleep(2 * time.Second)
		second, err := m.Certificate(t.Context(), id("a"), RealTime)
		if err != nil || second == first || a.calls() != 2 {
			t.Errorf("not renewed: %d calls, %v", a.calls(), err)
		}
	})
}

func TestRenewalFailureKeepsCertificate(t *testing.T) {
	a := &authority{life: time.Hour}
	bubble(t, a, 0, func(t *testing.T, m *Manager) {
		first, err := m.Certificate(t.Context(), id("a"), RealTime)
		if err != nil {
			t.Fatal(err)
		}
		a.set(func() { a.err = errors.New("CA down") })
		time.Sleep(59 * time.Minute)
		if c, err := m.Certificate(t.Context(), id("a"), RealTime); err != nil || c != first {
			t.Errorf("%v, %v", c, err)
		}
		if a.calls() < 5 {
			t.Errorf("gave up after %d calls", a.calls())
		}
		time.Sleep(61 * time.Second) // retried at the latest when it expires
		if _, err := m.Certificate(t.Context(), id("a"), RealTime); err == nil || !strings.Contains(state(m, id("a")), "Unavailable: CA down") {
			t.Errorf("%v, %s", err, state(m, id("a")))
		}
		a.set(func() { a.err = nil })
		time.Sleep(3 * time.Minute)
		if c, err := m.Certificate(t.Context(), id("a"), RealTime); err != nil || c == first {
			t.Errorf("no recovery: %v", err)
		}
	})
}

func TestBackoff(t *testing.T) {
	a := &authority{err: errors.New("refused")}
	bubble(t, a, 0, func(t *testing.T, m *Manager) {
		start := time.Now()
		for range 3 {
			if _, err := m.Certificate(t.Context(), id("a"), RealTime); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Error(err)
			}
		}
		if a.calls() != 1 || time.Since(start) != 0 {
			t.Errorf("asking hastened the retry: %d calls, %v", a.calls(), time.Since(start))
		}
		a.set(func() { a.err = nil })
		if _, err := m.Certificate(t.Context(), id("a"), RealTime); err == nil {
			t.Error("recovered inside the backoff")
		}
		time.Sleep(time.Second + time.Millisecond)
		if _, err := m.Certificate(t.Context(), id("a"), RealTime); err != nil || a.calls() != 2 {
			t.Errorf("%v after %d calls", err, a.calls())
		}
	})
	var b backoff
	var waits []time.Duration
	for range 14 {
		waits = append(waits, b.next(func() float64 { return 0.5 })/time.Second)
	}
	if fmt.Sprintf("%d", waits) != "[1 2 4 8 16 32 64 128 150 150 150 150 150 150]" {
		t.Errorf("%d", waits)
	}
	b = backoff{}
	if lo := b.next(func() float64 { return 0 }); lo != 800*time.Millisecond {
		t.Error(lo)
	}
}

func TestForget(t *testing.T) {
	a := &authority{delay: time.Second}
	bubble(t, a, 0, func(t *testing.T, m *Manager) {
		got := make(chan error, 1)
		ask := func() {
			go func() { _, err := m.Certificate(t.Context(), id("a"), RealTime); got <- err }()
			synctest.Wait()
		}
		ask()
		m.Forget(id("a"))
		if err := <-got; !errors.Is(err, ErrForgotten) {
			t.Error(err)
		}
		if len(m.States()) != 0 {
			t.Error("cache not empty")
		}
		ask() // the first fetch still runs: its result is adopted
		if err := <-got; err != nil || a.calls() != 1 {
			t.Errorf("%v, %d calls", err, a.calls())
		}
		m.Forget(id("a"))
		m.Forget(id("a"))
		time.Sleep(48 * time.Hour)
		if len(m.States()) != 0 || a.calls() != 1 {
			t.Errorf("a forgotten identity was renewed: %d calls", a.calls())
		}
	})
}

func TestForeignAndExpiredRefused(t *testing.T) {
	a := &authority{other: true}
	bubble(t, a, 0, func(t *testing.T, m *Manager) {
		if _, err := m.Certificate(t.Context(), id("a"), RealTime); err == nil || !strings.Contains(err.Error(), "mallory") {
			t.Error(err)
		}
		a.set(func() { a.other, a.life = false, -time.Hour })
		if _, err := m.Certificate(t.Context(), id("b"), RealTime); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Error(err)
		}
		if _, err := m.Certificate(t.Context(), identity.ID{}, RealTime); err == nil {
			t.Error("certificate for no identity")
		}
	})
}

func TestWaiterLeaves(t *testing.T) {
	a := &authority{delay: time.Minute}
	bubble(t, a, 0, func(t *testing.T, m *Manager) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Certificate(ctx, id("a"), RealTime); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// stage is a Mesh of a test.
type stage struct {
	mu sync.Mutex
	v  *mesh.View
	ch chan struct{}
}

func (s *stage) Get() *mesh.View { s.mu.Lock(); defer s.mu.Unlock(); return s.v }
func (s *stage) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch
}

func (s *stage) apply(b mesh.Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.v, _ = s.v.With(b)
	close(s.ch)
	s.ch = make(chan struct{})
}

func TestFollow(t *testing.T) {
	a := &authority{}
	bubble(t, a, 0, func(t *testing.T, m *Manager) {
		s := &stage{v: mesh.NewView(), ch: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Follow(ctx, s, "n1") }()
		w := func(uid, node, sa string, p mesh.Protocol) *mesh.Workload {
			return &mesh.Workload{UID: uid, Name: uid, Namespace: "shop", Node: node, Protocol: p, ID: id(sa)}
		}
		s.apply(mesh.Batch{Workloads: []*mesh.Workload{w("1", "n1", "a", mesh.HBONE), w("2", "n1", "a", mesh.HBONE), w("3", "n2", "far", mesh.HBONE), w("4", "n1", "plain", mesh.TCP)}})
		time.Sleep(time.Second)
		if len(m.States()) != 1 || state(m, id("a")) != "Available" {
			t.Errorf("%v", m.States())
		}
		s.apply(mesh.Batch{Removed: []string{"1"}})
		time.Sleep(time.Second)
		if len(m.States()) != 1 {
			t.Error("forgotten too early")
		}
		s.apply(mesh.Batch{Removed: []string{"2"}})
		time.Sleep(time.Second)
		if len(m.States()) != 0 {
			t.Error("not forgotten")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
