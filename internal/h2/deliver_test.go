package h2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
)

// testSink takes what its room allows; Write waits for room.
type testSink struct {
	mu     sync.Mutex
	cond   sync.Cond
	got    bytes.Buffer
	room   int // negative: endless
	tries  int
	waits  int
	fail   error
	inside int // concurrent calls
	t      *testing.T
}

func newSink(t *testing.T, room int) *testSink {
	t.Helper()
	s := &testSink{room: room, t: t}
	s.cond.L = &s.mu
	return s
}

func (s *testSink) enter() {
	if s.inside++; s.inside > 1 {
		s.t.Error("two goroutines at the sink")
	}
}

func (s *testSink) TryWrite(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter()
	defer func() { s.inside-- }()
	s.tries++
	if s.fail != nil {
		return 0, s.fail
	}
	n := len(p)
	if s.room >= 0 {
		n = min(n, s.room)
		s.room -= n
	}
	s.got.Write(p[:n])
	return n, nil
}

func (s *testSink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter()
	defer func() { s.inside-- }()
	s.waits++
	for n := 0; n < len(p); {
		for s.room == 0 && s.fail == nil {
			s.cond.Wait()
		}
		if s.fail != nil {
			return n, s.fail
		}
		k := len(p) - n
		if s.room >= 0 {
			k = min(k, s.room)
			s.room -= k
		}
		s.got.Write(p[n : n+k])
		n += k
	}
	return len(p), nil
}

func (s *testSink) set(room int, fail error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room, s.fail = room, fail
	s.cond.Broadcast()
}

func (s *testSink) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.String()
}

// outcome is how done was called.
type outcome struct {
	mu    sync.Mutex
	err   error
	times int
}

func (o *outcome) done(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
	o.times++
}

func (o *outcome) check(t *testing.T, times int, want error) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.times != times || (want == nil) != (o.err == nil) || want != nil && !errors.Is(o.err, want) {
		t.Errorf("done called %d times with %v, want %d times with %v", o.times, o.err, times, want)
	}
}

// delivered opens a client stream whose bytes go to sink.
func delivered(t *testing.T, sink *testSink, run func(c *Conn, w *wire, s *Stream, o *outcome)) {
	t.Helper()
	lockstep(t, Config{}, client, nil, func(c *Conn, w *wire) {
		s, err := c.Open(w.t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
		if err != nil {
			t.Fatal(err)
		}
		w.headers(1, false, ":status", "200")
		o := &outcome{}
		sink.t = w.t
		s.Deliver(sink, o.done)
		run(c, w, s, o)
	})
}

var errSink = errors.New("socket broke")

// TestDeliver: what arrives goes to the sink in order, from one goroutine at
// a time, and done comes once, last.
func TestDeliver(t *testing.T) {
	t.Run("straight through", func(t *testing.T) {
		sink := newSink(t, -1)
		delivered(t, sink, func(c *Conn, w *wire, _ *Stream, o *outcome) {
			_ = w.fr.WriteData(1, false, []byte("one "))
			_ = w.fr.WriteData(1, true, []byte("two"))
			synctest.Wait()
			if sink.text() != "one two" || sink.waits != 0 || c.Stats().Queued != 0 {
				t.Errorf("got %q with %d waiting writes, %+v", sink.text(), sink.waits, c.Stats())
			}
			o.check(t, 1, nil)
		})
	})
	t.Run("full, then room", func(t *testing.T) {
		sink := newSink(t, 2)
		delivered(t, sink, func(c *Conn, w *wire, _ *Stream, o *outcome) {
			_ = w.fr.WriteData(1, false, []byte("one "))
			synctest.Wait()
			_ = w.fr.WriteData(1, true, []byte("two"))
			synctest.Wait()
			if sink.text() != "on" || c.Stats().Waiting == 0 {
				t.Errorf("got %q, %+v", sink.text(), c.Stats())
			}
			o.check(t, 0, nil)
			sink.set(-1, nil)
			synctest.Wait()
			if sink.text() != "one two" || c.Stats().Waiting != 0 {
				t.Errorf("got %q, %+v", sink.text(), c.Stats())
			}
			o.check(t, 1, nil)
		})
	})
	t.Run("queued before", func(t *testing.T) {
		lockstep(t, Config{}, client, nil, func(c *Conn, w *wire) {
			s, _ := c.Open(w.t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
			w.headers(1, false, ":status", "200")
			_ = w.fr.WriteData(1, false, []byte("early"))
			_ = w.fr.WriteRSTStream(1, http2.ErrCodeInternal)
			synctest.Wait()
			sink, o := newSink(w.t, -1), &outcome{}
			s.Deliver(sink, o.done)
			synctest.Wait()
			if sink.text() != "early" {
				t.Errorf("got %q", sink.text())
			}
			if o.times != 1 || o.err == nil {
				t.Errorf("done %d times with %v", o.times, o.err)
			}
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, errDelivered) {
				t.Errorf("read: %v", err)
			}
			again := &outcome{}
			s.Deliver(sink, again.done)
			synctest.Wait()
			again.check(t, 1, errDelivered)
		})
	})
}

// TestDeliverEnds: every way in which a delivery can end calls done once.
func TestDeliverEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		room int
		do   func(c *Conn, w *wire, s *Stream, sink *testSink)
		want error
		got  string
	}{
		"sink fails at once": {-1, func(_ *Conn, w *wire, _ *Stream, sink *testSink) {
			sink.set(-1, errSink)
			_ = w.fr.WriteData(1, false, []byte("lost"))
		}, errSink, ""},
		"sink fails while it waits": {1, func(_ *Conn, w *wire, _ *Stream, sink *testSink) {
			_ = w.fr.WriteData(1, false, []byte("ab"))
			synctest.Wait()
			sink.set(-1, errSink)
			synctest.Wait()
			_ = w.fr.WriteData(1, false, []byte("more"))
		}, errSink, "a"},
		"owner closes": {-1, func(_ *Conn, _ *wire, s *Stream, _ *testSink) { _ = s.Close() }, net.ErrClosed, ""},
		"owner closes while the sink waits": {1, func(_ *Conn, w *wire, s *Stream, sink *testSink) {
			_ = w.fr.WriteData(1, false, []byte("ab"))
			synctest.Wait()
			_ = s.Close()
			synctest.Wait()
			sink.set(-1, errSink) // as closing a socket does
		}, errSink, "a"},
		"reset behind data that waits": {1, func(_ *Conn, w *wire, _ *Stream, sink *testSink) {
			_ = w.fr.WriteData(1, false, []byte("ab"))
			_ = w.fr.WriteRSTStream(1, http2.ErrCodeCancel)
			synctest.Wait()
			sink.set(-1, nil)
		}, io.EOF, "ab"},
		"connection ends behind data that waits": {1, func(c *Conn, w *wire, _ *Stream, sink *testSink) {
			_ = w.fr.WriteData(1, false, []byte("ab"))
			synctest.Wait()
			_ = c.Close()
			synctest.Wait()
			sink.set(-1, nil)
		}, ErrClosed, "ab"},
		"peer goes": {-1, func(_ *Conn, w *wire, _ *Stream, _ *testSink) { _ = w.nc.Close() }, io.ErrUnexpectedEOF, ""},
	} {
		t.Run(name, func(t *testing.T) {
			sink := newSink(t, tc.room)
			delivered(t, sink, func(c *Conn, w *wire, s *Stream, o *outcome) {
				synctest.Wait()
				tc.do(c, w, s, sink)
				synctest.Wait()
				o.check(t, 1, tc.want)
				if sink.text() != tc.got {
					t.Errorf("got %q, want %q", sink.text(), tc.got)
				}
				if n := c.Stats().Waiting; n != 0 {
					t.Errorf("%d bytes wait", n)
				}
			})
		})
	}
}

