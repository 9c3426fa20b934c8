package waypoint

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

const behaviourServices = `
service web.shop 10.96.0.1 80/http,9090/tcp,81/auto
service web-v1.shop 10.96.0.2 80/http
service web-v2.shop 10.96.0.3 80/http
service plain.shop 10.96.0.4 80/http
service rpc.shop 10.96.0.5 80/http2,81/auto
endpoint web.shop 127.0.0.2 version=v1
endpoint web.shop 127.0.0.3 version=v2
endpoint web-v1.shop 127.0.0.2
endpoint web-v2.shop 127.0.0.3
endpoint plain.shop 127.0.0.2
endpoint rpc.shop 127.0.0.2
workload web.shop 127.0.0.2
`

const behaviourObjects = `
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: rpc, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: rpc, port: 80}]
  rules:
  - matches: [{method: {service: shop.Cart}}]
    backendRefs: [{name: rpc, port: 80}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-drop, namespace: shop}
spec:
  action: DENY
  targetRefs: [{group: "", kind: Service, name: rpc}]
  rules: [{to: [{operation: {paths: [/shop.Cart/Drop], methods: [POST]}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - matches: [{headers: [{name: x-v2, value: "1"}]}]
    backendRefs: [{name: web-v2, port: 80}]
  - matches: [{path: {value: /gone}}]
    backendRefs: [{name: web-v9, port: 80}]
  - matches: [{path: {value: /rewrite}}]
    filters:
    - {type: URLRewrite, urlRewrite: {hostname: new.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-add, value: "100%"}]}}
    backendRefs: [{name: web-v1, port: 80}]
  - matches: [{path: {value: /redirect}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: other.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /to}}}]
  - matches: [{path: {value: /slow}}]
    timeouts: {request: 300ms}
    backendRefs: [{name: web-v1, port: 80}]
  - backendRefs: [{name: web-v1, port: 80, weight: 90}, {name: web-v2, port: 80, weight: 10}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: plain, namespace: shop}
spec:
  hosts: [plain]
  http:
  - match: [{uri: {prefix: /delay}}]
    fault: {delay: {fixedDelay: 0.5s, percentage: {value: 100}}}
    route: [{destination: {host: plain}}]
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: plain}}]
  - match: [{uri: {prefix: /subset}}]
    route: [{destination: {host: web, subset: v2, port: {number: 80}}}]
  - match: [{uri: {prefix: /lost}}]
    route: [{destination: {host: nowhere}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
    to: [{operation: {methods: [GET]}}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/raw]}}]
    to: [{operation: {ports: ["9090"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: shop}
spec:
  action: DENY
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  rules: [{to: [{operation: {paths: [/secret*]}}]}]
`

