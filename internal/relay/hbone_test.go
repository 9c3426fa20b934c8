package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
	"github.com/marrowmesh/marrow/internal/hbone"
)

// sockets is a loopback connection.
func sockets(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// proxies are two relays with a tunnel between them, without TLS.
type proxies struct {
	client  *hbone.Client
	targets chan *net.TCPConn // what the far relay connects to, one per tunnel
	results chan Result
}

func newProxies(t testing.TB) *proxies {
	t.Helper()
	near, far := sockets(t)
	p := &proxies{targets: make(chan *net.TCPConn, 1), results: make(chan Result, 2)}
	cfg := hbone.Config{PingInterval: -1}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = hbone.NewServer(cfg).Serve(context.Background(), far, func(_ context.Context, in *hbone.Incoming) {
			s, err := in.Accept(nil)
			if err != nil {
				return
			}
			// As inbound does: the stream itself says that it was cut.
			p.results <- Both(context.Background(), s, <-p.targets, nil)
		})
	}()
	var err error
	if p.client, err = hbone.NewClient(near, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.client.Close()
		p.client.Wait()
		<-served
	})
	return p
}

// connect is an application and a server with both relays between them.
func (p *proxies) connect(t testing.TB) (app, srv *net.TCPConn) {
	t.Helper()
	app, captured := sockets(t)
	target, srv := sockets(t)
	p.targets <- target
	s, _, err := p.client.Connect(t.Context(), "srv:80", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { p.results <- Both(context.Background(), captured, s, nil) }()
	return app, srv
}

// TestThroughTunnel moves bytes both ways at once through the real thing.
func TestThroughTunnel(t *testing.T) {
	before := burst.Out()
	p := newProxies(t)
	app, srv := p.connect(t)
	there, back := make([]byte, 20<<20), make([]byte, 30<<20)
	_, _ = rand.Read(there)
	_, _ = rand.Read(back)
	go func() { _, _ = app.Write(there); _ = app.CloseWrite() }()
	go func() { _, _ = srv.Write(back); _ = srv.CloseWrite() }()
	got := make(chan []byte, 1)
	go func() { all, _ := io.ReadAll(srv); got <- all }()
	all, err := io.ReadAll(app)
	if err != nil || !bytes.Equal(all, back) {
		t.Errorf("back: %d of %d bytes, %v", len(all), len(back), err)
	}
	if all := <-got; !bytes.Equal(all, there) {
		t.Errorf("there: %d of %d bytes", len(all), len(there))
	}
	for range 2 {
		if r := <-p.results; r.Err != nil || r.Sent != int64(len(there)) || r.Received != int64(len(back)) {
			t.Errorf("%+v", r)
		}
	}
	// The connection's own readers hold what they need until they have looked once more.
	for end := time.Now().Add(5 * time.Second); burst.Out() > before && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if n := burst.Out(); n > before {
		t.Errorf("%d buffers are out", n-before)
	}
}

// TestEndsThroughTunnel: R12, an end looks the same with two relays and a tunnel in between.
func TestEndsThroughTunnel(t *testing.T) {
	ending := func(c *net.TCPConn) string {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := io.Copy(io.Discard, c)
		switch {
		case err == nil:
			return fmt.Sprintf("fin after %d", n)
		case errors.Is(err, syscall.ECONNRESET):
			return fmt.Sprintf("reset after %d", n)
		}
		return err.Error()
	}
	p := newProxies(t)
	for name, end := range map[string]func(c *net.TCPConn){
		"close":      func(c *net.TCPConn) { _ = c.Close() },
		"half close": func(c *net.TCPConn) { _ = c.CloseWrite() },
		"reset":      func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
	} {
		for _, size := range []int{0, 100, 2 << 20} {
			for _, swap := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s after %d bytes, by server %v", name, size, swap), func(t *testing.T) {
					run := func(ender, other *net.TCPConn) string {
						go func() { _, _ = ender.Write(make([]byte, size)) }()
						_, _ = io.ReadFull(other, make([]byte, size))
						_, _ = other.Write([]byte("seen"))
						_, _ = io.ReadFull(ender, make([]byte, 4))
						end(ender)
						return ending(other)
					}
					want := run(sockets(t))
					app, srv := p.connect(t)
					if swap {
						app, srv = srv, app
					}
					if got := run(app, srv); got != want {
						t.Errorf("%s, without relays %s", got, want)
					}
					_, _ = app.Close(), srv.Close()
					for range 2 {
						if r := <-p.results; r.Err != nil {
							t.Errorf("%+v", r)
						}
					}
				})
			}
		}
	}
}

// TestNoAllocationsThroughTunnel: relays, streams and frames together.
func TestNoAllocationsThroughTunnel(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector empties pools at random")
	}
	for _, size := range []int{100, 1 << 10, 16 << 10, 256 << 10} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			p := newProxies(t)
			app, srv := p.connect(t)
			go func() {
				buf := make([]byte, size)
				for {
					if _, err := io.ReadFull(srv, buf); err != nil {
						_ = srv.Close()
						return
					}
					_, _ = srv.Write(buf)
				}
			}()
			msg := make([]byte, size)
			one := func() {
				_, _ = app.Write(msg)
				_, _ = io.ReadFull(app, msg)
			}
			for range 100 {
				one()
			}
			// 500 there and 500 back. A drainer is a goroutine that starts when a socket is full.
			if n := testing.AllocsPerRun(500, one) * 500; n > 60 {
				t.Errorf("%v allocations for 1000 messages of %d bytes", n, size)
			}
			_ = app.Close()
			<-p.results
			<-p.results
		})
	}
}
