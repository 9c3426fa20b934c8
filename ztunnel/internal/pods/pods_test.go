package pods

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/zds"
)

// kernel is a small world of namespaces: fd 7 is namespace 7, fd 107 is another
// descriptor of it, and so on.
type kernel struct {
	mu     sync.Mutex
	bound  map[int]int // listeners by namespace
	broken map[int]error
	open   int // namespaces that were not closed
	trace  []string
	break_ map[int]chan error
}

func (k *kernel) Open(fd int) (Namespace, error) {
	if fd < 0 {
		return nil, errors.New("not a network namespace")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open++
	return &fakeNS{k: k, ino: fd % 100}, nil
}

type fakeNS struct {
	k      *kernel
	ino    int
	closed bool
}

func (n *fakeNS) ID() (uint64, uint64) { return 4, uint64(n.ino) }

func (n *fakeNS) Close() error {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	if n.closed {
		return errors.New("closed twice")
	}
	n.closed = true
	n.k.open--
	return nil
}

func (n *fakeNS) Start(uid string, _ zds.Info, drain *run.Drain) (Proxy, error) {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	if n.closed {
		return nil, errors.New("start in a closed namespace")
	}
	if err := n.k.broken[n.ino]; err != nil {
		return nil, err
	}
	n.k.bound[n.ino]++
	n.k.trace = append(n.k.trace, fmt.Sprint("start ", uid, " ", n.ino))
	b := make(chan error, 1)
	n.k.break_[n.ino] = b
	return &fakeProxy{n, drain, b}, nil
}

type fakeProxy struct {
	n     *fakeNS
	drain *run.Drain
	brk   chan error
}

func (p *fakeProxy) Wait() error {
	var err error
	select {
	case <-p.drain.Forced():
	case err = <-p.brk:
	}
	p.n.k.mu.Lock()
	defer p.n.k.mu.Unlock()
	p.n.k.bound[p.n.ino]--
	return err
}

type world struct {
	*kernel
	*Manager
	t     *testing.T
	ready *run.Ready
	drain *run.Drain
}

func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		k := &kernel{bound: map[int]int{}, broken: map[int]error{}, break_: map[int]chan error{}}
		w := &world{kernel: k, t: t, ready: run.NewReady(), drain: run.NewDrain()}
		w.Manager = New(Config{Open: k.Open, Drain: w.drain, Ready: w.ready.Task("workload proxy manager"), Log: obs.Discard(), Metrics: NewMetrics(obs.NewRegistry("t", ""))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		f(w)
		cancel()
		<-done
		w.drain.Cut()
		w.Wait()
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.open != 0 {
			t.Errorf("%d namespaces left open", k.open)
		}
		for ns, n := range k.bound {
			if n != 0 {
				t.Errorf("namespace %d: %d proxies left", ns, n)
			}
		}
	})
}

func (w *world) add(uid string, fd int) error {
	return w.Add(w.t.Context(), uid, zds.Info{Name: uid, Namespace: "shop", ServiceAccount: "sa"}, fd)
}

// list is "uid" for running, "uid?" for pending.
func (w *world) list() string {
	synctest.Wait()
	var s []string
	for _, p := range w.States() {
		mark := "?"
		if p.Up {
			mark = ""
		}
		s = append(s, p.UID+mark)
	}
	return strings.Join(s, " ")
}

func (w *world) expect(list string, ready bool) {
	w.t.Helper()
	if got := w.list(); got != list {
		w.t.Errorf("pods %q, want %q", got, list)
	}
	if got := len(w.ready.Pending()) == 0; got != ready {
		w.t.Errorf("ready %v, want %v", got, ready)
	}
}

func (w *world) do(errs ...error) {
	w.t.Helper()
	for _, err := range errs {
		if err != nil {
			w.t.Error(err)
		}
	}
}

func TestAddBindsBeforeAck(t *testing.T) {
	inWorld(t, func(w *world) {
		w.Session(true)
		w.do(w.add("a", 1))
		if w.bound[1] != 1 {
			t.Error("acked before the listeners were bound")
		}
		w.do(w.add("a", 101)) // another descriptor of the same namespace
		w.do(w.Snapshot(t.Context()))
		if len(w.trace) != 1 {
			t.Error(w.trace)
		}
		w.expect("a", true)
		if err := w.add("b", -1); err == nil || !strings.HasPrefix(err.Error(), "failure to start proxy") {
			t.Error(err)
		}
		w.expect("a", true)
	})
}

func TestReadiness(t *testing.T) {
	inWorld(t, func(w *world) {
		w.expect("", false)
		w.Session(true)
		w.expect("", false)
		w.do(w.Snapshot(t.Context()))
		w.expect("", true)
		w.broken[1] = errors.New("address already in use")
		if err := w.add("a", 1); err == nil || !strings.HasPrefix(err.Error(), "failure to start proxy") {
			t.Error(err)
		}
		w.expect("a?", false)
		w.do(w.add("b", 2)) // others go on
		w.expect("a? b", false)
		w.mu().Lock()
		delete(w.broken, 1)
		w.mu().Unlock()
		time.Sleep(retryEvery + time.Millisecond)
		w.expect("a b", true)
		w.Session(false)
		w.expect("a b", false)
		w.Session(true)
		w.do(w.Keep(t.Context(), "a"), w.Keep(t.Context(), "b"), w.Snapshot(t.Context()))
		w.expect("a b", true)
	})
}

