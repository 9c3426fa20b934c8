package front

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/h1"
	"github.com/marrowmesh/marrow/waypoint/internal/h2http"
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
	http1  *h1.Server
	http2  *h2http.Server
	open   atomic.Int64 // inner connections
	conns  atomic.Int64 // tunnel connections
}

const (
	handshakeLimit = 10 * time.Second
	headerLimit    = time.Minute // of the time that a request's head may take
	maxHeader      = 64 << 10    // of its bytes
	maxStreams     = 1000        // requests at once on a connection inside a tunnel
	bodies         = 4 << 20     // bytes of request bodies that nobody has read yet, twice
)

// New makes a server that listens nowhere yet.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg}
	s.tunnel.Store(hbone.NewServer(cfg.HBONE))
	s.http1 = &h1.Server{Handler: cfg.Phases, HeaderTimeout: headerLimit, MaxHeader: maxHeader}
	s.http2 = &h2http.Server{Handler: cfg.Phases, HeaderTimeout: headerLimit, MaxHeader: maxHeader, MaxStreams: maxStreams, Memory: bodies}
	return s
}

// Serve accepts connections from l until it is closed or ctx ends, and returns when all that it accepted have ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	conns := run.NewGroup(ctx)
	s.accept(ctx, l, conns)
	return conns.Wait()
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
	in := &innerConn{Conn: c, session: session}
	two, seen := speaksHTTP2(c)
	in.Conn = &replayed{Conn: c, first: seen}
	ctx = phases.WithSession(ctx, session)
	if !two {
		defer func() { _ = in.Close() }()
		s.http1.Serve(ctx, in)
		return
	}
	if err := s.http2.Serve(ctx, push(in), in.RemoteAddr().String()); err != nil {
		s.cfg.Log.Debug("HTTP/2 inside a tunnel ended", obs.F("src.addr", session.Source.String()), obs.Err(err))
	}
}

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
