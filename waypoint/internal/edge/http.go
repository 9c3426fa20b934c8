package edge

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/run"
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
)

// limits are what chains may differ in.
type limits struct {
	head    time.Duration
	streams uint32
}

// servers are the HTTP servers, one for all chains with the same limits.
type servers struct {
	handler http.Handler

	mu       sync.Mutex
	group    *run.Group
	by       map[limits]*server
	draining bool
}

type server struct {
	http  *http.Server
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
	v := &server{http: newHTTP(s.handler, k), inner: handoff.New()}
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
	protocols.SetUnencryptedHTTP2(true) // TLS has been ended already
	return &http.Server{
		Handler: h, Protocols: protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: int(k.streams)},
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
	in := &edgeConn{Conn: c, session: session, closed: make(chan struct{})}
	if !s.of(chain).inner.Offer(in) {
		return
	}
	select {
	case <-in.closed:
	case <-ctx.Done():
		_ = in.Close()
	}
}

// edgeConn is a connection as the HTTP server sees it: in clear text, whatever it is outside.
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
