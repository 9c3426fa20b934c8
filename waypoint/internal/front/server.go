package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/h1"
	"github.com/marrowmesh/marrow/waypoint/internal/handoff"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Config is what a Server needs.
type Config struct {
	Table  func() *table.Table // the configuration in force
	Cert   mtls.Source         // this waypoint's own identity
	Phases *phases.Handler
	TLS    mtls.Handshaker
	HBONE  hbone.Config
	Detect time.Duration // overrides the configuration's wait for first bytes; 0 = no
	Log    *obs.Logger
}

// Server ends tunnels.
type Server struct {
	cfg    Config
	tunnel atomic.Pointer[hbone.Server]
	inner  *handoff.Listener
	http   *http.Server // of HTTP/2
	http1  *h1.Server
	open   atomic.Int64 // inner connections
	conns  atomic.Int64 // tunnel connections
}

const (
	handshakeLimit = 10 * time.Second
	headerLimit    = time.Minute // of the time that a request's head may take
	maxHeader      = 64 << 10    // of its bytes
)

// New makes a server that listens nowhere yet.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, inner: handoff.New()}
	s.tunnel.Store(hbone.NewServer(cfg.HBONE))
	s.http1 = &h1.Server{Handler: cfg.Phases, HeaderTimeout: headerLimit, MaxHeader: maxHeader}
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:           cfg.Phases,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000},
		ReadHeaderTimeout: headerLimit,
		MaxHeaderBytes:    maxHeader - 4<<10,
		ErrorLog:          log.New(io.Discard, "", 0), // phases tells what went wrong, with more to tell
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if in, ok := c.(*innerConn); ok {
				return phases.WithSession(ctx, in.session)
			}
			return ctx
		},
		DisableGeneralOptionsHandler: true, // OPTIONS * is the application's
	}
	return s
}