func (w *world) mu() *sync.Mutex { return &w.kernel.mu }

func TestSnapshotReconciles(t *testing.T) {
	inWorld(t, func(w *world) {
		w.Session(true)
		w.do(w.add("a", 1), w.add("b", 2), w.add("c", 3), w.Snapshot(t.Context()))
		w.Session(false)
		w.Session(true)
		w.expect("a b c", false)
		w.do(w.add("a", 101), w.Keep(t.Context(), "b"), w.Keep(t.Context(), "c"), w.Del(t.Context(), "c"))
		w.expect("a b c", false) // a delete within the snapshot waits for its end
		w.do(w.Snapshot(t.Context()))
		w.expect("a b", true)
		if w.bound[3] != 0 {
			t.Error("c still listens")
		}
		w.do(w.Del(t.Context(), "a"), w.Del(t.Context(), "unknown"))
		w.expect("b", true)
	})
}

func TestNamespaceChange(t *testing.T) {
	inWorld(t, func(w *world) {
		w.Session(true)
		w.do(w.Snapshot(t.Context()), w.add("a", 1), w.add("a", 2))
		w.expect("a", true)
		if w.bound[1] != 0 || w.bound[2] != 1 {
			t.Error(w.bound)
		}
	})
}

func TestAddWhilePendingDropsIt(t *testing.T) {
	inWorld(t, func(w *world) {
		w.Session(true)
		w.do(w.Snapshot(t.Context()))
		w.broken[1] = errors.New("address already in use")
		if w.add("a", 1) == nil {
			t.Error("added")
		}
		w.do(w.add("a", 2)) // the sandbox was made anew
		w.expect("a", true)
		w.mu().Lock()
		delete(w.broken, 1)
		w.mu().Unlock()
		time.Sleep(3 * retryEvery)
		w.expect("a", true)
		if w.bound[2] != 1 || w.bound[1] != 0 {
			t.Errorf("the retry replaced the good proxy: %v", w.bound)
		}
	})
}

func TestDelWhilePending(t *testing.T) {
	inWorld(t, func(w *world) {
		w.Session(true)
		w.broken[1] = errors.New("no")
		if w.add("a", 1) == nil {
			t.Error("added")
		}
		w.do(w.Del(t.Context(), "a"), w.Snapshot(t.Context()))
		w.expect("", true)
	})
}

func TestNewSessionForgetsPending(t *testing.T) {
	inWorld(t, func(w *world) {
		w.Session(true)
		w.broken[1] = errors.New("no")
		_ = w.add("a", 1)
		w.Session(false)
		w.expect("a?", false)
		w.Session(true)
		w.do(w.Snapshot(t.Context()))
		w.expect("", true)
	})
}

func TestBrokenProxyIsServedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		w.Session(true)
		w.do(w.Snapshot(t.Context()), w.add("a", 1))
		w.break_[1] <- errors.New("listener closed")
		w.expect("a?", false)
		time.Sleep(retryEvery + time.Millisecond)
		w.expect("a", true)
	})
}

func TestNamespacesAreClosed(t *testing.T) {
	inWorld(t, func(w *world) {
		w.Session(true)
		w.do(w.add("a", 1), w.add("a", 2), w.add("b", 3), w.Del(t.Context(), "a"), w.Snapshot(t.Context()), w.Del(t.Context(), "b"))
		w.broken[4] = errors.New("no")
		_, _ = w.add("c", 4), w.add("c", 104)
	}) // the world checks at its end
}

func TestDrainRefusesPods(t *testing.T) {
	inWorld(t, func(w *world) {
		w.Session(true)
		w.do(w.Snapshot(t.Context()), w.add("a", 1))
		w.drain.Start()
		if err := w.add("b", 2); err == nil {
			t.Error("added during shutdown")
		}
	})
}

// TestServing: only a pod that takes new connections is found, and a successor of the same name is not lost with it.
func TestServing(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx := t.Context()
		web := zds.Info{Name: "web", Namespace: "shop", ServiceAccount: "web"}
		inode := func() int {
			if p, ok := w.Serving(web).(*fakeProxy); ok {
				return p.n.ino
			}
			return 0
		}
		w.Session(true)
		if err := w.Snapshot(ctx); err != nil {
			t.Fatal(err)
		}
		if n := inode(); n != 0 {
			t.Errorf("found in namespace %d before it was added", n)
		}
		if err := w.Add(ctx, "uid-1", web, 7); err != nil {
			t.Fatal(err)
		}
		if n := inode(); n != 7 {
			t.Errorf("found in namespace %d, want 7", n)
		}
		if w.Serving(zds.Info{Name: "web", Namespace: "shop", ServiceAccount: "other"}) != nil {
			t.Error("found with another service account")
		}
		w.break_[7] <- errors.New("listener broke")
		synctest.Wait()
		if n := inode(); n != 0 {
			t.Errorf("found in namespace %d although its listeners broke", n)
		}
		if err := w.Add(ctx, "uid-2", web, 8); err != nil {
			t.Fatal(err)
		}
		if err := w.Del(ctx, "uid-1"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := inode(); n != 8 {
			t.Errorf("found in namespace %d, want the successor's, 8", n)
		}
		w.drain.Start()
		if n := inode(); n != 0 {
			t.Errorf("found in namespace %d while it drains", n)
		}
	})
}
