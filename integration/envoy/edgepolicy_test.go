//go:build lab

package envoy

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/marrowmesh/marrow/internal/testkit/tokencorpus"
)

// openPolicies is testdata/policies.yaml with its certificates.
func openPolicies(b *border) {
	b.t.Helper()
	servers := newAuthority(b.t, "servers")
	b.roots = filepath.Join(b.dir, "roots.pem")
	if err := os.WriteFile(b.roots, servers.pem(), 0o600); err != nil {
		b.t.Fatal(err)
	}
	wide, classic := servers.issue("*.example.com"), servers.issue("classic.test")
	b.apply(secretYAML("wide", "tls.crt", wide.cert, "tls.key", wide.key) + secretYAML("classic", "tls.crt", classic.cert, "tls.key", classic.key))
	text, err := os.ReadFile("testdata/policies.yaml")
	if err != nil {
		b.t.Fatal(err)
	}
	b.apply(string(text))
	b.lab.must("lab", "wait", "--timeout", "60s")
	b.forward("edge", "443", "80")
	b.until("200 HTTP/2 catalog", "edge", "https://shop.example.com/catalog")
	b.until("418 HTTP/2", "edge", "-H", "x-fault: abort", "https://classic.test/")
	b.until("403 HTTP/2", "edge", "https://shop.example.com/private")
}

// bearer are curl's arguments for the bearer of a token.
func bearer(t *testing.T, claims string) []string {
	t.Helper()
	raw, err := tokencorpus.Sign(jose.EdDSA, demoKey, claims, map[jose.HeaderKey]any{"kid": "demo"})
	if err != nil {
		t.Fatal(err)
	}
	return []string{"-H", "authorization: Bearer " + raw}
}

// many asks n times, by one curl, and counts the answers by status and who gave them.
func (b *border) many(n int, args ...string) map[string]int {
	b.t.Helper()
	last := len(args) - 1
	args[last] += fmt.Sprintf("?n=[1-%d]", n)
	a := b.curl("edge", append([]string{"-w", "%{http_code} %header{x-marrow-app}\n", "--max-time", "60"}, args...)...)
	out := map[string]int{}
	for line := range strings.Lines(a.status) {
		out[strings.TrimSpace(line)]++
	}
	return out
}

// TestEdgePolicies: what is said of tokens, policies, limits, faults and shares holds at the border.
func TestEdgePolicies(t *testing.T) {
	admin, user := `{"iss":"https://id.example","sub":"a","groups":["admin"]}`, `{"iss":"https://id.example","sub":"b","groups":["user"]}`
	atBothBorders(t, func(b *border) {
		openPolicies(b)
		as := func(claims string, args ...string) []string { return append(bearer(t, claims), args...) }
		b.run("edge", []check{
			{name: "by path", args: []string{"https://shop.example.com/catalog/x"}, want: "200 HTTP/2 catalog"},
			{name: "the rest", args: []string{"https://shop.example.com/"}, want: "200 HTTP/2 web"},

			{name: "no token", args: []string{"https://shop.example.com/private"}, want: "403 HTTP/2"},
			{name: "a user's", args: as(user, "https://shop.example.com/private"), want: "200 HTTP/2 web"},
			{name: "a user's at the admin's", args: as(user, "https://shop.example.com/private/admin"), want: "403 HTTP/2"},
			{name: "an admin's", args: as(admin, "https://shop.example.com/private/admin"), want: "200 HTTP/2 web"},
			{name: "around the policy", args: as(user, "--path-as-is", "https://shop.example.com/x/../private/admin"), want: "403 HTTP/2"},
			{name: "expired", args: as(`{"iss":"https://id.example","exp":1}`, "https://shop.example.com/"), want: "401 HTTP/2"},
			{name: "another issuer's", args: as(`{"iss":"https://evil.example"}`, "https://shop.example.com/"), want: "401 HTTP/2"},
			{name: "no token at all", args: []string{"-H", "Authorization: Bearer x.y.z", "https://shop.example.com/"}, want: "401 HTTP/2"},
			{name: "a claim becomes a header", args: as(user, "-H", "x-user: forged", "https://shop.example.com/catalog?headers"), show: seen("X-User", "Authorization"), want: "X-User=b Authorization="},
			{name: "a forged one does not stay", args: []string{"-H", "x-user: forged", "https://shop.example.com/catalog?headers"}, show: seen("X-User"), want: "X-User="},
			{name: "method and host", args: []string{"-X", "DELETE", "https://shop.example.com/"}, want: "403 HTTP/2"},
			{name: "method at another host", args: []string{"-X", "DELETE", "https://classic.test/"}, want: "200 HTTP/2 catalog"},
			{name: "strangers are nobody", args: []string{"https://shop.example.com/strangers"}, want: "200 HTTP/2 web"},

			{name: "abort", args: []string{"-H", "x-fault: abort", "https://classic.test/"}, want: "418 HTTP/2"},
			{name: "redirect", args: []string{"https://classic.test/here"}, show: location, want: "301 HTTP/2 https://other.test/there"},
			{name: "direct answer", args: []string{"https://classic.test/said"}, show: func(_ *border, a answer) string { return a.status + " " + a.body }, want: "203 HTTP/2 said"},
			{name: "a claim chooses the route", args: as(admin, "https://classic.test/"), show: version, want: "catalog/v2"},
			{name: "another does not", args: as(user, "https://classic.test/"), show: version, want: "catalog/v1"},
			{name: "none neither", args: []string{"https://classic.test/"}, show: version, want: "catalog/v1"},
			{name: "delegated", args: []string{"https://classic.test/team/new/x"}, show: version, want: "catalog/v2"},
			{name: "delegated, the rest", args: []string{"https://classic.test/team"}, show: version, want: "catalog/v1"},
			{name: "to https", args: []string{"http://classic.test/a?b=c"}, show: location, want: "301 HTTP/1.1 https://classic.test/a?b=c"},
		})
		b.counted(user, admin)
		if !b.envoy { // a stock Envoy has no such series
			b.series()
		}
	})
}

