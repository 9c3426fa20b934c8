package pool_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/testkit/memnet"
	"github.com/marrowmesh/marrow/ztunnel/internal/pool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	a      = identity.MustParse("spiffe://td/ns/ns/sa/a")
	b      = identity.MustParse("spiffe://td/ns/ns/sa/b")
	server = netip.MustParseAddrPort("10.0.0.2:15008")
	target = pool.Target{Source: a, Expect: []identity.ID{b}, Dst: server, SourceIP: netip.MustParseAddr("10.0.0.1")}
)

// bench is a pool with a proxy behind it that takes every tunnel and holds it.
type bench struct {
	t     *testing.T
	net   *memnet.Net
	pool  *pool.Pool
	group *run.Group
	// delay is how long a dial takes; err makes it fail.
	delay time.Duration
	err   error

	mu      sync.Mutex
	dials   int
	servers []*hbone.Server
}

func bubble(t *testing.T, cfg pool.Config, test func(t *testing.T, w *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &bench{t: t, net: memnet.New(0), group: run.NewGroup(context.Background())}
		cfg.Dial = w.dial
		w.pool = pool.New(cfg)
		test(t, w)
		w.pool.Close()
		if n := w.pool.Conns(); n != 0 {
			t.Errorf("%d connections left after Close", n)
		}
		w.group.Stop()
		if err := w.group.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func (w *bench) dial(ctx context.Context, _ pool.Target) (*hbone.Client, error) {
	w.mu.Lock()
	w.dials++
	w.mu.Unlock()
	if w.delay > 0 {
		select {
		case <-time.After(w.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if w.err != nil {
		return nil, w.err
	}
	near, far := w.net.Pair(netip.MustParseAddrPort("10.0.0.1:1"), server)
	quiet := hbone.Config{PingInterval: -1}
	s := hbone.NewServer(quiet)
	w.mu.Lock()
	w.servers = append(w.servers, s)
	w.mu.Unlock()
	w.group.Go("server", func(ctx context.Context) error {
		_ = s.Serve(ctx, far, func(ctx context.Context, in *hbone.Incoming) {
			stream, err := in.Accept(nil)
			if err != nil {
				return
			}
			<-ctx.Done()
			_ = stream.Close()
		})
		return nil
	})
	return hbone.NewClient(near, quiet)
}

func (w *bench) dialled() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials
}

func (w *bench) open(t pool.Target) *hbone.Stream {
	w.t.Helper()
	s, _, err := w.pool.Open(w.t.Context(), t, "10.0.0.2:80", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func TestLimit(t *testing.T) {
	for _, tc := range []struct{ limit, concurrent, dials int }{{3, 2, 1}, {2, 4, 2}, {1, 3, 3}} {
		bubble(t, pool.Config{MaxStreams: tc.limit}, func(t *testing.T, w *bench) {
			var streams []*hbone.Stream
			for range tc.concurrent {
				streams = append(streams, w.open(target))
			}
			if w.dialled() != tc.dials {
				t.Errorf("limit %d, %d streams: %d connections, want %d", tc.limit, tc.concurrent, w.dialled(), tc.dials)
			}
			for _, s := range streams {
				_ = s.Close()
			}
			synctest.Wait()
			_ = w.open(target).Close()
			if w.dialled() != tc.dials {
				t.Errorf("limit %d: a free connection was not used again", tc.limit)
			}
		})
	}
}

func TestKeysAreKeptApart(t *testing.T) {
	bubble(t, pool.Config{}, func(t *testing.T, w *bench) {
		other, expects, more, last, from, dst := target, target, target, target, target, target
		other.Source = b
		// Nobody may get a tunnel to somebody else than whom they expect, however many they expect.
		expects.Expect, more.Expect, last.Expect = []identity.ID{a}, []identity.ID{b, a}, []identity.ID{b, b}
		from.SourceIP = netip.MustParseAddr("10.0.0.9")
		dst.Dst = netip.MustParseAddrPort("10.0.0.3:15008")
		for i, k := range []pool.Target{target, other, expects, more, last, from, dst, target, expects, more} {
			_ = w.open(k).Close()
			if want := min(i+1, 7); w.dialled() != want {
				t.Fatalf("after %d requests %d connections, want %d", i+1, w.dialled(), want)
			}
		}
	})
}

func TestDialsAreShared(t *testing.T) {
	bubble(t, pool.Config{}, func(t *testing.T, w *bench) {
		w.delay = time.Second
		for range 50 {
			w.group.Go("client", func(context.Context) error {
				s, _, err := w.pool.Open(t.Context(), target, "x:1", nil)
				if err == nil {
					_ = s.Close()
				}
				return err
			})
		}
		<-time.After(2 * time.Second)
		if w.dialled() != 1 {
			t.Errorf("%d dials for one key", w.dialled())
		}
	})
}

// TestFailedDialWakesAll: everybody hears of the failure; who gives up before does not take the others along.
func TestFailedDialWakesAll(t *testing.T) {
	bubble(t, pool.Config{}, func(t *testing.T, w *bench) {
		w.delay, w.err = 2*time.Second, errors.New("no route")
		results := make(chan error, 3)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, ctx := range []context.Context{impatient, t.Context(), t.Context()} {
			w.group.Go("client", func(context.Context) error {
				_, _, err := w.pool.Open(ctx, target, "x:1", nil)
				results <- err
				return nil
			})
			synctest.Wait() // the impatient one is first: it starts the dial
		}
		if err := <-results; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("impatient: %v", err)
		}
		start := time.Now()
		for range 2 {
			if err := <-results; !errors.Is(err, w.err) {
				t.Errorf("waiter: %v", err)
			}
		}
		if time.Since(start) != time.Second || w.dialled() != 1 {
			t.Errorf("after %v, %d dials", time.Since(start), w.dialled())
		}
		// The failure is not remembered.
		w.err = nil
		_ = w.open(target).Close()
	})
}

func TestGoingAway(t *testing.T) {
	bubble(t, pool.Config{}, func(t *testing.T, w *bench) {
		old := w.open(target)
		w.servers[0].Drain()
		synctest.Wait()
		fresh := w.open(target)
		if w.dialled() != 2 {
			t.Errorf("%d connections, want a second one after GOAWAY", w.dialled())
		}
		if old.Aborted() {
			t.Error("the old stream did not survive GOAWAY")
		}
		_, _ = old.Close(), fresh.Close()
	})
}

func TestIdle(t *testing.T) {
	bubble(t, pool.Config{Idle: time.Minute}, func(t *testing.T, w *bench) {
		s := w.open(target)
		<-time.After(5 * time.Minute)
		if w.pool.Conns() != 1 || s.Aborted() {
			t.Fatal("a connection in use was closed")
		}
		_ = s.Close()
		<-time.After(3 * time.Minute)
		if n := w.pool.Conns(); n != 0 {
			t.Errorf("%d idle connections are kept", n)
		}
	})
}

func TestCapacity(t *testing.T) {
	bubble(t, pool.Config{Capacity: 2}, func(t *testing.T, w *bench) {
		at := func(i byte) pool.Target {
			k := target
			k.SourceIP = netip.AddrFrom4([4]byte{10, 1, 0, i})
			return k
		}
		for i := range byte(4) {
			_ = w.open(at(i)).Close()
			<-time.After(time.Second)
		}
		if n := w.pool.Conns(); n != 2 {
			t.Errorf("%d connections, want 2", n)
		}
		_ = w.open(at(3)).Close()
		if w.dialled() != 4 {
			t.Error("the latest connection was evicted")
		}
		// The one that was used again outlives the one that was opened after it.
		<-time.After(time.Second)
		_ = w.open(at(2)).Close()
		<-time.After(time.Second)
		_ = w.open(at(4)).Close()
		before := w.dialled()
		if _ = w.open(at(2)).Close(); w.dialled() != before {
			t.Error("the connection used last but one was evicted")
		}
	})
}

func TestClosed(t *testing.T) {
	bubble(t, pool.Config{}, func(t *testing.T, w *bench) {
		w.delay = time.Hour
		done := make(chan error)
		go func() {
			_, _, err := w.pool.Open(t.Context(), target, "x:1", nil)
			done <- err
		}()
		synctest.Wait()
		go w.pool.Close()
		if err := <-done; err == nil {
			t.Error("a dial outlived its pool")
		}
		if _, _, err := w.pool.Open(t.Context(), target, "x:1", nil); !errors.Is(err, pool.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}