// TestDeliverCallsBackWithoutLock: sink and done may use the stream.
func TestDeliverCallsBackWithoutLock(t *testing.T) {
	lockstep(t, Config{}, client, nil, func(c *Conn, w *wire) {
		s, _ := c.Open(w.t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
		w.headers(1, false, ":status", "200")
		done := make(chan error, 1)
		s.Deliver(selfish{s}, func(err error) {
			_, _ = s.Aborted(), s.Close()
			done <- err
		})
		_ = w.fr.WriteData(1, false, []byte("x"))
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("done with %v", err)
		}
	})
}

type selfish struct{ s *Stream }

func (f selfish) TryWrite(p []byte) (int, error) { _ = f.s.Close(); return len(p), nil }
func (f selfish) Write(p []byte) (int, error)    { return len(p), nil }

// TestLateDelivery: a stream is used while, and after, its connection ends and
// somebody waits for that.
func TestLateDelivery(t *testing.T) {
	for range 50 {
		a, b := net.Pipe()
		c := NewClient(a, Config{PingInterval: -1})
		go func() { _, _ = io.Copy(io.Discard, b) }()
		fr := http2.NewFramer(b, nil)
		_ = fr.WriteSettings()
		all := []*Stream{open(t, c), open(t, c), open(t, c)}
		_, _ = b.Write(tunnelTraffic()[9:800])
		waited := make(chan struct{})
		go func() { c.Wait(); close(waited) }()
		_ = b.Close()
		ends := make(chan error, len(all))
		for i, s := range all {
			if i == 1 {
				<-waited
			}
			s.Deliver(newSink(t, -1), func(err error) { ends <- err })
		}
		for range all {
			if err := <-ends; err == nil {
				t.Error("done without an error on a connection that broke")
			}
		}
	}
}

// TestLateAnswers: a client that gives up many streams at once is not hurt by
// their answers.
func TestLateAnswers(t *testing.T) {
	lockstep(t, Config{MaxStreams: 200}, client, nil, func(c *Conn, w *wire) {
		_ = w.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 200})
		synctest.Wait()
		for range 200 {
			s, err := c.Open(w.t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
		}
		for id := uint32(1); id < 400; id += 2 {
			w.headers(id, false, ":status", "200")
		}
		synctest.Wait()
		if c.Err() != nil {
			t.Errorf("ended by %v", c.Err())
		}
	})
}
