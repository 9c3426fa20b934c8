package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/marrowmesh/marrow/internal/identity"
)

// ClientTrusting is Client for a peer of which only the trust domain is known: any identity of our own is accepted. It is for
// destinations that a client named by their address; who knows the peer's identity uses Client.
func ClientTrusting(ctx context.Context, raw net.Conn, cert *Certificate) (*tls.Conn, identity.ID, error) {
	cfg := base(cert)
	cfg.InsecureSkipVerify = true // the host name is not checked, the identity is: below
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		var want []string
		if !cert.ID.IsZero() {
			want = []string{identity.Scheme + cert.ID.TrustDomain() + "/ns/*/sa/*"}
		}
		chain := s.PeerCertificates
		if err := verifyChain(cert, chain, x509.ExtKeyUsageServerAuth, want); err != nil {
			return err
		}
		for _, u := range chain[0].URIs {
			if id, err := identity.Parse(u.String()); err == nil && !cert.ID.IsZero() && id.TrustDomain() == cert.ID.TrustDomain() {
				return nil
			}
		}
		return &PeerError{Reason: "no identity of our trust domain", Presented: presented(chain), Expected: want}
	}
	return handshake(ctx, tls.Client(raw, cfg))
}
