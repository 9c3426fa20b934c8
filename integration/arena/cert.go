package arena

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/marrowmesh/marrow/internal/caclient"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/xds"
)

// Identity is a pod's.
func Identity(pod string) (identity.ID, error) {
	return identity.Parse("spiffe://cluster.local/ns/" + Namespace + "/sa/" + pod)
}

// Certificate asks the mesh's authority for the certificate of the pod in which it is called, with the pod's own token.
func Certificate(ctx context.Context, pod string) (*mtls.Certificate, error) {
	id, err := Identity(pod)
	if err != nil {
		return nil, err
	}
	conn, err := xds.DialControlPlane("https://istiod.istio-system.svc:15012", xds.DialOptions{
		RootCA: "/var/run/secrets/istio/root-cert.pem", Token: xds.TokenFile("/var/run/secrets/tokens/istio-token"), ClusterID: "Kubernetes",
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cert, err := caclient.New(conn).Fetch(ctx, id, false, 0)
	if err != nil {
		return nil, fmt.Errorf("certificate of pod %s: %w", pod, err)
	}
	return cert, nil
}

// Dial opens a mesh connection as a peer with this certificate would, by the standard library alone: the other side is
// under test, so that nothing of ours stands in front of it. keys, if given, gets the traffic secrets.
func Dial(ctx context.Context, cert *mtls.Certificate, addr string, keys io.Writer) (*tls.Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return Handshake(ctx, raw, cert, keys)
}

// Handshake is Dial on a connection that is there already. Whom it reaches is not checked.
func Handshake(ctx context.Context, raw net.Conn, cert *mtls.Certificate, keys io.Writer) (*tls.Conn, error) {
	conn := tls.Client(raw, &tls.Config{
		InsecureSkipVerify:   true, // a test peer; the address says whom it reaches
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{mtls.Protocol},
		KeyLogWriter:         keys,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert.TLS, nil },
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}
