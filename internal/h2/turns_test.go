package h2

import (
	"bytes"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
)

// gated is a connection whose writes wait for the test.
type gated struct {
	*sealing
	gate chan struct{}
}

func (g *gated) WriteOwned(bufs [][]byte) error {
	<-g.gate
	return g.sealing.WriteOwned(bufs)
}

// TestTurns: streams with much to send share each write in equal parts, and
// what is small goes with the next one, whoever waits.
func TestTurns(t *testing.T) {
	slabPeer(t, []http2.Setting{{ID: http2.SettingMaxFrameSize, Val: 1 << 20}, {ID: http2.SettingInitialWindowSize, Val: 1 << 24}},
		func(c *Conn, nc *sealing, fr *http2.Framer, k *collector) {
			_ = fr.WriteWindowUpdate(0, 1<<24)
			var all []*Stream
			for range 6 {
				all = append(all, open(t, c))
			}
			synctest.Wait()
			nc.take()
			g := &gated{sealing: nc, gate: make(chan struct{})}
			c.mu.Lock()
			c.out.owned = g
			c.mu.Unlock()

			var writers sync.WaitGroup
			want := make(map[uint32][]byte)
			for i, s := range all[:5] {
				text := bytes.Repeat([]byte{byte('a' + i)}, 250_000)
				want[s.id] = text
				writers.Go(func() {
					if n, err := s.WriteSlab(slabOf(text)); n != len(text) || err != nil {
						t.Errorf("sent %d, %v", n, err)
					}
				})
				synctest.Wait() // in this order
			}
			g.gate <- struct{}{} // the first has the connection for itself
			synctest.Wait()
			if n, err := all[5].Write([]byte("small")); n != 5 || err != nil {
				t.Fatalf("small write: %d, %v", n, err)
			}
			want[all[5].id] = []byte("small")
			close(g.gate)
			writers.Wait()
			synctest.Wait()
			for id, text := range want {
				if !bytes.Equal(k.got[id], text) {
					t.Errorf("stream %d: %d other bytes", id, len(k.got[id]))
				}
			}
			at := -1
			for i, id := range k.order {
				if id == all[5].id {
					at = i
				}
			}
			// One write of the first, one of the four others under way, then ours.
			if k.sizes[0] != 250_000 || at != 5 {
				t.Errorf("order %v, sizes %v", k.order, k.sizes)
			}
			for i, id := range k.order[1:5] {
				if id != all[i+1].id || k.sizes[i+1] != sharedTurn {
					t.Errorf("order %v, sizes %v", k.order, k.sizes)
				}
			}
		})
}

// baton passes what is written on one side to a Feed on the other, as the
// record layer does, without a copy.
type baton struct {
	net.Conn
	out    chan []byte
	in     chan []byte
	taken  chan struct{} // for in
	passed chan struct{} // for out
	closed chan struct{}
}

func batons() (a, b *baton) {
	x, y := make(chan []byte), make(chan []byte)
	xd, yd := make(chan struct{}), make(chan struct{})
	closed := make(chan struct{})
	return &baton{out: x, in: y, taken: yd, passed: xd, closed: closed}, &baton{out: y, in: x, taken: xd, passed: yd, closed: closed}
}

func (b *baton) Write(p []byte) (int, error) {
	select {
	case b.out <- p:
		<-b.passed
		return len(p), nil
	case <-b.closed:
		return 0, net.ErrClosed
	}
}

func (b *baton) WriteOwned(bufs [][]byte) error {
	for _, p := range bufs {
		if _, err := b.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func (b *baton) Feed(on func(p []byte) (int, error)) error {
	for {
		select {
		case p := <-b.in:
			_, err := on(p)
			b.taken <- struct{}{}
			if err != nil {
				return err
			}
		case <-b.closed:
			return nil
		}
	}
}

// TestRelayingAllocatesNothing: 1,000 DATA frames from WriteSlab to Deliver,
// with all the WINDOW_UPDATEs that they need.
func TestRelayingAllocatesNothing(t *testing.T) {
	for _, size := range []int{100, 16 << 10, 200 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			a, b := batons()
			a.Conn, b.Conn = silent{}, silent{}
			var got counting
			cl := NewClient(a, Config{PingInterval: -1})
			srv := NewServer(b, Config{PingInterval: -1}, func(s *Stream, _ []Field) {
				_ = s.Respond([]Field{{":status", "200"}}, false)
				s.Deliver(&got, func(error) {})
			})
			s := tunnelTo(t, cl, "a:1")
			slab := slabOf(make([]byte, size))
			var sent atomic.Int64
			run := func() {
				for range 1000 {
					n, err := s.WriteSlab(slab)
					if sent.Add(int64(n)); err != nil {
						t.Fatal(err)
					}
				}
				for got.n.Load() < sent.Load() {
					runtime.Gosched()
				}
			}
			run()
			before := srv.Stats()
			defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection empties the pools
			if n := testing.AllocsPerRun(5, run); n != 0 && !raceDetector {
				t.Errorf("%v allocations for 1,000 frames", n)
			}
			after := srv.Stats()
			t.Logf("per frame: %.3f feeds here, %.3f writes back", float64(after.Feeds-before.Feeds)/6000, float64(after.Writes-before.Writes)/6000)
			if n := after.Queued - before.Queued; n != 0 {
				t.Errorf("%d bytes were queued", n)
			}
			close(a.closed)
			cl.Wait()
			srv.Wait()
		})
	}
}
