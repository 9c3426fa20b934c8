package waypoint

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"

	"github.com/marrowmesh/marrow/internal/identity"
)

const limitWorld = `
service web.shop 10.96.0.1 80/http
service open.shop 10.96.0.2 80/http
service shared.shop 10.96.0.3 80/http
service closed.shop 10.96.0.4 80/http
service limits.shop 10.96.0.9 8081/http2 foreign
endpoint web.shop 127.0.0.2
endpoint open.shop 127.0.0.2
endpoint shared.shop 127.0.0.2
endpoint closed.shop 127.0.0.2
endpoint limits.shop 127.0.0.9 plain
`

// limitObjects have windows so long that nothing drips in while a test runs.
const limitObjects = `
apiVersion: policy.marrow.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  response: {status: 503, headers: [{name: x-limit, value: "100%"}], limitHeaders: true}
  rules:
  - {match: {paths: [/identity]}, key: {type: identity}, limit: {requests: 2, per: 1d}}
  - {match: {paths: [/header]}, key: {type: header, header: x-user}, limit: {requests: 2, per: 1d}}
  - {match: {paths: [/claim]}, key: {type: claim, claim: sub}, limit: {requests: 2, per: 1d}}
  - {match: {paths: [/address]}, key: {type: sourceIP}, limit: {requests: 2, per: 1d}}
  - {match: {paths: [/burst*]}, limit: {requests: 1, per: 1d, burst: 3}}
  - {match: {paths: ["*/end"], methods: [POST], hosts: ["*.SHOP"], headers: [{name: x-a}, {name: x-b, value: "v*"}]}, limit: {requests: 1, per: 1d}}
  - {match: {paths: [/from], sourcePrincipals: [cluster.local/ns/shop/sa/client]}, limit: {requests: 1, per: 1d}}
  - {match: {paths: [/among], sourceNamespaces: [shop]}, limit: {requests: 1, per: 1d}}
  - {match: {paths: [/prefix], sourcePrincipals: ["cluster.local/ns/shop/*"], sourceNamespaces: [elsewhere]}, limit: {requests: 1, per: 1d}}
---
apiVersion: policy.marrow.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: watched, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: open}]
  mode: observe
  rules: [{limit: {requests: 1, per: 1d}}]
---
apiVersion: policy.marrow.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: slow, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: slow}]
  rules: [{limit: {requests: 1, per: 1d}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: slow, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: open, port: 80}]
  rules:
  - matches: [{path: {value: /slow}}]
    backendRefs: [{name: open, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: rest, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: open, port: 80}]
  rules:
  - backendRefs: [{name: open, port: 80}]
---
apiVersion: policy.marrow.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: shared, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: shared}]
  service: {name: limits, port: 8081, timeout: 5s}
  response: {limitHeaders: true}
  rules:
  - {name: each, scope: global, match: {paths: [/each]}, key: {type: identity}, limit: {requests: 2, per: 1h}}
  - {name: mine, scope: global, match: {paths: [/mine], sourcePrincipals: [cluster.local/ns/shop/sa/client]}, limit: {requests: 1, per: 1d}}
---
apiVersion: policy.marrow.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: closed}]
  service: {name: nowhere, port: 1, failure: deny}
  rules: [{scope: global, match: {paths: [/a]}, limit: {requests: 1, per: 1d}}]
`

// counter is a rate limit service that counts by the limits that come along.
type counter struct {
	rlsv3.UnimplementedRateLimitServiceServer
	mu   sync.Mutex
	seen map[string]uint32
}

func (c *counter) ShouldRateLimit(_ context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK}
	for _, d := range r.GetDescriptors() {
		key := r.GetDomain() + " " + entries(d)
		c.seen[key]++
		s := &rlsv3.RateLimitResponse_DescriptorStatus{Code: rlsv3.RateLimitResponse_OK}
		if l := d.GetLimit(); l != nil {
			s.CurrentLimit = &rlsv3.RateLimitResponse_RateLimit{RequestsPerUnit: l.GetRequestsPerUnit(), Unit: rlsv3.RateLimitResponse_RateLimit_Unit(l.GetUnit())}
			s.LimitRemaining = l.GetRequestsPerUnit() - min(l.GetRequestsPerUnit(), c.seen[key])
			if c.seen[key] > l.GetRequestsPerUnit() {
				s.Code, out.OverallCode = rlsv3.RateLimitResponse_OVER_LIMIT, rlsv3.RateLimitResponse_OVER_LIMIT
			}
		}
		out.Statuses = append(out.GetStatuses(), s)
	}
	return out, nil
}

