package h2

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/marrowmesh/marrow/internal/burst"
)

// stillStreams is a client without goroutines that has n answered streams.
func stillStreams(t *testing.T, cfg Config, n int) (*Conn, []*Stream) {
	t.Helper()
	c := still(client)
	cfg.PingInterval = -1
	c.cfg = cfg.withDefaults(client)
	c.recv.window = window{size: int64(c.cfg.ConnWindow), left: int64(c.cfg.ConnWindow)}
	c.in.phase = atFrames
	c.set.next = 1
	var all []*Stream
	for range n {
		s := c.newStream(c.set.next)
		s.answered()
		c.set.next += 2
		all = append(all, s)
	}
	return c, all
}

// feedData feeds one DATA frame.
func (c *Conn) feedData(t *testing.T, id uint32, n int, end bool) {
	t.Helper()
	h := dataHeader(id, n, end)
	if _, err := c.feed(append(h[:], make([]byte, n)...)); err != nil {
		t.Fatal(err)
	}
}

// conserved checks every invariant of the windows.
func (c *Conn) conserved(t *testing.T) {
	t.Helper()
	w := c.recv
	if w.left+w.unsaid+w.held != w.size || w.held != max(0, w.queued-c.cfg.Queue) && !c.cfg.Totals.crowded() || w.left < 0 || w.unsaid < 0 {
		t.Fatalf("connection's window: %+v, budget %d", w, c.cfg.Queue)
	}
	extra, queued := int64(0), int64(0)
	for _, s := range c.set.open {
		extra += s.recv.size - c.cfg.base()
		queued += int64(s.in.size)
		busy := s.to != nil && (s.to.busy || s.to.err != nil) // a part is on its way
		if s.cause == nil && !s.remoteEnd && !busy && s.recv.left+s.recv.unsaid+int64(s.in.size) != s.recv.size {
			t.Fatalf("stream %d: %+v with %d queued", s.id, s.recv, s.in.size)
		}
		if s.recv.size < c.cfg.base() || s.recv.size > int64(c.cfg.StreamWindow) {
			t.Fatalf("stream %d: window of %d", s.id, s.recv.size)
		}
	}
	if extra != w.extra || extra > extraLimit || queued > w.queued {
		t.Fatalf("extra %d, counted %d; queued %d, counted %d", extra, w.extra, queued, w.queued)
	}
}

// TestWindowGrows: a stream whose owner keeps up gets more, one whose owner
// lags no more than the base, and what it had is there for others again.
func TestWindowGrows(t *testing.T) {
	c, all := stillStreams(t, Config{}, 2)
	s, sink := all[0], newSink(t, -1)
	s.Deliver(sink, func(error) {})
	for range 100 {
		c.feedData(t, s.id, 64<<10, false)
		c.conserved(t)
	}
	if s.recv.size != 4<<20 {
		t.Errorf("window of a fast reader: %d", s.recv.size)
	}
	sink.set(0, nil)
	for s.recv.left > 0 {
		c.feedData(t, s.id, int(min(64<<10, s.recv.left)), false)
		c.mu.Lock()
		c.conserved(t)
		c.mu.Unlock()
	}
	sink.set(-1, nil)
	c.wg.Wait() // the drainer
	c.conserved(t)
	if s.recv.size > 1<<20 {
		t.Errorf("window after a stall: %d", s.recv.size)
	}
	_ = s.Close()
	if c.conserved(t); c.recv.extra != 0 {
		t.Errorf("closed stream keeps %d", c.recv.extra)
	}
	c.out.queue.drop()
}

// TestExtraWindowIsBounded: however many streams keep up, together they get
// 16 MiB above the base, and none of them nothing.
func TestExtraWindowIsBounded(t *testing.T) {
	c, all := stillStreams(t, Config{}, 50)
	for _, s := range all {
		s.Deliver(newSink(t, -1), func(error) {})
	}
	for range 60 {
		for _, s := range all {
			c.feedData(t, s.id, 32<<10, false)
		}
		c.conserved(t)
	}
	if c.recv.extra < extraLimit/2 {
		t.Errorf("only %d of %d are used", c.recv.extra, int64(extraLimit))
	}
	c.out.queue.drop()
}

