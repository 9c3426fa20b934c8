package edge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/clienthello"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/proxyproto"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// defaultWait is how long a connection may take until its chain is known and its handshake done.
const defaultWait = 15 * time.Second

// peeked is a connection whose first bytes were read already.
type peeked struct {
	upstream.Conn
	seen []byte
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.seen) > 0 {
		n := copy(b, p.seen)
		p.seen = p.seen[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// more reads what comes next without taking it.
func (p *peeked) more(limit int) error {
	const step = 2048
	if len(p.seen) >= limit {
		return errors.New("the first bytes are too many")
	}
	buf := make([]byte, min(step, limit-len(p.seen)))
	n, err := p.Conn.Read(buf)
	p.seen = append(p.seen, buf[:n]...)
	if n > 0 {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// plain is the connection itself once everything that was read has been taken.
func (p *peeked) plain() upstream.Conn {
	if len(p.seen) == 0 {
		return p.Conn
	}
	return p
}

// arrival is what is known of a connection before its first request.
type arrival struct {
	source, destination netip.AddrPort
	encrypted           bool
	hello               clienthello.Hello
}

// connection serves one connection.
func (s *Server) connection(ctx context.Context, listener string, raw net.Conn) {
	defer func() { _ = raw.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	conn, session, chain, err := s.admit(ctx, listener, raw)
	if err != nil {
		s.cfg.Log.Debug("connection refused", obs.F("listener", listener), obs.F("src.addr", raw.RemoteAddr().String()), obs.Err(err))
		return
	}
	s.open.Add(1)
	defer s.open.Add(-1)
	if chain.HTTP != nil {
		s.http.serve(ctx, conn, session, chain)
		return
	}
	accept := func() (upstream.Conn, error) { return conn, nil }
	s.cfg.Phases.Opaque(ctx, &chain.Chain, session, accept, func(int, error) { _ = conn.Close() })
}

// admit finds out who serves the connection, and shakes hands where TLS ends here. One table answers everything.
func (s *Server) admit(ctx context.Context, listener string, raw net.Conn) (upstream.Conn, *phases.Session, *table.EdgeChain, error) {
	t := s.cfg.Table()
	e := t.Edges[listener]
	c, ok := raw.(upstream.Conn)
	if e == nil || !ok {
		return nil, nil, nil, errNoChain
	}
	wait := e.Wait
	if wait <= 0 {
		wait = defaultWait
	}
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return nil, nil, nil, err
	}
	p := &peeked{Conn: c}
	a, err := read(e, p)
	if err != nil {
		return nil, nil, nil, err
	}
	chain := e.Find(a.hello.ServerName, a.encrypted)
	if chain == nil {
		return nil, nil, nil, refused(errNoChain, "server name %q", a.hello.ServerName)
	}
	session := &phases.Session{
		Local: s.cfg.Local, Source: a.source, Destination: a.destination, Port: a.destination.Port(),
		ServerName: a.hello.ServerName, Edge: &phases.Edge{Direct: addrPort(raw.RemoteAddr()), Listener: listener, Chain: chain.Name},
	}
	out := p.plain()
	if chain.TLS != nil {
		ended, cert, err := s.handshake(ctx, t, chain, p)
		if err != nil {
			return nil, nil, nil, refused(err, "handshake for server name %q", a.hello.ServerName)
		}
		out, session.Edge.Encrypted, session.Edge.Cert = ended, true, cert
	}
	return out, session, chain, c.SetDeadline(time.Time{})
}

// read takes the PROXY header off and looks at the first message of TLS.
func read(e *table.Edge, p *peeked) (arrival, error) {
	a := arrival{source: addrPort(p.RemoteAddr()), destination: addrPort(p.LocalAddr())}
	for e.Proxy {
		h, err := proxyproto.Parse(p.seen)
		if errors.Is(err, proxyproto.ErrShort) {
			if err = p.more(proxyproto.Limit); err != nil {
				return a, refused(err, "PROXY header")
			}
			continue
		}
		if err != nil {
			return a, err
		}
		if !h.Local {
			// The port stays this listener's: policies and routes speak of it.
			a.source, a.destination = h.Source, netip.AddrPortFrom(h.Destination.Addr(), a.destination.Port())
		}
		p.seen = p.seen[h.Size:]
		break
	}
	for e.Looks {
		var err error
		a.hello, err = clienthello.Parse(p.seen)
		if errors.Is(err, clienthello.ErrShort) {
			if err = p.more(clienthello.Limit); err != nil {
				return a, refused(err, "first bytes")
			}
			continue
		}
		if errors.Is(err, clienthello.ErrNotTLS) {
			break
		}
		a.encrypted = err == nil
		return a, err
	}
	return a, nil
}

// handshake ends TLS by the certificate in force. cert is what the client showed and the chain accepted.
func (s *Server) handshake(ctx context.Context, t *table.Table, chain *table.EdgeChain, p *peeked) (upstream.Conn, *x509.Certificate, error) {
	cfg, err := s.certs.config(t, chain)
	if err != nil {
		return nil, nil, err
	}
	c := tls.Server(p, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	var cert *x509.Certificate
	if st := c.ConnectionState(); len(st.VerifiedChains) > 0 {
		cert = st.PeerCertificates[0]
	}
	return c, cert, nil
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
