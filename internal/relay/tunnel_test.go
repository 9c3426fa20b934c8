package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
)

// stream behaves as a tunnel's stream does: it frames in the writer's slab and is read by a goroutine that is not the relay's.
// The other end of its wire is a socket.
type stream struct {
	wire *net.TCPConn
	// broken is what a reset of the wire means: io.EOF for one without an error.
	broken error

	mu      sync.Mutex
	aborted bool
	closed  bool
	reader  sync.WaitGroup
	done    func(error) // of a parked one
}

func (s *stream) WriteSlab(b []byte) (int, error) {
	n, err := s.wire.Write(b[headroom:])
	for i := range b[:headroom] {
		b[i] = 0xff
	}
	clear(b)
	b = b[:len(b)+1] // one byte behind the end
	b[len(b)-1] = 0xff
	return n, s.cause(err)
}

func (s *stream) cause(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case s.closed:
		return net.ErrClosed
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		s.aborted = true
		if s.broken != io.EOF { //nolint:errorlint // the test's own
			return s.broken
		}
	}
	return err
}

func (s *stream) Deliver(sink Sink, done func(error)) {
	s.reader.Go(func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := s.wire.Read(buf)
			took, serr := sink.TryWrite(buf[:n])
			if serr == nil && took < n {
				_, serr = sink.Write(buf[took:n])
			}
			switch {
			case serr != nil:
				done(fmt.Errorf("sink: %w", serr))
				return
			case err == io.EOF: //nolint:errorlint // from a socket
				done(nil)
				return
			case err != nil:
				if err = s.cause(err); errors.Is(err, syscall.ECONNRESET) {
					err = s.broken
				}
				done(err)
				return
			}
		}
	})
}

func (s *stream) Read([]byte) (int, error)  { panic("the relay reads by Deliver") }
func (s *stream) Write([]byte) (int, error) { panic("the relay writes by WriteSlab") }
func (s *stream) CloseWrite() error         { return s.cause(s.wire.CloseWrite()) }

func (s *stream) Aborted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aborted
}

func (s *stream) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first {
		_ = s.wire.SetLinger(0)
		_ = s.wire.Close()
	}
	return nil
}

// tunnelled is a client, and the far end of a stream, with a relay between them.
func tunnelled(t testing.TB, ctx context.Context, swap bool) (client, far *net.TCPConn, st *stream, result chan Result, seen *[2]atomic.Int64) {
	t.Helper()
	client, app := pair(t)
	wire, far := pair(t)
	st = &stream{wire: wire, broken: io.EOF}
	result, seen = make(chan Result, 1), new([2]atomic.Int64)
	go func() {
		var down, up Duplex = app, st
		if swap {
			down, up = up, down
		}
		result <- Both(ctx, down, up, func(s, r int64) { seen[0].Add(s); seen[1].Add(r) })
	}()
	t.Cleanup(func() { _, _ = client.Close(), far.Close(); st.reader.Wait() })
	return client, far, st, result, seen
}

func TestTunnelCarriesAll(t *testing.T) {
	for _, swap := range []bool{false, true} {
		t.Run(fmt.Sprintf("stream is down %v", swap), func(t *testing.T) {
			before := burst.Out()
			client, far, _, result, seen := tunnelled(t, t.Context(), swap)
			there, back := make([]byte, 3<<20), make([]byte, 5<<20)
			_, _ = rand.Read(there)
			_, _ = rand.Read(back)
			go func() { _, _ = client.Write(there); _ = client.CloseWrite() }()
			go func() { _, _ = far.Write(back) }()
			got, err := io.ReadAll(far) // ends although the other direction is open
			if err != nil || !bytes.Equal(got, there) {
				t.Fatalf("there: %d of %d bytes, %v", len(got), len(there), err)
			}
			got = make([]byte, len(back))
			if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, back) {
				t.Fatalf("back: %v, equal %v", err, bytes.Equal(got, back))
			}
			_ = far.CloseWrite()
			if n, how := ending(client); n != 0 || how != "fin" {
				t.Errorf("%d more bytes, %s", n, how)
			}
			r := <-result
			sent, received := r.Sent, r.Received
			if swap {
				sent, received = received, sent
			}
			if r.Err != nil || sent != int64(len(there)) || received != int64(len(back)) || seen[0].Load() != r.Sent || seen[1].Load() != r.Received {
				t.Errorf("%+v, increments %d and %d", r, seen[0].Load(), seen[1].Load())
			}
			if n := burst.Out(); n != before {
				t.Errorf("%d buffers are out", n-before)
			}
		})
	}
}

// TestTunnelEnds: what an end of one side is for the other, and for the result.
func TestTunnelEnds(t *testing.T) {
	bad := errors.New("stream error")
	rst := func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() }
	for _, tc := range []struct {
		name   string
		broken error
		act    func(client, far *net.TCPConn)
		client string // how the end looks there, if the client is not the one who ends
		far    string
		err    error
	}{
		{"socket is reset", io.EOF, func(c, _ *net.TCPConn) { rst(c) }, "", "reset", nil},
		{"stream is cut without an error", io.EOF, func(_, f *net.TCPConn) { rst(f) }, "reset", "", nil},
		{"stream is cut with an error", bad, func(_, f *net.TCPConn) { rst(f) }, "reset", "", bad},
		{"both end", io.EOF, func(c, f *net.TCPConn) { _, _ = c.CloseWrite(), f.CloseWrite() }, "fin", "fin", nil},
	} {
		for _, swap := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, stream is down %v", tc.name, swap), func(t *testing.T) {
				client, far, st, result, _ := tunnelled(t, t.Context(), swap)
				st.broken = tc.broken
				_, _ = client.Write([]byte("x"))
				_, _ = io.ReadFull(far, make([]byte, 1))
				_, _ = far.Write([]byte("y"))
				_, _ = io.ReadFull(client, make([]byte, 1))
				tc.act(client, far)
				if tc.client != "" {
					if _, how := ending(client); how != tc.client {
						t.Errorf("client sees %s, want %s", how, tc.client)
					}
				}
				if tc.far != "" {
					if _, how := ending(far); how != tc.far {
						t.Errorf("far end sees %s, want %s", how, tc.far)
					}
				}
				r := <-result
				at := r.Up
				if swap {
					at = r.Down
				}
				if !errors.Is(r.Err, tc.err) || tc.err == nil && r.Err != nil || !errors.Is(at, tc.err) {
					t.Errorf("%+v, want %v at the stream", r, tc.err)
				}
			})
		}
	}
}

