package mtls

import (
	"context"
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls/record"
)

// Protocol is the only application protocol between proxies.
const Protocol = "h2"

// Conn is an authenticated connection: a *record.Conn, or a *tls.Conn where
// the standard library keeps the records.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Suite is the cipher suite of a connection of this package, as in
// tls.ConnectionState; 0 if c is none.
func Suite(c net.Conn) uint16 {
	switch c := c.(type) {
	case *record.Conn:
		return c.Suite()
	case *tls.Conn:
		return c.ConnectionState().CipherSuite
	}
	return 0
}

// Options are the choices of a handshake. The zero value is the default.
type Options struct {
	// StdRecords leaves records to crypto/tls after the handshake too.
	StdRecords bool
	// PostQuantum allows no key exchange but X25519MLKEM768 (Istio's
	// COMPLIANCE_POLICY=pqc).
	PostQuantum bool
}

// Handshaker runs handshakes. The zero value is ready to use.
type Handshaker struct{ opts Options }

// New makes a Handshaker.
func New(o Options) Handshaker { return Handshaker{opts: o} }

// PeerError says why the certificate of the other side was refused: what it
// presented and what would have been accepted.
type PeerError struct {
	Reason    string
	Presented []string // URI SANs of its leaf
	Expected  []string
	Err       error
}

func (e *PeerError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "peer refused: %s: presented [%s], expected [%s]",
		e.Reason, strings.Join(e.Presented, " "), strings.Join(e.Expected, " "))
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

func (e *PeerError) Unwrap() error { return e.Err }

// Client is Handshaker.Client with the default options.
func Client(ctx context.Context, raw net.Conn, cert *Certificate, expect []identity.ID) (Conn, identity.ID, error) {
	return Handshaker{}.Client(ctx, raw, cert, expect)
}

// Server is Handshaker.Server with the default options.
func Server(ctx context.Context, raw net.Conn, cert *Certificate) (Conn, identity.ID, error) {
	return Handshaker{}.Server(ctx, raw, cert)
}

// ClientTrusting is Handshaker.ClientTrusting with the default options.
func ClientTrusting(ctx context.Context, raw net.Conn, cert *Certificate) (Conn, identity.ID, error) {
	return Handshaker{}.ClientTrusting(ctx, raw, cert)
}

// Client runs the connecting side of the handshake over raw: the peer must
// prove one of the expected identities. On error raw is closed.
func (h Handshaker) Client(ctx context.Context, raw net.Conn, cert *Certificate, expect []identity.ID) (Conn, identity.ID, error) {
	if len(expect) == 0 {
		_ = raw.Close()
		return nil, identity.ID{}, &PeerError{Reason: "no identity is expected of this peer, so none can be accepted"}
	}
	return h.connect(ctx, raw, cert, func(chain []*x509.Certificate) error { return verifyServer(cert, chain, expect) })
}

// ClientTrusting is Client for a peer of which only the trust domain is known:
// any identity of our own is accepted. It is for destinations that a client
// named by their address; who knows the peer's identity uses Client.
func (h Handshaker) ClientTrusting(ctx context.Context, raw net.Conn, cert *Certificate) (Conn, identity.ID, error) {
	return h.connect(ctx, raw, cert, func(chain []*x509.Certificate) error {
		return verifyDomain(cert, chain, x509.ExtKeyUsageServerAuth)
	})
}

func (h Handshaker) connect(ctx context.Context, raw net.Conn, cert *Certificate, verify func([]*x509.Certificate) error) (Conn, identity.ID, error) {
	cfg := h.base(cert)
	// The host name is not checked, the identity is: by verify.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return verify(s.PeerCertificates) }
	cfg.CurvePreferences = h.offered()
	return h.handshake(ctx, raw, cfg, true)
}

// Server runs the accepting side of the handshake over raw: the peer must
// present a certificate of our roots, for a client, with an identity of our
// own trust domain. On error raw is closed.
func (h Handshaker) Server(ctx context.Context, raw net.Conn, cert *Certificate) (Conn, identity.ID, error) {
	cfg := h.base(cert)
	cfg.ClientAuth = tls.RequireAnyClientCert // verified below, where the refusal can be explained
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return verifyClient(cert, s.PeerCertificates) }
	cfg.CurvePreferences = h.accepted()
	// crypto/tls lets a client pass that offers only http/1.1.
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if offered := hello.SupportedProtos; len(offered) > 0 && !slices.Contains(offered, Protocol) {
			return nil, fmt.Errorf("client offers the protocols %q, want %q", offered, Protocol)
		}
		return nil, nil // go on with cfg
	}
	return h.handshake(ctx, raw, cfg, false)
}

func (h Handshaker) base(cert *Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert.TLS},
		NextProtos:             []string{Protocol},
		SessionTicketsDisabled: true,
		// A tunnel carries bulk: no small records at its beginning.
		DynamicRecordSizingDisabled: true,
	}
}

// offered is what a client of ours proposes. crypto/tls sends a share for the
// first by its own order, which is the hybrid where that is allowed. P-256 is
// the cheapest by far, and every server of the mesh accepts it, unless its
// policy is post-quantum: then so must ours be (docs/adr/0008).
func (h Handshaker) offered() []tls.CurveID {
	if h.opts.PostQuantum {
		return []tls.CurveID{tls.X25519MLKEM768}
	}
	return []tls.CurveID{tls.CurveP256, tls.CurveP384}
}

// accepted is what a server of ours takes: all that Istio's ztunnel offers. A
// client that offers the hybrid gets it.
func (h Handshaker) accepted() []tls.CurveID {
	if h.opts.PostQuantum {
		return []tls.CurveID{tls.X25519MLKEM768}
	}
	return []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384}
}

// own reports whether records may be ours. In FIPS mode the certified module
// has a say in how nonces are made, so crypto/tls keeps them.
func (h Handshaker) own() bool { return !h.opts.StdRecords && !fips140.Enabled() }

func (h Handshaker) handshake(ctx context.Context, raw net.Conn, cfg *tls.Config, client bool) (Conn, identity.ID, error) {
	var t *tap
	under := raw
	if h.own() {
		t = &tap{Conn: raw}
		under, cfg.KeyLogWriter = t, &t.keys
	}
	c := tls.Server(under, cfg)
	if client {
		c = tls.Client(under, cfg)
	}
	id, err := prove(ctx, c)
	if err != nil {
		_ = raw.Close()
		if t != nil {
			t.keys.erase()
			t.release()
		}
		return nil, identity.ID{}, fmt.Errorf("tls handshake with %v: %w", raw.RemoteAddr(), err)
	}
	if t == nil {
		return c, id, nil
	}
	own, err := t.takeOver(c, client)
	if err != nil {
		// Nothing is wrong with the connection: crypto/tls goes on with it.
		t.free = true
		return c, id, nil //nolint:nilerr // see above
	}
	return own, id, nil
}

// prove runs the handshake and tells who the peer is.
func prove(ctx context.Context, c *tls.Conn) (identity.ID, error) {
	if err := c.HandshakeContext(ctx); err != nil {
		return identity.ID{}, err
	}
	state := c.ConnectionState()
	// A peer that offers no protocol at all is taken for HTTP/2.
	if p := state.NegotiatedProtocol; p != "" && p != Protocol {
		return identity.ID{}, fmt.Errorf("protocol %q negotiated, want %q", p, Protocol)
	}
	id, err := identity.FromCertificate(state.PeerCertificates[0])
	if err != nil && !errors.Is(err, identity.ErrNoIdentity) {
		return identity.ID{}, err
	}
	return id, nil
}
