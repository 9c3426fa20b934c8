package xds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// maxMessage is the largest response that a client takes (200 MiB, as Istio's ztunnel).
const maxMessage = 200 << 20

// DialOptions say how a proxy reaches the control plane.
type DialOptions struct {
	// RootCA verifies the server: a file path, the word SYSTEM, or PEM text. Files are read at each handshake.
	RootCA string
	// Token gives the bearer token for each call; nil sends no authentication headers.
	Token func() (string, error)
	// ClusterID goes along with the token as header clusterid.
	ClusterID string
	// AltName is accepted for the server's certificate when the host of the address is not in it.
	AltName string
	// Headers are sent with each call.
	Headers map[string]string
}

// TokenFile reads a service-account token at each call, so a rotated file is
// taken up without a restart. The content is not trimmed; a file with a
// trailing newline is refused here because it would make an illegal header.
func TokenFile(path string) func() (string, error) {
	return func() (string, error) {
		b, err := os.ReadFile(path)
		switch {
		case err != nil:
			return "", fmt.Errorf("service-account token: %w", err)
		case len(b) == 0:
			return "", fmt.Errorf("service-account token: %s is empty", path)
		case strings.ContainsAny(string(b), "\r\n"):
			return "", fmt.Errorf("service-account token: %s holds a line break; write the token without one", path)
		}
		return string(b), nil
	}
}

// DialControlPlane prepares a channel to "https://host:port" (the scheme may be
// left out). It does not wait for the connection. Only TLS is spoken.
func DialControlPlane(address string, o DialOptions) (*grpc.ClientConn, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("control plane address %q: %w", address, err)
	}
	if u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("control plane address %q: want https://host:port", address)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(&rootedTLS{host: u.Hostname(), root: o.RootCA, alt: o.AltName}),
		grpc.WithAuthority(u.Hostname()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// The first attempts come fast: at the start of a node everything starts at once.
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: 5 * time.Second,
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: backoffMax},
		}),
		grpc.WithPerRPCCredentials(&callHeaders{o: o}),
		grpc.WithDisableServiceConfig(),
	}
	return grpc.NewClient("dns:///"+net.JoinHostPort(u.Hostname(), port), opts...)
}

// callHeaders adds the token and the static headers to each call.
type callHeaders struct{ o DialOptions }

func (h *callHeaders) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	md := make(map[string]string, len(h.o.Headers)+2)
	for k, v := range h.o.Headers {
		md[strings.ToLower(k)] = v
	}
	if h.o.Token == nil {
		return md, nil
	}
	token, err := h.o.Token()
	if err != nil {
		return nil, err
	}
	md["authorization"] = "Bearer " + token
	md["clusterid"] = h.o.ClusterID
	return md, nil
}

func (h *callHeaders) RequireTransportSecurity() bool { return true }

// rootedTLS is TLS with roots read at each handshake.
type rootedTLS struct{ host, root, alt string }

func (t *rootedTLS) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := t.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, t.host, raw)
}

func (t *rootedTLS) config() (*tls.Config, error) {
	roots, err := loadRoots(t.root)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: t.host}
	if t.alt == "" {
		return cfg, nil
	}
	// The chain is verified below against either name, so the library's own check is replaced, not skipped.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), DNSName: t.host}
		for _, c := range cs.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		_, err := cs.PeerCertificates[0].Verify(opts)
		if err == nil {
			return nil
		}
		opts.DNSName = t.alt
		if _, altErr := cs.PeerCertificates[0].Verify(opts); altErr != nil {
			return errors.Join(err, altErr)
		}
		return nil
	}
	return cfg, nil
}

func loadRoots(root string) (*x509.CertPool, error) {
	if root == "SYSTEM" {
		return x509.SystemCertPool()
	}
	pem := []byte(root)
	if !strings.Contains(root, "-----BEGIN") {
		b, err := os.ReadFile(root)
		if err != nil {
			return nil, fmt.Errorf("control plane root certificate: %w", err)
		}
		pem = b
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("control plane root certificate: no certificate in it; give a PEM file, PEM text or SYSTEM")
	}
	return pool, nil
}

func (t *rootedTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for clients")
}

func (t *rootedTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t *rootedTLS) Clone() credentials.TransportCredentials {
	c := *t
	return &c
}

func (t *rootedTLS) OverrideServerName(name string) error {
	t.host = name
	return nil
}