// TestTunnelIsCut: the end of the context ends a relay whose writers wait for readers on both sides.
func TestTunnelIsCut(t *testing.T) {
	for _, swap := range []bool{false, true} {
		before := burst.Out()
		ctx, cancel := context.WithCancel(t.Context())
		client, far, st, result, _ := tunnelled(t, ctx, swap)
		for _, c := range []*net.TCPConn{client, far} {
			_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := c.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
		cancel()
		if r := <-result; !errors.Is(r.Err, context.Canceled) {
			t.Errorf("%+v", r)
		}
		st.reader.Wait()
		if n := burst.Out(); n != before {
			t.Errorf("%d buffers are out", n-before)
		}
	}
}

// TestNoAllocations: on each path, and for small messages as for bulk.
func TestNoAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector empties pools at random")
	}
	for name, ends := range map[string]func() (a, b *net.TCPConn){
		"sockets": func() (a, b *net.TCPConn) { a, b, _, _ = relayed(t, t.Context()); return a, b },
		"tunnel":  func() (a, b *net.TCPConn) { a, b, _, _, _ = tunnelled(t, t.Context(), false); return a, b },
	} {
		for _, size := range []int{100, 1 << 10, 16 << 10, 256 << 10} {
			t.Run(fmt.Sprintf("%s, %d bytes", name, size), func(t *testing.T) {
				a, b := ends()
				msg, got := make([]byte, size), make([]byte, size)
				echoed := make(chan struct{})
				go func() {
					defer close(echoed)
					buf := make([]byte, size)
					for {
						if _, err := io.ReadFull(b, buf); err != nil {
							return
						}
						_, _ = b.Write(buf)
					}
				}()
				one := func() {
					_, _ = a.Write(msg)
					_, _ = io.ReadFull(a, got)
				}
				for range 100 {
					one()
				}
				// Pools are emptied by collections only; one may fall into the measurement.
				if n := testing.AllocsPerRun(500, one) * 500; n > 20 {
					t.Errorf("%v allocations for 1000 messages of %d bytes", n, size)
				}
				_ = a.Close()
				<-echoed
				_ = b.Close()
			})
		}
	}
}

// TestIdleCosts: a tunnelled connection that waits has one goroutine and little memory.
func TestIdleCosts(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes frames larger")
	}
	const n = 500
	type idle struct {
		app, client *net.TCPConn
		st          *stream
	}
	all := make([]idle, n)
	for i := range all {
		client, app := pair(t)
		all[i] = idle{app, client, &stream{}}
	}
	before := measured()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for i := range all {
		wg.Go(func() { Both(ctx, all[i].app, parked{all[i].st}, func(int64, int64) {}) })
	}
	until(t, "not all have begun", func() bool { return runtime.NumGoroutine() >= before.goroutines+n })
	for i := range all {
		_, _ = all[i].client.Write([]byte("x"))
	}
	time.Sleep(50 * time.Millisecond)
	after := measured()
	goroutines := float64(after.goroutines-before.goroutines) / n
	heap, stack := (after.heap-before.heap)/n, (after.stack-before.stack)/n
	t.Logf("%.2f goroutines, %d bytes of heap, %d of stack per idle tunnelled connection", goroutines, heap, stack)
	if goroutines > 1.01 || heap > 1500 || stack > 4200 {
		t.Errorf("%.2f goroutines, %d bytes of heap, %d of stack per idle relay", goroutines, heap, stack)
	}
	cancel()
	wg.Wait()
	for i := range all {
		_ = all[i].client.Close()
	}
}

// parked is a stream whose peer is silent.
type parked struct{ st *stream }

func (p parked) Read([]byte) (int, error)         { panic("the relay reads by Deliver") }
func (p parked) Write([]byte) (int, error)        { panic("the relay writes by WriteSlab") }
func (p parked) WriteSlab(b []byte) (int, error)  { return len(b) - headroom, nil }
func (p parked) CloseWrite() error                { return nil }
func (p parked) Deliver(_ Sink, done func(error)) { p.st.mu.Lock(); p.st.done = done; p.st.mu.Unlock() }

func (p parked) Close() error {
	p.st.mu.Lock()
	done := p.st.done
	p.st.done = nil
	p.st.mu.Unlock()
	if done != nil {
		done(net.ErrClosed)
	}
	return nil
}

type memory struct {
	goroutines  int
	heap, stack int64
}

func measured() memory {
	// Twice: a collection also halves stacks that are mostly unused.
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return memory{runtime.NumGoroutine(), int64(m.HeapAlloc), int64(m.StackInuse)}
}