// series are what our gateway tells of itself.
func (b *border) series() {
	pod := regexp.MustCompile(`edge-istio-\S+`).FindString(b.lab.must("lab", "get", "pods", "-n", "shop"))
	page := b.lab.must("lab", "exec", pod, "-n", "shop", "--", "curl", "-sS", "http://127.0.0.1:15020/stats/prometheus")
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "istio_requests_total{") || !strings.Contains(line, `destination_workload="web"`) {
			continue
		}
		for _, want := range []string{
			`reporter="source"`, `source_workload="edge-istio"`, `source_principal="spiffe://cluster.local/ns/shop/sa/edge-istio"`,
			`destination_principal="spiffe://cluster.local/ns/shop/sa/web"`, `connection_security_policy="unknown"`,
		} {
			if !strings.Contains(line, want) {
				b.t.Errorf("no %s in %s", want, line)
			}
		}
		return
	}
	b.t.Errorf("no series of requests to web:\n%s", page)
}

// counted are answers that only numbers tell.
func (b *border) counted(user, admin string) {
	t := b.t
	begin := time.Now()
	if got := plain(b, b.curl("edge", "-H", "x-fault: delay", "https://classic.test/")); got != "200 HTTP/2 catalog" || time.Since(begin) < 600*time.Millisecond {
		t.Errorf("delay: %s after %v", got, time.Since(begin))
	}
	exactly := func(what string, got map[string]int, want string) {
		t.Helper()
		if fmt.Sprint(got) != want {
			t.Errorf("%s: %v, want %s", what, got, want)
		}
	}
	exactly("limit of an address", b.many(8, "https://shop.example.com/limited"), "map[200 web/v1:3 429:5]")
	exactly("the same over HTTP/1.1", b.many(2, "--http1.1", "https://shop.example.com/limited"), "map[429:2]")
	exactly("no limit elsewhere", b.many(8, "https://shop.example.com/unlimited"), "map[200 web/v1:8]")
	exactly("limit of a claim", b.many(4, append(bearer(t, user), "https://shop.example.com/claimed")...), "map[200 web/v1:2 429:2]")
	exactly("another's claim", b.many(4, append(bearer(t, admin), "https://shop.example.com/claimed")...), "map[200 web/v1:2 429:2]")
	exactly("nobody has an identity", b.many(4, "https://shop.example.com/nobody"), "map[200 web/v1:2 429:2]")
	if got := b.many(6, "https://shop.example.com/slow"); got["200 catalog/v1"]+got["200 catalog/v2"] != 4 || got["429"] != 2 {
		t.Errorf("limit of a route: %v", got)
	}
	if a := b.curl("edge", "https://shop.example.com/limited"); a.header.Get("X-Ratelimit-Limit") == "" || a.header.Get("X-Ratelimit-Remaining") != "0" {
		t.Errorf("limit's headers: %v", a.header)
	}
	// Outside of these bounds once in more than a million.
	if got := b.many(400, "https://shop.example.com/catalog"); got["200 catalog/v2"] < 45 || got["200 catalog/v2"] > 120 || got["200 catalog/v1"]+got["200 catalog/v2"] != 400 {
		t.Errorf("a fifth to the second version: %v", got)
	}
	if got := b.many(400, "-H", "x-fault: some", "https://classic.test/"); got["503"] < 76 || got["503"] > 166 || got["503"]+got["200 catalog/v1"]+got["200 catalog/v2"] != 400 {
		t.Errorf("three of ten fail: %v", got)
	}
}
