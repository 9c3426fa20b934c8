package h2

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// handOver exports c and goes on with it on the same connection.
func handOver(t *testing.T, c *Conn, cfg Config, h Handler) (*Conn, []*Stream) {
	t.Helper()
	st, err := c.Export()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	var back State
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	if !errors.Is(c.Err(), ErrExported) {
		t.Errorf("the exported connection ended by %v", c.Err())
	}
	n, streams, err := Restore(c.nc, back, cfg, h)
	if err != nil {
		t.Fatal(err)
	}
	return n, streams
}

// TestHandOverLosesNothing: while both sides send on many streams each end is
// handed over again and again, and every byte arrives once.
func TestHandOverLosesNothing(t *testing.T) {
	a, b := sockets(t)
	cfg := Config{PingInterval: -1}
	const size = 3 << 20
	text := noise(size)
	handler := func(s *Stream, _ []Field) {
		_ = s.Respond([]Field{{":status", "200"}, {"baggage", "x=y"}}, false)
	}
	cl, srv := NewClient(a, cfg), NewServer(b, cfg, handler)
	var ids []uint32
	for range 5 {
		ids = append(ids, tunnelTo(t, cl, "a:1").ID())
	}
	sent, got := make(map[uint32]int), make(map[uint32][]byte)
	for round := 0; len(got[ids[4]]) < size; round++ {
		if round > 500 {
			t.Fatalf("after %d rounds %d bytes of %d", round, len(got[ids[4]]), size)
		}
		var work sync.WaitGroup
		var mu sync.Mutex
		each := func(c *Conn, do func(s *Stream)) {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, id := range ids {
				if s := c.set.open[id]; s != nil {
					work.Go(func() { do(s) })
				}
			}
		}
		each(cl, func(s *Stream) {
			mu.Lock()
			from := sent[s.id]
			mu.Unlock()
			_ = s.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
			n, _ := s.WriteSlab(slabOf(text[from:min(size, from+400_000)]))
			mu.Lock()
			sent[s.id] = from + n
			mu.Unlock()
		})
		each(srv, func(s *Stream) {
			p := make([]byte, 300_000)
			_ = s.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			n, _ := s.Read(p)
			mu.Lock()
			got[s.id] = append(got[s.id], p[:n]...)
			mu.Unlock()
		})
		time.Sleep(time.Duration(round%4) * time.Millisecond)
		if round%2 == 0 {
			cl, _ = handOver(t, cl, cfg, nil)
		} else {
			srv, _ = handOver(t, srv, cfg, handler)
		}
		work.Wait()
	}
	for _, id := range ids {
		if !bytes.Equal(got[id], text[:len(got[id])]) {
			t.Errorf("stream %d: other bytes", id)
		}
	}
	// New streams, with headers that were in the tables before.
	s := tunnelTo(t, cl, "a:1")
	if s.header.fields[1] != (Field{"baggage", "x=y"}) {
		t.Errorf("fields %v", s.header.fields)
	}
	_ = cl.Close()
	cl.Wait()
	srv.Wait()
}

// TestHandOverWithinAFrame: the cut may be anywhere, also in a header and in
// the middle of DATA that waits for its owner.
func TestHandOverWithinAFrame(t *testing.T) {
	input := tunnelTraffic()[9:] // without its SETTINGS
	want := make(map[uint32]string)
	for cut := 1; cut < len(input); cut += 97 {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		c := NewClient(a, Config{PingInterval: -1})
		fr := http2.NewFramer(b, nil)
		_ = fr.WriteSettings()
		_ = fr.WriteSettingsAck()
		for range 4 {
			_, _ = c.Open(t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
		}
		_, _ = b.Write(input[:cut])
		st, err := exportAcked(c)
		if err != nil {
			t.Fatal(err)
		}
		c.Wait()
		n, streams, err := Restore(a, st, Config{PingInterval: -1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = b.Write(input[cut:])
		for _, s := range streams {
			if s.ID() == 7 {
				continue // does not end
			}
			got, err := io.ReadAll(s)
			if want[s.ID()] == "" {
				want[s.ID()] = string(got)
			}
			if err != nil || string(got) != want[s.ID()] || len(got) < 100 {
				t.Errorf("cut at %d: stream %d: %d other bytes, %v", cut, s.ID(), len(got), err)
			}
		}
		_ = n.Close()
		_ = b.Close()
		n.Wait()
	}
}

// exportAcked is Export for a peer that has agreed already.
func exportAcked(c *Conn) (State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.stopReading(); err != nil {
		return State{}, err
	}
	if err := c.still(); err != nil {
		return State{}, err
	}
	st := c.snapshot()
	c.end(&ConnError{Code: NoError, Err: ErrExported})
	return st, nil
}

// TestExportRefused: a peer that does not answer and a sink that waits refuse,
// and the connection goes on.
func TestExportRefused(t *testing.T) {
	t.Run("deaf peer", func(t *testing.T) {
		lockstep(t, Config{PingInterval: -1}, client, nil, func(c *Conn, w *wire) {
			s, _ := c.Open(w.t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
			if _, err := c.Export(); !errors.Is(err, ErrBusy) {
				t.Errorf("exported: %v", err)
			}
			w.headers(1, false, ":status", "200")
			_ = w.fr.WriteData(1, true, []byte("on"))
			if got, err := io.ReadAll(s); string(got) != "on" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
		})
	})
	t.Run("sink in use", func(t *testing.T) {
		sink := newSink(t, 1)
		delivered(t, sink, func(c *Conn, w *wire, _ *Stream, o *outcome) {
			_ = w.fr.WriteData(1, false, []byte("ab"))
			synctest.Wait()
			acked := make(chan struct{})
			go func() {
				defer close(acked)
				synctest.Wait()
				_ = w.fr.WriteSettingsAck()
				_ = w.fr.WriteSettingsAck()
			}()
			if _, err := c.Export(); !errors.Is(err, ErrBusy) {
				t.Errorf("exported: %v", err)
			}
			<-acked
			sink.set(-1, nil)
			_ = w.fr.WriteData(1, true, []byte("c"))
			synctest.Wait()
			if sink.text() != "abc" {
				t.Errorf("got %q", sink.text())
			}
			o.check(t, 1, nil)
		})
	})
	t.Run("contradiction", func(t *testing.T) {
		for _, st := range []State{{}, {MaxFrame: 1 << 14, Left: -1}, {MaxFrame: 1 << 14, Streams: []StreamState{{ID: 2}}}, {MaxFrame: 1 << 14, Streams: []StreamState{{ID: 3, Size: 1, Left: 2}}}} {
			if _, _, err := Restore(silent{}, st, Config{}, nil); err == nil {
				t.Errorf("restored %+v", st)
			}
		}
	})
}
