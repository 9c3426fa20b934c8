//go:build lab

package envoy

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// openEdge is testdata/edge.yaml with its certificates.
func openEdge(b *border) (servers *authority) {
	t := b.t
	servers = newAuthority(t, "servers")
	clients, strangers := newAuthority(t, "clients"), newAuthority(t, "strangers")
	good, bad, foreign := clients.issue("good.client"), clients.issue("bad.client"), strangers.issue("good.client")
	for name, p := range map[string]pair{"good": good, "revoked": bad, "foreign": foreign} {
		cert, key := p.write(t, b.dir, name)
		b.clients[name] = [2]string{cert, key}
	}
	b.roots = filepath.Join(b.dir, "roots.pem")
	if err := os.WriteFile(b.roots, servers.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key := servers.issue("pass.example.com").write(t, b.dir, "pass")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	wide, own, mutual := servers.issue("*.example.com"), servers.issue("own.example.com"), servers.issue("mutual.example.com", "optional.example.com")
	b.apply(secretYAML("wide", "tls.crt", wide.cert, "tls.key", wide.key) + secretYAML("own", "tls.crt", own.cert, "tls.key", own.key) +
		secretYAML("mutual", "tls.crt", mutual.cert, "tls.key", mutual.key) +
		secretYAML("mutual-cacert", "ca.crt", clients.pem(), "ca.crl", clients.revoked(bad)))
	text, err := os.ReadFile("testdata/edge.yaml")
	if err != nil {
		t.Fatal(err)
	}
	b.apply(string(text), "SELF", self, "PODVERB", podVerb, "CERTFILE", cert, "KEYFILE", key)
	b.lab.must("lab", "wait", "--timeout", "60s")
	b.forward("edge", "443", "80")
	b.forward("behind", "80")
	b.forward("hops", "80")
	b.until("200 HTTP/2 catalog", "edge", "https://shop.example.com/")
	b.until("200 HTTP/2 catalog", "edge", append(b.as("good"), "https://mutual.example.com/")...)
	b.until("200 HTTP/2 pass", "edge", "https://pass.example.com/")
	b.until("301 HTTP/1.1", "edge", "http://shop.example.com/")
	b.until("200 HTTP/1.1 catalog", "behind", "--haproxy-protocol", "http://any.example.com/")
	b.until("200 HTTP/1.1 catalog", "hops", "http://any.example.com/")
	b.until("403 HTTP/1.1", "hops", "-H", "X-Forwarded-For: 203.0.113.7, 10.0.0.1", "http://any.example.com/staff")
	var body struct{ Headers map[string]string }
	if err := json.Unmarshal([]byte(b.curl("edge", "https://shop.example.com/?headers").body), &body); err != nil {
		t.Fatal(err)
	}
	b.self = body.Headers["X-Forwarded-For"]
	return servers
}

// as are curl's arguments for a client with a certificate.
func (b *border) as(client string) []string {
	return []string{"--cert", b.clients[client][0], "--key", b.clients[client][1]}
}

// TestEdgeTLS: who is served by which certificate, who is turned away, and what is told of the client.
func TestEdgeTLS(t *testing.T) {
	atBothBorders(t, func(b *border) {
		servers := openEdge(b)
		with := func(client string, args ...string) []string { return append(b.as(client), args...) }
		b.run("edge", []check{
			{name: "wildcard", args: []string{"https://shop.example.com/"}, want: "200 HTTP/2 catalog"},
			{name: "HTTP/1.1", args: []string{"--http1.1", "https://shop.example.com/"}, want: "200 HTTP/1.1 catalog"},
			{name: "HTTP/1.1 without ALPN", args: []string{"--no-alpn", "https://shop.example.com/"}, want: "200 HTTP/1.1 catalog"},
			{name: "no route", args: []string{"https://nobody.example.com/"}, want: "404 HTTP/2"},
			{name: "two labels under the wildcard", args: []string{"-k", "https://a.b.example.com/"}, want: "404 HTTP/2"},
			{name: "a name of its own", args: []string{"https://own.example.com/"}, want: "200 HTTP/2 catalog"},
			{name: "another host's request in one's own connection", args: []string{"-H", "Host: shop.example.com", "https://own.example.com/"}, want: "404 HTTP/2"},
			{name: "not ours", args: []string{"-k", "https://elsewhere.org/"}, want: "no answer"},
			{name: "no server name", args: []string{"-k", "https://192.0.2.1/"}, want: "no answer"},
			{name: "TLS 1.1", args: []string{"-k", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0", "https://shop.example.com/"}, want: "no answer"},
			{name: "TLS 1.2", args: []string{"--tls-max", "1.2", "https://shop.example.com/"}, want: "200 HTTP/2 catalog"},
			{name: "a certificate that is not there", args: []string{"-k", "https://lost.elsewhere.org/"}, want: "no answer"},
			{name: "passed through", args: []string{"https://pass.example.com/"}, want: "200 HTTP/2 pass"},

			{name: "mutual, none", args: []string{"https://mutual.example.com/"}, want: "no answer"},
			{name: "mutual, good", args: with("good", "https://mutual.example.com/"), want: "200 HTTP/2 catalog"},
			{name: "mutual, another authority's", args: with("foreign", "https://mutual.example.com/"), want: "no answer"},
			{name: "mutual, revoked", args: with("revoked", "https://mutual.example.com/"), want: "no answer"},
			{name: "optional, none", args: []string{"https://optional.example.com/"}, want: "200 HTTP/2 catalog"},
			{name: "optional, good", args: with("good", "https://optional.example.com/"), want: "200 HTTP/2 catalog"},
			{name: "optional, another authority's", args: with("foreign", "https://optional.example.com/"), want: "no answer"},
			{name: "optional, revoked", args: with("revoked", "https://optional.example.com/"), want: "no answer"},
			{
				name: "the client's certificate is told", args: with("good", "-H", "X-Forwarded-Client-Cert: By=me", "https://mutual.example.com/?headers"),
				show: func(b *border, a answer) string {
					_, after, _ := strings.Cut(seen("X-Forwarded-Client-Cert")(b, a), ";")
					return after
				},
				want: `Subject="CN=good.client";URI=;DNS=good.client`,
			},
			{
				name: "a forged one is not", args: []string{"-H", "X-Forwarded-Client-Cert: By=me", "https://optional.example.com/?headers"},
				show: seen("X-Forwarded-Client-Cert"), want: "X-Forwarded-Client-Cert=",
			},

			{name: "to https", args: []string{"http://shop.example.com/a?b=c"}, show: location, want: "301 HTTP/1.1 https://shop.example.com/a?b=c"},
			{name: "to https, port 80 named", args: []string{"-H", "Host: shop.example.com:80", "http://shop.example.com/"}, show: location, want: "301 HTTP/1.1 https://shop.example.com/"},
			{name: "to another port", args: []string{"http://shop.example.com/high/x"}, show: location, want: "302 HTTP/1.1 https://shop.example.com:8443/high/x"},
			{name: "to another host", args: []string{"http://shop.example.com/host"}, show: location, want: "302 HTTP/1.1 http://other.example.com/host"},
		})
		b.reload(servers)
	})
}

// reload: a new certificate serves the next connection, and one that is open stays.
func (b *border) reload(servers *authority) {
	t := b.t
	dial := func() (*tls.Conn, string) {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", b.doors["edge:443"], &tls.Config{ServerName: "own.example.com", InsecureSkipVerify: true}) //nolint:gosec // the serial number is compared
		if err != nil {
			t.Fatal(err)
		}
		return c, c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	open, first := dial()
	defer func() { _ = open.Close() }()
	fresh := servers.issue("own.example.com")
	b.apply(secretYAML("own", "tls.crt", fresh.cert, "tls.key", fresh.key))
	last := first
	for end := time.Now().Add(20 * time.Second); last == first && time.Now().Before(end); {
		c, serial := dial()
		_ = c.Close()
		last = serial
	}
	if last != fresh.serial.String() {
		t.Errorf("after the Secret changed: serial number %s, want %s", last, fresh.serial)
	}
	if got := firstLine(open, "GET / HTTP/1.1\r\nHost: own.example.com\r\n\r\n"); got != "HTTP/1.1 200 OK" {
		t.Errorf("on the open connection: %q", got)
	}
}

// firstLine says something and returns the first line of the answer.
func firstLine(c net.Conn, text string) string {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return err.Error()
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "no answer"
	}
	return strings.TrimSpace(line)
}

// TestEdgeClient: who the client is for the application and for policies, behind no proxies, behind some, and behind a load balancer
// that speaks PROXY.
func TestEdgeClient(t *testing.T) {
	const xff, from, scheme = "X-Forwarded-For", "X-Envoy-External-Address", "X-Forwarded-Proto"
	atBothBorders(t, func(b *border) {
		openEdge(b)
		forged := []string{}
		for _, h := range []string{
			"X-Forwarded-Proto: http", "X-Envoy-External-Address: 9.9.9.9", "X-Envoy-Force-Trace: true", "X-Envoy-Internal: true",
			"X-Envoy-Retry-On: 5xx", "X-Envoy-Max-Retries: 9", "X-Envoy-Upstream-Rq-Timeout-Ms: 1", "X-Envoy-Decorator-Operation: x",
			"X-Envoy-Original-Path: /admin", "X-Envoy-Original-Url: /admin", "X-Envoy-Attempt-Count: 7", "X-Request-Id: mine",
		} {
			forged = append(forged, "-H", h)
		}
		ask := func(url string, args ...string) []string { return append(slices.Clone(args), url) }
		b.run("edge", []check{
			{name: "nobody in front", args: ask("https://shop.example.com/?headers"), show: seen(xff, from, scheme), want: "X-Forwarded-For=SELF X-Envoy-External-Address=SELF X-Forwarded-Proto=https"},
			{
				name: "what is said is kept and not believed", args: ask("https://shop.example.com/?headers", append(slices.Clone(forged), "-H", "X-Forwarded-For: 203.0.113.7")...),
				show: seen(xff, from, scheme), want: "X-Forwarded-For=203.0.113.7,SELF X-Envoy-External-Address=SELF X-Forwarded-Proto=https",
			},
			{
				name: "nobody steers the proxies", args: ask("https://shop.example.com/?headers", forged...),
				show: seen("X-Envoy-Force-Trace", "X-Envoy-Internal", "X-Envoy-Retry-On", "X-Envoy-Max-Retries", "X-Envoy-Upstream-Rq-Timeout-Ms", "X-Envoy-Decorator-Operation", "X-Envoy-Original-Path", "X-Envoy-Original-Url"),
				want: "X-Envoy-Force-Trace= X-Envoy-Internal= X-Envoy-Retry-On= X-Envoy-Max-Retries= X-Envoy-Upstream-Rq-Timeout-Ms= X-Envoy-Decorator-Operation= X-Envoy-Original-Path= X-Envoy-Original-Url=",
			},
			{name: "nobody counts attempts", args: ask("https://shop.example.com/?headers", forged...), show: seen("X-Envoy-Attempt-Count"), want: "X-Envoy-Attempt-Count=", envoys: "X-Envoy-Attempt-Count=7"},
			{
				name: "a request id of our own", args: ask("https://shop.example.com/?headers", forged...),
				show: func(b *border, a answer) string {
					return fmt.Sprint(len(strings.TrimPrefix(seen("X-Request-Id")(b, a), "X-Request-Id=")))
				},
				want: "36",
			},
		})
		b.run("hops", []check{
			{name: "two in front", args: ask("http://any/?headers", "-H", "X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.0.0.1", "-H", "X-Forwarded-Proto: https"), show: seen(xff, from, scheme), want: "X-Forwarded-For=6.6.6.6, 203.0.113.7, 10.0.0.1,SELF X-Envoy-External-Address=203.0.113.7 X-Forwarded-Proto=https"},
			{name: "the nearer says nothing of use", args: ask("http://any/?headers", "-H", "X-Forwarded-For: 203.0.113.7, unknown"), show: seen(from), want: "X-Envoy-External-Address=203.0.113.7"},
			{name: "the farther neither", args: ask("http://any/?headers", "-H", "X-Forwarded-For: unknown, 10.0.0.1"), show: seen(from), want: "X-Envoy-External-Address=SELF"},
			{name: "around one of them", args: ask("http://any/?headers", "-H", "X-Forwarded-For: 203.0.113.7"), show: seen(from, scheme), want: "X-Envoy-External-Address=SELF X-Forwarded-Proto=http"},
			{name: "remoteIpBlocks", args: ask("http://any/staff", "-H", "X-Forwarded-For: 203.0.113.7, 10.0.0.1"), want: "403 HTTP/1.1"},
			{name: "remoteIpBlocks, another client", args: ask("http://any/staff", "-H", "X-Forwarded-For: 203.0.113.7, 198.51.100.1, 10.0.0.1"), want: "200 HTTP/1.1 catalog"},
			{name: "ipBlocks are of who is connected", args: ask("http://any/direct", "-H", "X-Forwarded-For: 203.0.113.7, 10.0.0.1"), want: "200 HTTP/1.1 catalog"},
		})
		b.proxied()
	})
}

// proxied asks a gateway that wants PROXY headers.
func (b *border) proxied() {
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\x1f\x90\x00\x50"
	local := "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	for _, c := range []struct{ name, first, path, want string }{
		{"version 1", "PROXY TCP4 203.0.113.7 10.0.0.1 4000 80\r\n", "/", "HTTP/1.1 200 OK"},
		{"version 1, ipBlocks are of the load balancer", "PROXY TCP4 203.0.113.7 10.0.0.1 4000 80\r\n", "/direct", "HTTP/1.1 200 OK"},
		{"version 1, a policy's remoteIpBlocks", "PROXY TCP4 203.0.113.7 10.0.0.1 4000 80\r\n", "/staff", "HTTP/1.1 403 Forbidden"},
		{"another client", "PROXY TCP4 198.51.100.1 10.0.0.1 4000 80\r\n", "/staff", "HTTP/1.1 200 OK"},
		{"IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 4000 80\r\n", "/staff", "HTTP/1.1 200 OK"},
		{"version 2", v2, "/staff", "HTTP/1.1 403 Forbidden"},
		{"a health check of the load balancer", local, "/staff", "HTTP/1.1 200 OK"},
		{"no header", "", "/", "no answer"},
		{"half a header", "PROXY TCP4 203.0.113.7\r\n", "/", "no answer"},
	} {
		conn, err := net.Dial("tcp", b.doors["behind:80"])
		if err != nil {
			b.t.Fatal(err)
		}
		got := firstLine(conn, c.first+"GET "+c.path+" HTTP/1.1\r\nHost: any\r\nX-Forwarded-For: 198.51.100.1\r\nConnection: close\r\n\r\n")
		_ = conn.Close()
		if got != c.want {
			b.t.Errorf("PROXY, %s: %q, want %q", c.name, got, c.want)
		}
	}
}
