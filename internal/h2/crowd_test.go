package h2

import (
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// reader is a server handler whose streams are read once go is closed, or at once if the request says so.
type reader struct {
	start chan struct{}
	ends  sync.WaitGroup
	sums  chan int64
}

func (r *reader) handle(s *Stream, fields []Field) {
	defer r.ends.Done()
	_ = s.Respond([]Field{{":status", "200"}}, false)
	if fields[1].Value == "late:1" {
		<-r.start
	}
	n, _ := io.Copy(io.Discard, s)
	r.sums <- n
	_ = s.CloseWrite()
}

// until waits for what other goroutines do.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestCrowdedProcess: all connections of a process share what they may queue.
// Beyond it each gets no more than its window, those whose streams are read go
// on, and one that was held up by others goes on when they have been read.
func TestCrowdedProcess(t *testing.T) {
	const limit, window, conns, each = 2 << 20, 1 << 20, 6, 4 << 20
	totals := &Totals{QueueLimit: limit}
	cfg := Config{ConnWindow: window, StreamWindow: window, Totals: totals, PingInterval: 20 * time.Millisecond, PingTimeout: 10 * time.Second}
	h := &reader{start: make(chan struct{}), sums: make(chan int64, 100)}
	var writers sync.WaitGroup
	send := func(c *Conn, to string, n int) {
		h.ends.Add(1)
		s := tunnelTo(t, c, to)
		writers.Go(func() { _, _ = s.Write(make([]byte, n)); _ = s.CloseWrite() })
	}
	for range conns {
		cl, _ := pair(t, Config{PingInterval: -1}, cfg, h.handle)
		for range 16 {
			send(cl, "late:1", each/16)
		}
	}
	until(t, "the limit is not reached", func() bool { return totals.Queued.Load() > limit })
	time.Sleep(50 * time.Millisecond)
	if n := totals.Queued.Load(); n > limit+conns*window {
		t.Errorf("%d bytes are queued, at most %d may be", n, limit+conns*window)
	}
	calm, _ := pair(t, Config{PingInterval: -1}, cfg, h.handle)
	send(calm, "now:1", 8*window)
	if n := <-h.sums; n != 8*window {
		t.Errorf("%d bytes went through a connection whose streams are read", n)
	}
	close(h.start)
	writers.Wait()
	h.ends.Wait()
	total := int64(0)
	for range conns * 16 {
		total += <-h.sums
	}
	if total != conns*each {
		t.Errorf("%d bytes arrived of %d", total, conns*each)
	}
	if n := totals.Queued.Load(); n != 0 {
		t.Errorf("%d bytes are counted that nobody has", n)
	}
}

// TestCrowdIsOver: a connection that held its window back looks again at its next tick, though nothing happens on it.
func TestCrowdIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		totals := &Totals{QueueLimit: 1000}
		c, all := stillStreams(t, Config{ConnWindow: 100_000, Totals: totals}, 2)
		c.cfg.PingInterval, c.cfg.PingTimeout = time.Second, time.Second
		c.ping.start(c)
		totals.queue(2000) // of somebody else
		c.feedData(t, all[0].id, 100_000, false)
		if c.recv.left != 0 || c.recv.held != 100_000 {
			t.Fatalf("%+v, want it all held back", c.recv)
		}
		totals.queue(-102_000)
		time.Sleep(1500 * time.Millisecond)
		c.mu.Lock()
		if c.conserved(t); c.recv.left != 100_000 {
			t.Errorf("%+v, want it all given back", c.recv)
		}
		c.ping.stop()
		_ = all[0].in.drop()
		c.out.queue.drop()
		c.mu.Unlock()
	})
}

// TestViolationLeavesNothing: what a peer who breaks the rules has sent is not kept for those who have not read it, who
// do not take the rest for all; what others sent is (TestBufferedDataSurvivesReset).
func TestViolationLeavesNothing(t *testing.T) {
	totals := &Totals{}
	lockstep(t, Config{Totals: totals}, client, nil, func(c *Conn, w *wire) {
		var all []*Stream
		for id := uint32(1); id <= 3; id += 2 {
			s, err := c.Open(t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
			w.headers(id, false, ":status", "200")
			_ = w.fr.WriteData(id, id == 3, make([]byte, 10_000))
		}
		synctest.Wait()
		if n := totals.Queued.Load(); n != 20_000 {
			t.Errorf("%d bytes are queued", n)
		}
		_ = w.fr.WriteData(0, false, nil)
		synctest.Wait()
		if n := totals.Queued.Load(); n != 0 {
			t.Errorf("%d bytes are kept of a peer who broke the rules", n)
		}
		done := make(chan error, 1)
		all[1].Deliver(newSink(t, -1), func(err error) { done <- err })
		_, err := io.ReadAll(all[0])
		for i, err := range []error{err, <-done} {
			if e, ok := errors.AsType[*ConnError](err); !ok || !e.Violation() {
				t.Errorf("stream %d ended with %v", all[i].id, err)
			}
		}
	})
}

// TestCrowdedEnds: when memory is short nothing is kept of a connection that has ended.
func TestCrowdedEnds(t *testing.T) {
	for _, limit := range []int64{1 << 20, 1000} {
		totals := &Totals{QueueLimit: limit}
		c, all := stillStreams(t, Config{Totals: totals}, 1)
		c.feedData(t, all[0].id, 10_000, true)
		c.mu.Lock()
		c.end(&ConnError{Code: NoError, Err: errPeerClosed})
		c.out.queue.drop()
		c.mu.Unlock()
		n, err := io.Copy(io.Discard, all[0])
		if crowded := limit == 1000; crowded != (n == 0) || crowded != errors.Is(err, errPeerClosed) || totals.Queued.Load() != 0 {
			t.Errorf("with a limit of %d: %d bytes, then %v; %d bytes are counted", limit, n, err, totals.Queued.Load())
		}
	}
}
