//go:build lab

package envoy

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestEdgeSample: what docs/gateway.md shows with the samples.
func TestEdgeSample(t *testing.T) {
	atBothBorders(t, func(b *border) {
		servers := newAuthority(b.t, "Shop Test CA")
		b.roots = filepath.Join(b.dir, "roots.pem")
		if err := os.WriteFile(b.roots, servers.pem(), 0o600); err != nil {
			b.t.Fatal(err)
		}
		shop := servers.issue("*.example.com")
		b.apply(secretYAML("shop-cert", "tls.crt", shop.cert, "tls.key", shop.key))
		b.lab.must("lab", "apply", "-f", "../../manifests/samples/gateway")
		b.lab.must("lab", "apply", "-f", "../../manifests/samples/edge")
		b.lab.must("lab", "wait", "--timeout", "60s")
		b.forward("front", "443", "80")
		b.until("200 HTTP/2 web", "front", "https://shop.example.com/")
		b.until("403 HTTP/2", "front", "https://shop.example.com/admin")
		b.until("418 HTTP/2", "front", "-H", "x-fault: abort", "https://faults.example.com/")
		as := func(claims string, args ...string) []string { return append(bearer(b.t, claims), args...) }
		b.run("front", []check{
			{name: "catalog", args: []string{"https://shop.example.com/catalog"}, want: "200 HTTP/2 catalog"},
			{name: "the second version", args: []string{"-H", "x-version: v2", "https://shop.example.com/catalog"}, show: version, want: "catalog/v2"},
			{name: "to https", args: []string{"http://shop.example.com/foo"}, show: location, want: "301 HTTP/1.1 https://shop.example.com/foo"},
			{name: "a user", args: as(`{"iss":"https://id.example","sub":"b","groups":["user"]}`, "https://shop.example.com/admin"), want: "403 HTTP/2"},
			{name: "an admin", args: as(`{"iss":"https://id.example","sub":"a","groups":["admin"]}`, "https://shop.example.com/admin"), want: "200 HTTP/2 web"},
			{name: "a bad token", args: []string{"-H", "authorization: Bearer x.y.z", "https://shop.example.com/"}, want: "401 HTTP/2"},
			{name: "no fault", args: []string{"https://faults.example.com/"}, want: "200 HTTP/2 catalog"},
		})
		begin := time.Now()
		if got := plain(b, b.curl("front", "-H", "x-fault: delay", "https://faults.example.com/")); got != "200 HTTP/2 catalog" || time.Since(begin) < 500*time.Millisecond {
			b.t.Errorf("delay: %s after %v", got, time.Since(begin))
		}
		begin = time.Now()
		passed := 0
		for range 9 {
			if plain(b, b.curl("front", "https://shop.example.com/catalog/search?q=a")) == "200 HTTP/2 catalog" {
				passed++
			}
		}
		// What drips in while the test asks is let through too.
		if most := 5 + 1 + int(time.Since(begin)/(12*time.Second)); passed < 5 || passed > most || passed == 9 {
			b.t.Errorf("%d of 9 searches passed, want 5 to %d", passed, most)
		}
	})
}
