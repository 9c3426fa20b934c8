package h2

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/marrowmesh/marrow/internal/burst"
)

// attacks are what a peer may try; each must end its connection with
// ENHANCE_YOUR_CALM, or cost nothing that grows.
func attacks() map[string]func(w *wire, i int) error {
	return map[string]func(w *wire, i int) error{
		"settings toggling windows": func(w *wire, i int) error {
			if i < 100 {
				w.connect(uint32(2*i + 1))
				return nil
			}
			all := make([]http2.Setting, 60)
			for k := range all {
				all[k] = http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(k%2) << 30}
			}
			return w.fr.WriteSettings(all...)
		},
		"made you reset by window overflow": func(w *wire, i int) error {
			id := uint32(2*i + 1)
			w.connect(id)
			return w.fr.WriteWindowUpdate(id, 1<<31-1)
		},
		"made you reset by a zero update": func(w *wire, i int) error {
			id := uint32(2*i + 1)
			w.connect(id)
			return w.fr.WriteWindowUpdate(id, 0)
		},
		"made you reset by data after the end": func(w *wire, i int) error {
			id := uint32(2*i + 1)
			w.headers(id, true, ":method", "CONNECT", ":authority", "a:1")
			return w.fr.WriteData(id, false, []byte("x"))
		},
		"made you reset by half a header": func(w *wire, i int) error {
			id := uint32(2*i + 1)
			w.connect(id)
			w.headers(id, false, ":method", "CONNECT", ":authority", "a:1")
			return nil
		},
		"headers that are refused": func(w *wire, i int) error {
			w.headers(uint32(2*i+1), false, ":method", "CONNECT")
			return nil
		},
		"byte-sized windows": func(w *wire, i int) error {
			switch i {
			case 0:
				_ = w.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				w.headers(1, false, ":method", "CONNECT", ":authority", "talk:1")
				return nil
			case 1:
				synctest.Wait()
			}
			return w.fr.WriteWindowUpdate(1, 1)
		},
	}
}

// TestHostilePeers: what costs us more than the peer ends its connection.
func TestHostilePeers(t *testing.T) {
	for name, do := range attacks() {
		t.Run(name, func(t *testing.T) {
			var hold chan struct{}
			handler := func(s *Stream, fields []Field) {
				if fields[len(fields)-1].Value == "talk:1" {
					_ = s.Respond([]Field{{":status", "200"}}, false)
					_, _ = s.Write(make([]byte, 1<<20))
					return
				}
				<-hold
				_ = s.Close()
			}
			lockstep(t, Config{PingInterval: -1}, server, handler, func(c *Conn, w *wire) {
				hold = make(chan struct{})
				w.sent()
				stop := make(chan struct{})
				go func() {
					defer close(stop)
					for i := range 100_000 {
						if do(w, i) != nil {
							return
						}
					}
				}()
				<-c.Done()
				var ce *ConnError
				if !errors.As(c.Err(), &ce) || ce.Code != EnhanceYourCalm {
					t.Errorf("ended by %v, want ENHANCE_YOUR_CALM", c.Err())
				}
				_ = w.nc.Close()
				<-stop
				close(hold)
			})
		})
	}
}

// TestHeaderFloodIsBounded: a header block that does not end is given up
// before it fills the memory, in bytes and in frames.
func TestHeaderFloodIsBounded(t *testing.T) {
	for name, frag := range map[string]int{"large": 16000, "small": 1, "empty": 0} {
		t.Run(name, func(t *testing.T) {
			c := still(server)
			c.in.phase = atFrames
			var in bytes.Buffer
			fr := http2.NewFramer(&in, nil)
			_ = fr.WriteRawFrame(http2.FrameHeaders, 0, 1, make([]byte, frag))
			_, err := c.feed(in.Bytes())
			n := in.Len()
			in.Reset()
			_ = fr.WriteRawFrame(http2.FrameContinuation, 0, 1, make([]byte, frag))
			for err == nil && n < 1<<20 {
				n += in.Len()
				_, err = c.feed(in.Bytes())
			}
			var ce *ConnError
			if !errors.As(err, &ce) || ce.Code != EnhanceYourCalm {
				t.Errorf("after %d bytes: %v, want ENHANCE_YOUR_CALM", n, err)
			}
			if n > 2*maxControlFrame+maxTurn || cap(c.in.hold) > 4*maxControlFrame {
				t.Errorf("took %d bytes and holds %d", n, cap(c.in.hold))
			}
		})
	}
}

