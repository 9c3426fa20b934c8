//go:build lab

package envoy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// openStreams is testdata/streams.yaml with its certificates.
func openStreams(b *border) {
	t := b.t
	servers, clients, strangers := newAuthority(t, "servers"), newAuthority(t, "clients"), newAuthority(t, "strangers")
	good := clients.issue("good.client")
	for name, p := range map[string]pair{"good": good, "other": clients.issue("other.client"), "foreign": strangers.issue("good.client")} {
		cert, key := p.write(t, b.dir, name)
		b.clients[name] = [2]string{cert, key}
	}
	b.roots = filepath.Join(b.dir, "roots.pem")
	if err := os.WriteFile(b.roots, servers.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key := servers.issue("a.pass.test", "x.b.pass.test", "y.b.pass.test", "pass.classic.test").write(t, b.dir, "judge")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good.cert)
	hash := sha256.Sum256(block.Bytes)
	wide, classic := servers.issue("*.example.com"), servers.issue("names.test", "hash.test", "new.test", "old.test", "lax.test")
	indented := strings.ReplaceAll(strings.TrimSpace(string(clients.pem())), "\n", "\n    ")
	b.apply(secretYAML("wide", "tls.crt", wide.cert, "tls.key", wide.key) +
		secretYAML("classic", "tls.crt", classic.cert, "tls.key", classic.key, "ca.crt", clients.pem()) +
		"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: clients, namespace: shop}\ndata:\n  ca.crt: |\n    " + indented + "\n")
	text, err := os.ReadFile("testdata/streams.yaml")
	if err != nil {
		t.Fatal(err)
	}
	b.apply(string(text), "SELF", self, "PODVERB", podVerb, "CERTFILE", cert, "KEYFILE", key, "[HASH]", "["+hex.EncodeToString(hash[:])+"]")
	b.lab.must("lab", "wait", "--timeout", "60s")
	b.forward("edge", "443", "8443", "8444", "9000", "9443")
	b.until("200 HTTP/2 catalog", "edge", "https://shop.example.com/")
	b.until("200 HTTP/2 pass", "edge", "https://a.pass.test:9443/")
	b.until("200 HTTP/2 catalog", "edge", append(b.as("good"), "https://names.test/")...)
}

// TestEdgeStreams: bytes that nobody reads, gRPC, and what ports and older objects ask of clients.
func TestEdgeStreams(t *testing.T) {
	atBothBorders(t, func(b *border) {
		openStreams(b)
		with := func(client, url string) []string { return append(b.as(client), url) }
		served, refused := "200 HTTP/2 catalog", "no answer"
		b.run("edge", []check{
			{name: "passed by name", args: []string{"https://a.pass.test:9443/"}, want: "200 HTTP/2 pass"},
			{name: "passed by wildcard", args: []string{"https://y.b.pass.test:9443/"}, want: "200 HTTP/2 pass"},
			{name: "a name that a policy refuses", args: []string{"https://x.b.pass.test:9443/"}, want: refused},
			{name: "a name without a route", args: []string{"-k", "https://c.pass.test:9443/"}, want: refused},
			{name: "a name of another port", args: []string{"-k", "https://shop.example.com:9443/"}, want: refused},
			{name: "passed by the older API", args: []string{"https://pass.classic.test/"}, want: "200 HTTP/2 pass"},

			{name: "port asks, none", args: []string{"https://shop.example.com:8443/"}, want: refused},
			{name: "port asks, good", args: with("good", "https://shop.example.com:8443/"), want: served},
			{name: "port asks, foreign", args: with("foreign", "https://shop.example.com:8443/"), want: refused},
			{name: "port falls back, none", args: []string{"https://shop.example.com:8444/"}, want: served},
			{name: "port falls back, foreign", args: with("foreign", "https://shop.example.com:8444/"), want: served},

			{name: "names, good", args: with("good", "https://names.test/"), want: served},
			{name: "names, another of the authority's", args: with("other", "https://names.test/"), want: refused},
			{name: "hash, good", args: with("good", "https://hash.test/"), want: served},
			{name: "hash, another of the authority's", args: with("other", "https://hash.test/"), want: refused},
			{name: "only TLS 1.3", args: []string{"--tls-max", "1.2", "https://new.test/"}, want: refused},
			{name: "TLS 1.3", args: []string{"https://new.test/"}, want: served},
			{name: "only TLS 1.2", args: []string{"--tlsv1.3", "https://old.test/"}, want: refused},
			{name: "TLS 1.2", args: []string{"https://old.test/"}, want: served},
			{name: "content with less", args: []string{"--tls-max", "1.2", "https://lax.test/"}, want: served},
			{name: "another suite", args: []string{"--ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256", "https://old.test/"}, want: refused},
		})
		plainly, err := net.Dial("tcp", b.doors["edge:9000"])
		if err != nil {
			b.t.Fatal(err)
		}
		if got := firstLine(plainly, "hello\n"); got != "ledger v1 ledger-line hello" {
			b.t.Errorf("bytes: %q", got)
		}
		_ = plainly.Close()
		ended, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", b.doors["edge:9443"], &tls.Config{ServerName: "ledger.example.com", RootCAs: b.pool()})
		if err != nil {
			b.t.Fatal(err)
		}
		if got := firstLine(ended, "hello\n"); got != "ledger v1 ledger-line hello" {
			b.t.Errorf("bytes in TLS that ends at the gateway: %q", got)
		}
		_ = ended.Close()
		b.calls()
	})
}

func (b *border) pool() *x509.CertPool {
	out := x509.NewCertPool()
	raw, err := os.ReadFile(b.roots)
	if err != nil || !out.AppendCertsFromPEM(raw) {
		b.t.Fatal(err)
	}
	return out
}

// calls: gRPC by service, with the answer's trailers.
func (b *border) calls() {
	conn, err := grpc.NewClient("passthrough:///"+b.doors["edge:443"], grpc.WithAuthority("grpc.example.com"),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{ServerName: "grpc.example.com", RootCAs: b.pool()})))
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	say := func(method, what string) string {
		ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
		defer cancel()
		req := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
			Http: &authv3.AttributeContext_HttpRequest{Headers: map[string]string{"x-say": what}},
		}}}
		resp := &authv3.CheckResponse{}
		err := conn.Invoke(ctx, method, req, resp)
		return fmt.Sprint(status.Code(err), " ", resp.GetStatus().GetCode())
	}
	for _, c := range [][3]string{
		{"/envoy.service.auth.v3.Authorization/Check", "", "OK 0"},
		{"/envoy.service.auth.v3.Authorization/Check", "plain", "OK 7"},
		{"/envoy.service.auth.v3.Authorization/Check", "fail", "Unknown 0"},
		{"/envoy.service.auth.v3.Authorization/Nothing", "", "Unimplemented 0"},
		{"/other.Service/Check", "", "Unimplemented 0"},
	} {
		if got := say(c[0], c[1]); got != c[2] {
			b.t.Errorf("gRPC %s %s: %s, want %s", c[0], c[1], got, c[2])
		}
	}
}
