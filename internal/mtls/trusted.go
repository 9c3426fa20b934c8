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
		return verifyDomain(cert, s.PeerCertificates, x509.ExtKeyUsageServerAuth)
	}
	return handshake(ctx, tls.Client(raw, cfg))
}
