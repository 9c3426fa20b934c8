//go:build lab

package envoy

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"
)

// TestEdgeBytes: requests as no client library writes them, byte for byte; what differs from Envoy stands in docs/compatibility.md.
func TestEdgeBytes(t *testing.T) {
	const host, end = "Host: shop.example.com\r\n", "Connection: close\r\n\r\n"
	get, post := "GET / HTTP/1.1\r\n"+host, "POST / HTTP/1.1\r\n"+host
	cases := []struct{ name, text, want, envoys string }{
		{"plain", get + end, "200", ""},
		{"absolute target", "GET https://shop.example.com/ HTTP/1.1\r\nHost: other\r\n" + end, "200", ""},
		{"host in capitals", "GET / HTTP/1.1\r\nHost: SHOP.Example.com\r\n" + end, "200", ""},
		{"host with a port", "GET / HTTP/1.1\r\nHost: shop.example.com:8443\r\n" + end, "200", ""},
		{"host without a route", "GET / HTTP/1.1\r\nHost: nobody.example.com\r\n" + end, "404", ""},
		{"no host", "GET / HTTP/1.1\r\n" + end, "400", ""},
		{"two hosts", "GET / HTTP/1.1\r\n" + host + "Host: other\r\n" + end, "400", "404"},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n" + host + "\r\n", "200", "426"},
		{"an unknown method", "BREW / HTTP/1.1\r\n" + host + end, "200", "400"},
		{"HEAD", "HEAD / HTTP/1.1\r\n" + host + end, "200", ""},
		{"CONNECT", "CONNECT shop.example.com:443 HTTP/1.1\r\nHost: shop.example.com:443\r\n\r\n", "400", "403"},
		{"dots", "GET /x/../y HTTP/1.1\r\n" + host + end, "200", ""},
		{"fragment", "GET /a#b HTTP/1.1\r\n" + host + end, "400", ""},
		{"no slash", "GET a HTTP/1.1\r\n" + host + end, "400", ""},
		{"a backslash", "GET \\a HTTP/1.1\r\n" + host + end, "400", ""},
		{"a path beyond ASCII", "GET /a\xe9 HTTP/1.1\r\n" + host + end, "200", "400"},
		{"chunked", post + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "200", ""},
		{"an unknown coding", post + "Transfer-Encoding: gzip, chunked\r\nConnection: close\r\n\r\n0\r\n\r\n", "501", ""},
		{"a signed length", post + "Content-Length: +3\r\nConnection: close\r\n\r\nabc", "400", ""},
		{"lengths that differ", post + "Content-Length: 3\r\nContent-Length: 4\r\nConnection: close\r\n\r\nabcd", "400", ""},
		{"who waits is told to go on", post + "Expect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", "100", ""},
		{"who waits for something else", post + "Expect: other\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", "417", ""},
		{"a space before the colon", get + "X-A : b\r\n" + end, "400", ""},
		{"a zero byte", get + "X-A: b\x00c\r\n" + end, "400", ""},
		{"a header of 50 KB", get + "X-A: " + strings.Repeat("a", 50000) + "\r\n" + end, "200", ""},
		{"a header of 70 KB", get + "X-A: " + strings.Repeat("a", 70000) + "\r\n" + end, "431", ""},
		{"150 headers", get + strings.Repeat("X-A: b\r\n", 150) + end, "200", "431"},
		{"an offer of HTTP/2", get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "200", ""},
		{"an offer of something else", get + "Connection: Upgrade\r\nUpgrade: other\r\n\r\n", "403", ""},
	}
	atBothBorders(t, func(b *border) {
		openEdge(b)
		for _, c := range cases {
			want := c.want
			if b.envoy && c.envoys != "" {
				want = c.envoys
			}
			conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", b.doors["edge:443"], &tls.Config{ServerName: "shop.example.com", InsecureSkipVerify: true}) //nolint:gosec // others ask for the certificate
			if err != nil {
				b.t.Fatal(err)
			}
			got := firstLine(conn, c.text)
			_ = conn.Close()
			if _, status, _ := strings.Cut(got, " "); !strings.HasPrefix(status, want) {
				b.t.Errorf("%s: %q, want %s", c.name, got, want)
			}
		}
	})
}