// TestRandomWindows: no sequence of arrivals, readers and ends loses a byte
// of any window.
func TestRandomWindows(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		c, all := stillStreams(t, Config{Queue: 300_000, ConnWindow: 400_000, StreamWindow: 1 << 20}, 8)
		for _, s := range all[:4] {
			s.Deliver(&fickle{rnd: rnd}, func(error) {})
		}
		for range 400 {
			c.mu.Lock()
			s := all[rnd.IntN(len(all))]
			n := int(min(int64(rnd.IntN(60_000)), s.recv.left, c.recv.left))
			open, queued := c.set.open[s.id] != nil && !s.remoteEnd, s.in.size
			c.mu.Unlock()
			switch k := rnd.IntN(20); {
			case k < 12 && open && n > 0:
				c.feedData(t, s.id, n, rnd.IntN(60) == 0)
			case k < 18 && queued > 0 && s.to == nil && !s.closed:
				_, _ = s.Read(make([]byte, 1+rnd.IntN(100_000)))
			case k == 18 && rnd.IntN(20) == 0:
				_ = s.Close()
			}
			c.wg.Wait()
			c.mu.Lock()
			c.conserved(t)
			c.mu.Unlock()
		}
		for _, s := range all {
			_ = s.Close()
		}
		c.wg.Wait()
		if c.conserved(t); c.recv.queued != 0 {
			t.Fatalf("%d bytes queued in closed streams", c.recv.queued)
		}
		c.out.queue.drop()
	}
}

// fickle takes a random part at once and all if it may wait.
type fickle struct{ rnd *rand.Rand }

func (f *fickle) TryWrite(p []byte) (int, error) { return f.rnd.IntN(len(p) + 1), nil }
func (f *fickle) Write(p []byte) (int, error)    { return len(p), nil }

// sockets is a loopback connection.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return a, <-accepted
}

// pair is a client and a server that are joined.
func pair(t testing.TB, cc, sc Config, h Handler) (*Conn, *Conn) {
	t.Helper()
	a, b := sockets(t)
	cl, srv := NewClient(a, cc), NewServer(b, sc, h)
	t.Cleanup(func() {
		_ = cl.Close()
		cl.Wait()
		srv.Wait()
	})
	return cl, srv
}

