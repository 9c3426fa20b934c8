package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/marrowmesh/marrow/internal/identity"
)

// Protocol is the only application protocol between proxies.
const Protocol = "h2"

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

// Client runs the connecting side of the handshake over raw: the peer must
// prove one of the expected identities. On error raw is closed.
func Client(ctx context.Context, raw net.Conn, cert *Certificate, expect []identity.ID) (*tls.Conn, identity.ID, error) {
	if len(expect) == 0 {
		_ = raw.Close()
		return nil, identity.ID{}, &PeerError{Reason: "no identity is expected of this peer, so none can be accepted"}
	}
	cfg := base(cert)
	// The host name is not checked, the identity is: in verifyServer.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return verifyServer(cert, s.PeerCertificates, expect) }
	return handshake(ctx, tls.Client(raw, cfg))
}

// Server runs the accepting side of the handshake over raw: the peer must
// present a certificate of our roots, for a client, with an identity of our
// own trust domain. On error raw is closed.
func Server(ctx context.Context, raw net.Conn, cert *Certificate) (*tls.Conn, identity.ID, error) {
	cfg := base(cert)
	cfg.ClientAuth = tls.RequireAnyClientCert // verified below, where the refusal can be explained
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return verifyClient(cert, s.PeerCertificates) }
	// crypto/tls lets a client pass that offers only http/1.1.
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if offered := hello.SupportedProtos; len(offered) > 0 && !slices.Contains(offered, Protocol) {
			return nil, fmt.Errorf("client offers the protocols %q, want %q", offered, Protocol)
		}
		return nil, nil // go on with cfg
	}
	return handshake(ctx, tls.Server(raw, cfg))
}

func base(cert *Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert.TLS},
		NextProtos:             []string{Protocol},
		SessionTicketsDisabled: true,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
	}
}

func handshake(ctx context.Context, c *tls.Conn) (*tls.Conn, identity.ID, error) {
	fail := func(err error) (*tls.Conn, identity.ID, error) {
		_ = c.NetConn().Close()
		return nil, identity.ID{}, fmt.Errorf("tls handshake with %v: %w", c.RemoteAddr(), err)
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return fail(err)
	}
	state := c.ConnectionState()
	// A peer that offers no protocol at all is taken for HTTP/2.
	if p := state.NegotiatedProtocol; p != "" && p != Protocol {
		return fail(fmt.Errorf("protocol %q negotiated, want %q", p, Protocol))
	}
	id, err := identity.FromCertificate(state.PeerCertificates[0])
	if err != nil && !errors.Is(err, identity.ErrNoIdentity) {
		return fail(err)
	}
	return c, id, nil
}

func verifyServer(cert *Certificate, chain []*x509.Certificate, expect []identity.ID) error {
	want := texts(expect)
	if err := verifyChain(cert, chain, x509.ExtKeyUsageServerAuth, want); err != nil {
		return err
	}
	for _, u := range chain[0].URIs {
		if id, err := identity.Parse(u.String()); err == nil && slices.Contains(expect, id) {
			return nil
		}
	}
	return &PeerError{Reason: "its identity is not the expected one", Presented: presented(chain), Expected: want}
}

func verifyClient(cert *Certificate, chain []*x509.Certificate) error {
	return verifyDomain(cert, chain, x509.ExtKeyUsageClientAuth)
}

// verifyDomain accepts any identity of our own trust domain. Without an identity
// of our own there is no domain to compare with, so nobody is accepted; Istio's
// ztunnel leaves the check out then.
func verifyDomain(cert *Certificate, chain []*x509.Certificate, use x509.ExtKeyUsage) error {
	if cert.ID.IsZero() {
		return &PeerError{Reason: "our own certificate names no identity, so no peer can be of our trust domain", Presented: presented(chain)}
	}
	want := []string{identity.Scheme + cert.ID.TrustDomain() + "/ns/*/sa/*"}
	if err := verifyChain(cert, chain, use, want); err != nil {
		return err
	}
	for _, u := range chain[0].URIs {
		if id, err := identity.Parse(u.String()); err == nil && id.TrustDomain() == cert.ID.TrustDomain() {
			return nil
		}
	}
	return &PeerError{Reason: "no identity of our trust domain", Presented: presented(chain), Expected: want}
}

func verifyChain(cert *Certificate, chain []*x509.Certificate, usage x509.ExtKeyUsage, want []string) error {
	if len(chain) == 0 {
		return &PeerError{Reason: "no certificate", Expected: want}
	}
	opts := x509.VerifyOptions{
		Roots:         cert.Pool,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return &PeerError{Reason: "its certificate is not valid here", Presented: presented(chain), Expected: want, Err: err}
	}
	return nil
}

func presented(chain []*x509.Certificate) []string {
	var out []string
	for _, u := range chain[0].URIs {
		out = append(out, u.String())
	}
	return out
}

func texts(ids []identity.ID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = id.String()
	}
	return out
}
