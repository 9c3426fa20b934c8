package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/h2http"
	"github.com/marrowmesh/marrow/waypoint/internal/handoff"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

const (
	defaultHead    = 15 * time.Second
	defaultStreams = 100
	idleLimit      = 5 * time.Minute // of a kept connection on which nothing is asked
	maxHeader      = 60 << 10
	bodies         = 1 << 20 // bytes of an HTTP/2 connection's request bodies that nobody has read yet, twice
)

// limits are what chains may differ in.
type limits struct {
	head    time.Duration
	streams uint32
}

// servers are the HTTP servers, a pair for all chains with the same limits. HTTP/1 is
// net/http's: a plain socket tells only to whoever reads it that its client has gone.
type servers struct {
	handler http.Handler

	mu       sync.Mutex
	group    *run.Group
	by       map[limits]*server
	draining bool
}

type server struct {
	http  *http.Server // of HTTP/1
	http2 *h2http.Server
	inner *handoff.Listener
}

func (s *servers) start(g *run.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.group, s.by = g, map[limits]*server{}
}

func (s *servers) of(chain *table.EdgeChain) *server {
	k := limits{head: chain.Head, streams: chain.Streams}
	if k.head <= 0 {
		k.head = defaultHead
	}
	if k.streams == 0 {
		k.streams = defaultStreams
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.by[k]; v != nil {
		return v
	}
	v := &server{http: newHTTP(s.handler, k), inner: handoff.New(), http2: &h2http.Server{
		Handler: s.handler, MaxStreams: k.streams, MaxHeader: maxHeader, HeaderTimeout: k.head, IdleTimeout: idleLimit, Memory: bodies,
	}}
	if s.draining {
		v.http.SetKeepAlivesEnabled(false)
	}
	s.by[k] = v
	s.group.Go("edge http", func(context.Context) error {
		if err := v.http.Serve(v.inner); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return v
}

func newHTTP(h http.Handler, k limits) *http.Server {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: h, Protocols: protocols,
		ReadHeaderTimeout: k.head, IdleTimeout: idleLimit, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0), // phases tells what went wrong, with more to tell
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if in, ok := c.(*edgeConn); ok {
				return phases.WithSession(ctx, in.session)
			}
			return ctx
		},
		DisableGeneralOptionsHandler: true, // OPTIONS * is the application's
	}
}

func (s *servers) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for _, v := range s.by {
		v.http.SetKeepAlivesEnabled(false)
		v.http2.Drain()
	}
}

func (s *servers) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.by {
		v.inner.End()
		_ = v.http.Close()
	}
}

// serve returns when the connection has ended.
func (s *servers) serve(ctx context.Context, c upstream.Conn, session *phases.Session, chain *table.EdgeChain) {
	v := s.of(chain)
	two, c, err := speaksHTTP2(c, v.http.ReadHeaderTimeout)
	if err != nil {
		return // nobody began a request
	}
	if two {
		from := net.TCPAddrFromAddrPort(session.Source).String() // as a load balancer may have told it
		_ = v.http2.Serve(phases.WithSession(ctx, session), c, from)
		return
	}
	in := &edgeConn{Conn: c, session: session, closed: make(chan struct{})}
	if !v.inner.Offer(in) {
		return
	}
	select {
	case <-in.closed:
	case <-ctx.Done():
		_ = in.Close()
	}
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// speaksHTTP2 tells HTTP/2, by what TLS has agreed upon or by the first bytes, which are still there to be read.
func speaksHTTP2(c upstream.Conn, limit time.Duration) (bool, upstream.Conn, error) {
	if t, ok := c.(*tls.Conn); ok {
		if p := t.ConnectionState().NegotiatedProtocol; p != "" {
			return p == "h2", c, nil
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return false, nil, err
	}
	p := &peeked{Conn: c}
	for len(p.seen) < len(preface) && strings.HasPrefix(preface, string(p.seen)) {
		if err := p.more(len(preface)); err != nil {
			return false, nil, err
		}
	}
	return strings.HasPrefix(string(p.seen), preface), p, c.SetReadDeadline(time.Time{})
}

// edgeConn is an HTTP/1 connection as the HTTP server sees it: in clear text, whatever it is outside.
type edgeConn struct {
	upstream.Conn
	session *phases.Session
	once    sync.Once
	closed  chan struct{}
}

// Close closes the connection and says so.
func (c *edgeConn) Close() error {
	var err error
	c.once.Do(func() {
		err = c.Conn.Close()
		close(c.closed)
	})
	return err
}

// RemoteAddr is the client's, as a load balancer may have told it.
func (c *edgeConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.session.Source) }