// TestEnvoyBehaves runs a stock Envoy with derived resources and asks it what the routes and policies promise.
func TestEnvoyBehaves(t *testing.T) {
	b := startBench(t, behaviourServices, behaviourObjects)
	client, stranger := account("shop", "client"), account("elsewhere", "stranger")
	const web, plain = "10.96.0.1:80", "10.96.0.4:80"
	cases := []struct {
		name, authority, what string
		stranger              bool
		status                int
		header                string // name=value that the answer must have
	}{
		{"header match", web, "GET /a x-v2=1", false, 200, "x-authority=127.0.0.3:8080"},
		{"method refused", web, "DELETE /a", false, 403, ""},
		{"identity refused", web, "GET /a", true, 403, ""},
		{"gateway policy", web, "GET /secret/x", false, 403, ""},
		{"no policy, no refusal", "10.96.0.2:80", "DELETE /a", true, 200, "x-authority=127.0.0.2:8080"},
		{"gateway policy everywhere", "10.96.0.2:80", "GET /secret", true, 403, ""},
		{"escape from a policy", "10.96.0.2:80", "GET /x/../secret", true, 403, ""},
		{"missing backend", web, "GET /gone", false, 500, ""},
		{"prefix rewrite", web, "GET /rewrite/x?q=1", false, 200, "x-path=/x?q=1"},
		{"prefix rewrite to root", web, "GET /rewrite", false, 200, "x-path=/"},
		{"host rewrite", web, "GET /rewrite", false, 200, "x-host=new.example"},
		{"header added literally", web, "GET /rewrite", false, 200, "x-seen=100%"},
		{"whole segments", web, "GET /rewriter x-v2=1", false, 200, "x-path=/rewriter"},
		{"redirect", web, "GET /redirect/a", false, 302, "location=http://other.example/to/a"},
		{"timeout", web, "GET /slow x-sleep=2s", false, 504, ""},
		{"abort", plain, "GET /abort", true, 418, ""},
		{"subset", plain, "GET /subset", true, 200, "x-authority=127.0.0.3:8080"},
		{"missing destination", plain, "GET /lost", true, 503, ""},
		{"no route", plain, "GET /none", true, 404, ""},
		{"undeclared port", "10.96.0.1:81", "GET /a", false, 200, ""},
		{"HTTP/2", "10.96.0.5:80", "h2 POST /shop.Cart/Get", true, 200, "x-proto=HTTP/2.0"},
		{"HTTP/2 method policy", "10.96.0.5:80", "h2 POST /shop.Cart/Drop", true, 403, ""},
		{"HTTP/2 on an undeclared port", "10.96.0.5:81", "h2 POST /a", true, 200, "x-proto=HTTP/2.0"},
		{"HTTP/1 on an undeclared port", "10.96.0.5:81", "POST /a", true, 200, "x-proto=HTTP/1.1"},
		{"by pod address", "127.0.0.2:8123", "GET /a", true, 200, "x-authority=127.0.0.2:8123"},
		{"gateway policy by pod address", "127.0.0.2:8123", "GET /secret", true, 403, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			id := client
			if c.stranger {
				id = stranger
			}
			got, err := b.ask(id, c.authority, c.what)
			if err != nil {
				t.Fatal(err)
			}
			if got.status != c.status {
				t.Errorf("status %d, want %d (%q)", got.status, c.status, got.body)
			}
			if name, value, ok := strings.Cut(c.header, "="); ok && got.header.Get(name) != value {
				t.Errorf("%s is %q, want %q", name, got.header.Get(name), value)
			}
		})
	}
	t.Run("weights", func(t *testing.T) {
		count := map[string]int{}
		for range 200 {
			got, err := b.ask(client, web, "GET /a")
			if err != nil {
				t.Fatal(err)
			}
			count[got.header.Get("x-authority")]++
		}
		// Ten percent of 200; outside of 4..44 once in many millions.
		if n := count["127.0.0.3:8080"]; n < 4 || n > 44 || n+count["127.0.0.2:8080"] != 200 {
			t.Errorf("shares %v", count)
		}
	})
	t.Run("delay", func(t *testing.T) {
		got, err := b.ask(stranger, plain, "GET /delay")
		if err != nil || got.status != 200 || got.took < 500*time.Millisecond {
			t.Errorf("%v %+v", err, got)
		}
	})
	t.Run("waypoint's identity onward", func(t *testing.T) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if fmt.Sprint(b.peers) != "map[spiffe://cluster.local/ns/shop/sa/waypoint:true]" {
			t.Errorf("node proxies saw %v", b.peers)
		}
	})
}

// TestEnvoyTCP: byte streams pass, or are closed when a policy refuses them.
func TestEnvoyTCP(t *testing.T) {
	// The policy on paths would deny every stream: bytes have no path.
	objects := strings.ReplaceAll(behaviourObjects, "kind: Gateway, name: waypoint", "kind: Gateway, name: other")
	b := startBench(t, behaviourServices, objects)
	read := func(name, authority string) string {
		conn, err := b.tunnel(account("shop", name), authority)
		if err != nil {
			return "refused"
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(conn, "hello there\r\n\r\n"); err != nil {
			return "closed"
		}
		buf := make([]byte, 64)
		n, err := io.ReadAtLeast(conn, buf, 5)
		if err != nil {
			return "closed"
		}
		return strings.TrimSpace(string(buf[:min(n, 3)]))
	}
	if got := read("raw", "10.96.0.1:9090"); got != "tcp" {
		t.Errorf("allowed stream: %s", got)
	}
	if got := read("stranger", "10.96.0.1:9090"); got == "tcp" {
		t.Errorf("refused stream: %s", got)
	}
	if got := read("raw", "10.96.0.9:80"); got == "tcp" {
		t.Errorf("an address that is not this waypoint's: %s", got)
	}
}
