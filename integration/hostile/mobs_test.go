//go:build lab

package hostile_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/marrowmesh/marrow/integration/arena"
	"github.com/marrowmesh/marrow/internal/mtls"
)

// mob is many connections at once.
type mob struct {
	cert   *mtls.Certificate
	server string
	mu     sync.Mutex
	out    *Outcome
}

func (m *mob) count(end string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out.Ends[end]++
	m.out.Sent++
}

// dial opens n TCP connections; those that cannot be opened are counted.
func (m *mob) dial(ctx context.Context, n int) []net.Conn {
	var conns []net.Conn
	var d net.Dialer
	for range n {
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(m.server, "15008"))
		if err != nil {
			m.count("not connected")
			continue
		}
		conns = append(conns, c)
	}
	return conns
}

// fate says what became of each connection and closes it.
func (m *mob) fate(conns []net.Conn) {
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		switch _, err := c.Read(make([]byte, 4096)); {
		case errors.Is(err, os.ErrDeadlineExceeded), err == nil:
			m.count("open")
		default:
			m.count(closed)
		}
		_ = c.Close()
	}
}

// each runs f for every number below n, so many at a time.
func each(n, parallel int, f func(i int)) {
	var work sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i := range n {
		slots <- struct{}{}
		work.Go(func() {
			f(i)
			<-slots
		})
	}
	work.Wait()
}

const mobSize = 1000

// mobs attack with connections, most of them without a certificate. They may stay open while the attack lasts; what
// matters is what they cost.
func mobs() []attack {
	anyEnd := []string{"open", closed, "not connected"}
	return []attack{
		{name: "silent connections", want: anyEnd, run: nil, mob: func(ctx context.Context, m *mob) error {
			conns := m.dial(ctx, mobSize)
			<-ctx.Done()
			m.fate(conns)
			return nil
		}},
		{name: "trickled handshakes", want: anyEnd, mob: func(ctx context.Context, m *mob) error {
			hello := plain(recordHandshake, len(clientHello), clientHello)
			conns := m.dial(ctx, mobSize)
			for i := 0; ctx.Err() == nil && i < len(hello)-1; i++ {
				for _, c := range conns {
					_, _ = c.Write(hello[i : i+1])
				}
				pause(ctx, 50*time.Millisecond)
			}
			m.fate(conns)
			return nil
		}},
		{name: "hellos and no more", want: anyEnd, mob: func(ctx context.Context, m *mob) error {
			conns := make([]net.Conn, 0, 300)
			for _, c := range m.dial(ctx, cap(conns)) {
				// A hello that is answered, by a client that then falls silent.
				go func() {
					_ = tls.Client(deaf{c}, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{mtls.Protocol}}).HandshakeContext(ctx)
				}()
				conns = append(conns, c)
			}
			<-ctx.Done()
			m.fate(conns)
			return nil
		}},
		{name: "trickled prefaces", want: anyEnd, mob: func(ctx context.Context, m *mob) error {
			var mu sync.Mutex
			var conns []net.Conn
			var secure []*tls.Conn
			each(200, 4, func(int) {
				c, err := arena.Dial(ctx, m.cert, net.JoinHostPort(m.server, "15008"), nil)
				if err != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				conns, secure = append(conns, c.NetConn()), append(secure, c)
			})
			for i := 0; ctx.Err() == nil && i < len(http2.ClientPreface)-1; i++ {
				for _, c := range secure {
					_, _ = c.Write([]byte{http2.ClientPreface[i]})
				}
				pause(ctx, 50*time.Millisecond)
			}
			m.fate(conns)
			return nil
		}},
		{name: "connect and reset", want: anyEnd, mob: func(ctx context.Context, m *mob) error {
			for ctx.Err() == nil {
				for _, c := range m.dial(ctx, 50) {
					_ = c.(*net.TCPConn).SetLinger(0)
					_ = c.Close()
					m.count(closed)
				}
			}
			return nil
		}},
		{name: "handshakes without a certificate", want: []string{"refused", "not connected"}, mob: func(ctx context.Context, m *mob) error {
			for ctx.Err() == nil {
				each(8, 4, func(int) {
					for _, raw := range m.dial(ctx, 1) {
						c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{mtls.Protocol}})
						if c.HandshakeContext(ctx) == nil {
							_ = raw.SetReadDeadline(time.Now().Add(3 * time.Second))
							if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
								m.count("refused")
							} else {
								m.count("let in")
							}
						}
						_ = raw.Close()
					}
				})
			}
			return nil
		}},
		{name: "handshakes and away", want: []string{closed, "not connected"}, mob: func(ctx context.Context, m *mob) error {
			for ctx.Err() == nil {
				each(8, 4, func(i int) {
					p, err := dialPeer(ctx, m.cert, m.server, manners{deaf: true})
					if err != nil {
						return
					}
					p.open(echoPort)
					if i%2 == 0 {
						p.reset()
					} else {
						p.close()
					}
					m.count(closed)
				})
			}
			return nil
		}},
	}
}

// deaf is a connection whose answers are never read.
type deaf struct{ net.Conn }

func (d deaf) Read([]byte) (int, error) {
	<-time.After(time.Minute)
	return 0, os.ErrDeadlineExceeded
}