func tunnelTo(t testing.TB, c *Conn, authority string) *Stream {
	t.Helper()
	s, err := c.Open(t.Context(), []Field{{":method", "CONNECT"}, {":authority", authority}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Response(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// counting is a sink that takes everything.
type counting struct{ n atomic.Int64 }

func (k *counting) TryWrite(p []byte) (int, error) { k.n.Add(int64(len(p))); return len(p), nil }
func (k *counting) Write(p []byte) (int, error)    { return k.TryWrite(p) }

// stuck is a sink that takes nothing until it is broken.
type stuck struct{ broken chan struct{} }

func (k stuck) TryWrite([]byte) (int, error) { return 0, nil }
func (k stuck) Write([]byte) (int, error)    { <-k.broken; return 0, io.ErrClosedPipe }

// TestStalledStreamsDoNotStopTheirNeighbour: 199 streams whose owners do not
// read hold what their windows allow, and the 200th goes on.
func TestStalledStreamsDoNotStopTheirNeighbour(t *testing.T) {
	const stalled, bulk = 199, 128 << 20
	broken := make(chan struct{})
	var fast counting
	moved := make(chan struct{})
	var ends sync.WaitGroup
	cl, srv := pair(t, Config{MaxStreams: 200, PingInterval: -1}, Config{PingInterval: -1}, func(s *Stream, fields []Field) {
		if s.Respond([]Field{{":status", "200"}}, false) != nil {
			return
		}
		ends.Add(1)
		if fields[1].Value == "fast:1" {
			s.Deliver(&fast, func(error) { close(moved); ends.Done() })
			return
		}
		s.Deliver(stuck{broken}, func(error) { ends.Done() })
	})
	before, slabs := heap(), burst.Out()
	var writers sync.WaitGroup
	for range stalled {
		s := tunnelTo(t, cl, "slow:1")
		writers.Go(func() { _, _ = s.Write(make([]byte, 1<<20)); _ = s.Close() })
	}
	for deadline := time.Now().Add(20 * time.Second); srv.Stats().Waiting < stalled*baseWindow; {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes wait, want %d", srv.Stats().Waiting, stalled*baseWindow)
		}
		time.Sleep(time.Millisecond)
	}
	s := tunnelTo(t, cl, "fast:1")
	b := make([]byte, Headroom+250_000+1)
	for sent := 0; sent < bulk; sent += 250_000 {
		if _, err := s.WriteSlab(b[:Headroom+250_000]); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.CloseWrite()
	<-moved
	if n := fast.n.Load(); n < bulk {
		t.Errorf("the neighbour got %d bytes", n)
	}
	waiting := srv.Stats().Waiting
	if waiting != stalled*baseWindow {
		t.Errorf("%d bytes wait", waiting)
	}
	used := heap() - before - stalled<<20 // the writers' own
	t.Logf("%d stalled streams hold %d KiB in %d slabs, the heap grew by %d KiB", stalled, waiting>>10, burst.Out()-slabs, used>>10)
	if used > 2*stalled*baseWindow {
		t.Errorf("the heap grew by %d KiB for %d KiB that wait", used>>10, waiting>>10)
	}
	close(broken)
	_ = cl.Close()
	writers.Wait()
	srv.Wait()
	ends.Wait()
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}

// TestMemoryOfStalledStreams: a peer who fills every stream gets no further
// than the budget and one connection window, and when the owners read on
// everything arrives.
func TestMemoryOfStalledStreams(t *testing.T) {
	const budget, window, streams, each = 1 << 20, 1 << 20, 20, 400_000
	release := make(chan struct{})
	var got atomic.Int64
	var ends sync.WaitGroup
	cl, srv := pair(t, Config{PingInterval: -1}, Config{Queue: budget, ConnWindow: window, PingInterval: -1}, func(s *Stream, _ []Field) {
		_ = s.Respond([]Field{{":status", "200"}}, false)
		<-release
		n, _ := io.Copy(io.Discard, s)
		got.Add(n)
		_ = s.CloseWrite()
		ends.Done()
	})
	var writers sync.WaitGroup
	for range streams {
		ends.Add(1)
		s := tunnelTo(t, cl, "a:1")
		writers.Go(func() { _, _ = s.Write(make([]byte, each)); _ = s.CloseWrite() })
	}
	for srv.Stats().Waiting < budget+window {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	if n := srv.Stats().Waiting; n != budget+window {
		t.Errorf("%d bytes wait, want %d", n, budget+window)
	}
	close(release)
	writers.Wait()
	ends.Wait()
	if n := got.Load(); n != streams*each {
		t.Errorf("%d bytes arrived of %d", n, streams*each)
	}
}

// TestCrumbsShareACall: one feed with many small frames of a stream makes two
// calls to its sink, not one for each.
func TestCrumbsShareACall(t *testing.T) {
	c, all := stillStreams(t, Config{}, 1)
	sink := newSink(t, -1)
	all[0].Deliver(sink, func(error) {})
	var input bytes.Buffer
	fr := http2.NewFramer(&input, nil)
	for range 5000 {
		_ = fr.WriteData(1, false, []byte("x"))
	}
	_ = fr.WriteData(1, false, bytes.Repeat([]byte("y"), 5000))
	_ = fr.WriteData(1, true, []byte("z"))
	if _, err := c.feed(input.Bytes()); err != nil {
		t.Fatal(err)
	}
	if got := sink.text(); got[0] != 'x' || got[5000] != 'y' || got[10_000] != 'z' {
		t.Error("out of order")
	}
	if sink.tries > 6 {
		t.Errorf("%d calls to the sink", sink.tries)
	}
	c.out.queue.drop()
}