// TestAttackLeavesNeighboursAlone: while one connection is flooded, a stream
// of another and its memory go on as before.
func TestAttackLeavesNeighboursAlone(t *testing.T) {
	flood := func(kind int) []byte {
		var out bytes.Buffer
		fr := http2.NewFramer(&out, nil)
		for range 90 { // below what is forbidden, so that it goes on
			switch kind {
			case 0:
				_ = fr.WritePing(false, [8]byte{1})
			case 1:
				_ = fr.WriteWindowUpdate(0, 1)
			default:
				_ = fr.WriteWindowUpdate(99, 1)
			}
		}
		return out.Bytes()
	}
	var got counting
	moved := make(chan struct{})
	cl, _ := pair(t, Config{PingInterval: -1}, Config{PingInterval: -1}, func(s *Stream, _ []Field) {
		_ = s.Respond([]Field{{":status", "200"}}, false)
		s.Deliver(&got, func(error) { close(moved) })
	})
	stop := make(chan struct{})
	var attackers sync.WaitGroup
	for kind := range 3 {
		a, b := sockets(t)
		victim := NewServer(a, Config{PingInterval: -1}, okHandler)
		_, _ = io.WriteString(b, http2.ClientPreface)
		_ = http2.NewFramer(b, nil).WriteSettings()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		attackers.Go(func() {
			for p := flood(kind); ; {
				select {
				case <-stop:
					_ = b.Close()
					victim.Wait()
					return
				case <-time.After(time.Millisecond):
					_, _ = b.Write(p)
				}
			}
		})
	}
	s := tunnelTo(t, cl, "a:1")
	const size = 32 << 20
	b := make([]byte, Headroom+64<<10+1)
	start := time.Now()
	for sent := 0; sent < size; sent += 64 << 10 {
		if _, err := s.WriteSlab(b[:Headroom+64<<10]); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.CloseWrite()
	<-moved
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	close(stop)
	attackers.Wait()
}

// TestBlockedWritersHoldNothing: hundreds of writers whose peer gives no
// window cost their own slabs and nothing of ours.
func TestBlockedWritersHoldNothing(t *testing.T) {
	slabPeer(t, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, func(c *Conn, _ *sealing, fr *http2.Framer, _ *collector) {
		before := burst.Out()
		var writers sync.WaitGroup
		for i := range 90 {
			s := open(t, c)
			writers.Go(func() {
				if i%2 == 0 {
					_, _ = s.Write(make([]byte, 100_000))
				} else {
					_, _ = s.WriteSlab(slabOf(make([]byte, 100_000)))
				}
			})
		}
		synctest.Wait()
		if n := burst.Out() - before; n != 0 {
			t.Errorf("%d slabs are out", n)
		}
		if c.Stats().DataOut != 0 {
			t.Errorf("sent %d bytes", c.Stats().DataOut)
		}
		// Each SETTINGS lets all of them send one byte, and takes it back.
		for range 50 {
			_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
			_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := c.Stats().DataOut; n != 90 {
			t.Errorf("sent %d bytes, want one for each stream", n)
		}
		_ = c.Close()
		writers.Wait()
	})
}

// TestAbortedStreamsLeaveNothing: 10,000 streams that end in every bad way
// leave no goroutine, no slab and no byte counted.
func TestAbortedStreamsLeaveNothing(t *testing.T) {
	goroutines, slabs := runtime.NumGoroutine(), burst.Out()
	for range 25 { // connections: resets before an answer have a limit
		abortStreams(t, 400)
	}
	if n := burst.Out() - slabs; n != 0 {
		t.Errorf("%d slabs are out", n)
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > goroutines && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine() - goroutines; n > 0 {
		t.Errorf("%d goroutines left", n)
	}
}

func abortStreams(t *testing.T, count int) {
	t.Helper()
	broken := make(chan struct{})
	close(broken)
	var ends sync.WaitGroup
	a, b := sockets(t)
	cl := NewClient(a, Config{PingInterval: -1})
	srv := NewServer(b, Config{PingInterval: -1}, func(s *Stream, fields []Field) {
		switch fields[1].Value {
		case "refused:1":
			_ = s.CloseCode(RefusedStream)
			return
		case "silent:1":
			_, _ = s.Read(make([]byte, 1)) // until the client goes
			_ = s.Close()
			return
		}
		if s.Respond([]Field{{":status", "200"}}, false) != nil {
			_ = s.Close()
			return
		}
		ends.Add(1)
		s.Deliver(stuck{broken}, func(error) { _ = s.Close(); ends.Done() })
	})
	kinds := []string{"refused:1", "silent:1", "broken:1", "broken:1"}
	for i := range count {
		s, err := cl.Open(t.Context(), []Field{{":method", "CONNECT"}, {":authority", kinds[i%len(kinds)]}}, false)
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 2 {
			s.Deliver(&counting{}, func(error) {})
			_, _ = s.Write(make([]byte, 3000))
		}
		if i%4 == 3 {
			_, _ = s.Response(t.Context())
			_, _ = s.WriteSlab(slabOf(make([]byte, 30_000)))
		}
		if i < count-20 { // the last are cut by the connection's end
			_ = s.Close()
		}
	}
	if cl.Err() != nil {
		t.Fatal(cl.Err())
	}
	_ = cl.Close()
	cl.Wait()
	srv.Wait()
	ends.Wait()
	if n := srv.Stats().Waiting + cl.Stats().Waiting; n != 0 || srv.Streams()+cl.Streams() != 0 {
		t.Errorf("%d bytes wait; %d and %d streams", n, srv.Streams(), cl.Streams())
	}
}