func entries(d *commonv3.RateLimitDescriptor) string {
	var out []string
	for _, e := range d.GetEntries() {
		out = append(out, e.GetKey()+"="+e.GetValue())
	}
	return strings.Join(out, ",")
}

func startCounter(t *testing.T) *counter {
	t.Helper()
	c := &counter{seen: map[string]uint32{}}
	l, err := net.Listen("tcp", "127.0.0.9:16081") // the world's target port
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	rlsv3.RegisterRateLimitServiceServer(srv, c)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return c
}

// TestEnvoyLimits runs a stock Envoy with derived rate limits: it lets through what the policies say, told apart as they say.
func TestEnvoyLimits(t *testing.T) {
	c := startCounter(t)
	b := startBench(t, limitWorld, limitObjects)
	client, other, stranger := account("shop", "client"), account("shop", "other"), account("elsewhere", "stranger")
	passed := func(who int, authority, what string) (ok int, last reply) {
		t.Helper()
		for range 5 {
			got, err := b.ask([]identity.ID{client, other, stranger}[who], authority, what)
			if err != nil {
				t.Fatal(err)
			}
			if got.status == 200 {
				ok++
			}
			last = got
		}
		return ok, last
	}
	const web, open, shared, closed = "10.96.0.1:80", "10.96.0.2:80", "10.96.0.3:80", "10.96.0.4:80"
	for _, tc := range []struct {
		name string
		who  int
		at   string
		what string
		want int
	}{
		{"identity", 0, web, "GET /identity?q=1", 2},
		{"another identity", 1, web, "GET /identity", 2},
		{"header", 0, web, "GET /header x-user=alice", 2},
		{"another header", 0, web, "GET /header x-user=bob", 2},
		{"the same header by another", 1, web, "GET /header x-user=bob", 0},
		{"without the header", 0, web, "GET /header", 2},
		{"still without the header", 1, web, "GET /header", 0},
		{"without a token", 0, web, "GET /claim", 2},
		{"address", 0, web, "GET /address", 2},
		{"the same address", 1, web, "GET /address", 0},
		{"burst", 0, web, "GET /burst/x", 3},
		{"everything fits", 0, web, "POST /x/end x-a=1 x-b=v2", 1},
		{"another method", 0, web, "GET /x/end x-a=1 x-b=v2", 5},
		{"another header value", 0, web, "POST /x/end x-a=1 x-b=w", 5},
		{"a missing header", 0, web, "POST /x/end x-b=v2", 5},
		{"another host", 0, web, "POST /x/end x-a=1 x-b=v2 host=web.mall", 5},
		{"principal", 0, web, "GET /from", 1},
		{"another principal", 1, web, "GET /from", 5},
		{"namespace", 0, web, "GET /among", 1},
		{"the same namespace", 1, web, "GET /among", 0},
		{"another namespace", 2, web, "GET /among", 5},
		{"two that cannot both be", 0, web, "GET /prefix", 5},
		{"a path that no rule names", 0, web, "GET /else", 5},
		{"observed", 0, open, "GET /", 5},
		{"a route's limit", 0, open, "GET /slow", 1},
		{"global", 0, shared, "GET /each", 2},
		{"global, another identity", 1, shared, "GET /each", 2},
		{"global from a principal", 0, shared, "GET /mine", 1},
		{"global from another", 1, shared, "GET /mine", 5},
		{"nobody to ask, closed", 0, closed, "GET /a", 0},
		{"nobody to ask, not concerned", 0, closed, "GET /b", 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ok, last := passed(tc.who, tc.at, tc.what)
			if ok != tc.want {
				t.Errorf("%d of 5 passed, want %d; the last: %d %q %v", ok, tc.want, last.status, last.body, last.header)
			}
			if ok < 5 && tc.at == web && (last.status != 503 || last.body != "local_rate_limited" || last.header.Get("x-limit") != "100%" || last.header.Get("x-ratelimit-remaining") != "0") {
				t.Errorf("refused with %d %q %v", last.status, last.body, last.header)
			}
			if ok < 5 && tc.at == shared && (last.status != 429 || last.header.Get("x-envoy-ratelimited") != "true" || last.header.Get("x-ratelimit-limit") == "") {
				t.Errorf("refused with %d %q %v", last.status, last.body, last.header)
			}
			if tc.what == "GET /else" && last.header.Get("x-ratelimit-limit") != "" {
				t.Errorf("a request without a limit was told one: %v", last.header)
			}
		})
	}
	want := fmt.Sprintf("marrow policy=shop/shared/each,request=match,identity=%s", client)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen[want] != 5 || len(c.seen) != 3 {
		t.Errorf("the service saw %v", c.seen)
	}
}