// Serve accepts connections from l until it is closed or ctx ends, and returns when all that it accepted have ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	inner := run.NewGroup(context.WithoutCancel(ctx))
	inner.Go("inner http", func(context.Context) error {
		if err := s.http.Serve(s.inner); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	conns := run.NewGroup(ctx)
	s.accept(ctx, l, conns)
	err := conns.Wait()
	s.inner.End()
	_ = s.http.Close()
	return errors.Join(err, inner.Wait())
}

func (s *Server) accept(ctx context.Context, l net.Listener, conns *run.Group) {
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			conns.Go("tunnel from "+c.RemoteAddr().String(), func(ctx context.Context) error {
				s.connection(ctx, c)
				return nil
			})
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			s.cfg.Log.Warn("accept failed", obs.Err(err))
			select { // out of file descriptors, most likely: give others the time to end
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// Drain lets the clients go elsewhere: tunnels get GOAWAY, HTTP answers say that their connection ends. Who has nowhere else to go yet
// and comes back is still served.
func (s *Server) Drain() {
	s.cfg.Phases.Drain()
	old := s.tunnel.Swap(hbone.NewServer(s.cfg.HBONE))
	old.Drain()
}

// DrainLate is Drain for those who came back.
func (s *Server) DrainLate() { s.tunnel.Load().Drain() }

// Conns is the number of tunnel connections.
func (s *Server) Conns() int64 { return s.conns.Load() }

// Open is the number of connections inside the tunnels.
func (s *Server) Open() int64 { return s.open.Load() }

// connection serves one tunnel connection.
func (s *Server) connection(ctx context.Context, raw net.Conn) {
	s.conns.Add(1)
	defer s.conns.Add(-1)
	c, peer, local, err := s.handshake(ctx, raw)
	if err != nil {
		_ = raw.Close()
		s.cfg.Log.Warn("tunnel refused", obs.F("src.addr", raw.RemoteAddr().String()), obs.Err(err))
		return
	}
	source := addrPort(raw.RemoteAddr())
	err = s.tunnel.Load().Serve(ctx, c, func(ctx context.Context, in *hbone.Incoming) { s.stream(ctx, peer, local, source, in) })
	if err != nil {
		s.cfg.Log.Debug("tunnel ended", obs.F("src.addr", source.String()), obs.Err(err))
	}
}

func (s *Server) handshake(ctx context.Context, raw net.Conn) (net.Conn, identity.ID, identity.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	none := identity.ID{}
	cert, err := s.cfg.Cert.Certificate(ctx)
	if err != nil {
		return nil, none, none, fmt.Errorf("own certificate: %w", err)
	}
	t := s.cfg.Table().Terminate
	if t == nil {
		return nil, none, none, errors.New("no configuration says who may connect: listener connect_terminate was not received")
	}
	c, peer, err := s.cfg.TLS.Server(ctx, raw, cert)
	if err != nil {
		return nil, none, none, err
	}
	if peer.IsZero() {
		return nil, none, none, errors.New("the client's certificate has no identity")
	}
	if len(t.TrustDomains) > 0 && !slices.Contains(t.TrustDomains, peer.TrustDomain()) {
		return nil, none, none, fmt.Errorf("identity %s is of none of the trust domains %v", peer, t.TrustDomains)
	}
	return c, peer, cert.ID, nil
}

// stream serves one CONNECT.
func (s *Server) stream(ctx context.Context, peer, local identity.ID, source netip.AddrPort, in *hbone.Incoming) {
	refuse := func(status int, err error) {
		s.cfg.Log.Warn("connect refused", obs.F("src.addr", source.String()), obs.F("src.identity", peer.String()),
			obs.F("authority", in.Authority()), obs.F("status", status), obs.Err(err))
		_ = in.Reject(status, nil)
	}
	if in.Method() != http.MethodConnect {
		refuse(http.StatusBadRequest, fmt.Errorf("method %s: only CONNECT is served here", in.Method()))
		return
	}
	session, err := newSession(peer, local, source, in)
	if err != nil {
		refuse(http.StatusBadRequest, err)
		return
	}
	at := table.Conn{Destination: session.Destination, Authority: session.Authority}
	t := s.cfg.Table()
	chain, look := t.Find(at)
	switch {
	case look:
		s.detected(ctx, t, at, session, in, refuse)
	case chain == nil:
		refuse(http.StatusNotFound, errors.New("no chain serves this destination (NR)"))
	case chain.TCP != nil && chain.TCP.Named:
		if conn, err := in.Accept(nil); err == nil {
			s.named(ctx, t, chain, session, conn)
		}
	case chain.TCP != nil:
		s.opaque(ctx, chain, session, in, refuse)
	default:
		if conn, err := in.Accept(nil); err == nil {
			s.serveHTTP(ctx, conn, session)
		}
	}
}

// detected looks at the bytes first, so the client has to be let in before its chain is known.
func (s *Server) detected(ctx context.Context, t *table.Table, at table.Conn, session *phases.Session, in *hbone.Incoming, refuse func(int, error)) {
	conn, err := in.Accept(nil)
	if err != nil {
		return
	}
	limit := s.cfg.Detect
	if limit == 0 {
		limit = t.Internal.DetectTimeout
	}
	protocol, c, err := detect(conn, limit)
	if err != nil {
		return // the client went away
	}
	at.Protocol = protocol
	chain, _ := t.Find(at)
	switch {
	case chain == nil:
		refuse(http.StatusNotFound, errors.New("no chain serves this protocol (NR)"))
	case chain.HTTP != nil:
		s.serveHTTP(ctx, c, session)
	case chain.TCP.Named:
		s.named(ctx, t, chain, session, c)
	default:
		s.open.Add(1)
		defer s.open.Add(-1)
		s.cfg.Phases.Opaque(ctx, chain, session, func() (upstream.Conn, error) { return c, nil }, func(int, error) { _ = conn.Close() })
	}
}

// opaque connects first and lets the client in only then.
func (s *Server) opaque(ctx context.Context, chain *table.Chain, session *phases.Session, in *hbone.Incoming, refuse func(int, error)) {
	s.open.Add(1)
	defer s.open.Add(-1)
	accept := func() (upstream.Conn, error) { return in.Accept(nil) }
	s.cfg.Phases.Opaque(ctx, chain, session, accept, refuse)
}

func (s *Server) serveHTTP(ctx context.Context, c upstream.Conn, session *phases.Session) {
	s.open.Add(1)
	defer s.open.Add(-1)
	in := &innerConn{Conn: c, session: session, closed: make(chan struct{})}
	two, seen := speaksHTTP2(c)
	in.Conn = &replayed{Conn: c, first: seen}
	if !two {
		defer func() { _ = in.Close() }()
		s.http1.Serve(phases.WithSession(ctx, session), in)
		return
	}
	if !s.inner.Offer(in) {
		return
	}
	select {
	case <-in.closed:
	case <-ctx.Done(): // the tunnel is gone; the HTTP server sees it by its reads
		_ = in.Close()
	}
}

// innerConn is a connection inside a tunnel, as the HTTP server sees it.
type innerConn struct {
	upstream.Conn
	session *phases.Session
	once    sync.Once
	closed  chan struct{}
}

// Close says that nothing more will be written; the stream itself is given up by its handler, after what was written is on its way.
func (c *innerConn) Close() error {
	var err error
	c.once.Do(func() {
		err = c.CloseWrite()
		_ = c.SetReadDeadline(time.Unix(1, 0)) // whoever reads stops
		close(c.closed)
	})
	return err
}

// OnEnd implements what the HTTP/1 server asks for.
func (c *innerConn) OnEnd(fn func()) { onEnd(c.Conn, fn) }

// RemoteAddr is the client's, as the node proxy kept it.
func (c *innerConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.session.Source) }

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return ap
}
