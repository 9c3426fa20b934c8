package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/marrowmesh/marrow/istiod-lite/internal/config"
)

func writeJWKS(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "a", Algorithm: "ES256"}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// freePort is one that nothing listens on at the moment.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// TestNothingIsServedBeforeTheMeshIsKnown: a proxy that reconnects to a control plane that has read nothing yet would
// be told that every policy is gone, and would let everybody in.
func TestNothingIsServedBeforeTheMeshIsKnown(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "core", "Namespace", "_", "shop.yaml") // reading it lasts until it is written
	if err := os.MkdirAll(filepath.Dir(fifo), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.Config{
		SourceDir: dir, CADir: t.TempDir(), TokenJWKS: writeJWKS(t), TrustDomain: "cluster.local", RootNamespace: "istio-system",
		SecureAddr: freePort(t), MonitorAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0",
		WorkloadTTL: time.Hour, LogFormat: "plain", LogLevel: "off",
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	source, err := os.OpenFile(fifo, os.O_WRONLY, 0) // comes back when the source reads
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(fifo); err != nil {
		t.Fatal(err)
	}
	handshake := func(limit time.Duration) error {
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: limit}, Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
		c, err := d.DialContext(t.Context(), "tcp", cfg.SecureAddr)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if handshake(300*time.Millisecond) == nil {
		t.Error("discovery is served while the source is still being read")
	}
	if _, err := source.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"); err != nil {
		t.Fatal(err)
	}
	_ = source.Close()
	if err := handshake(10 * time.Second); err != nil {
		t.Errorf("discovery is not served although the mesh is known: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}
