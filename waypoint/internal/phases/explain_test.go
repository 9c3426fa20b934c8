package phases_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
)

// explained is a world whose configuration has something of everything that decides.
func explained(t *testing.T) *world {
	w := newWorld(t)
	w.pod("10.0.0.1:8080", named("v1"))
	w.pod("10.0.0.2:8080", named("v2"))
	is := func(name, value string) *routev3.HeaderMatcher {
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
			StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}},
		}}
	}
	canary := to("/canary", "")
	canary.Name = "canary"
	canary.GetRoute().ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: []*routev3.WeightedCluster_ClusterWeight{
		{Name: "v1", Weight: wrapperspb.UInt32(70)}, {Name: "v2", Weight: wrapperspb.UInt32(30)},
	}}}
	byHeader := to("/", "v2")
	byHeader.Name, byHeader.Match.Headers = "by-header", []*routev3.HeaderMatcher{is("x-version", "2")}
	byQuery := to("/q", "v2")
	byQuery.Name, byQuery.Match.QueryParameters = "by-query", []*routev3.QueryParameterMatcher{{
		Name: "k", QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true},
	}}
	part := to("/part", "v2")
	part.Name, part.Match.RuntimeFraction = "part", &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 40}}
	abort := to("/abort", "v1")
	abort.Name, abort.TypedPerFilterConfig = "abort", map[string]*anypb.Any{"envoy.filters.http.fault": pack(t, &faultv3.HTTPFault{Abort: &faultv3.FaultAbort{
		ErrorType: &faultv3.FaultAbort_HttpStatus{HttpStatus: 418}, Percentage: &typev3.FractionalPercent{Numerator: 50},
	}})}
	slow := to("/slow", "v1")
	slow.Name, slow.TypedPerFilterConfig = "slow", map[string]*anypb.Any{"envoy.filters.http.fault": pack(t, &faultv3.HTTPFault{Delay: &commonfault.FaultDelay{
		FaultDelaySecifier: &commonfault.FaultDelay_FixedDelay{FixedDelay: durationpb.New(1)}, Percentage: &typev3.FractionalPercent{Numerator: 100},
	}})}
	cors := to("/cors", "v1")
	cors.Name, cors.TypedPerFilterConfig = "cors", map[string]*anypb.Any{"envoy.filters.http.cors": pack(t, &corsv3.CorsPolicy{
		AllowOriginStringMatch: []*matcherv3.StringMatcher{{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "http://a"}}}, AllowMethods: "GET",
	})}
	direct := &routev3.Route{Name: "direct", Match: prefix("/direct"), Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 204}}}
	redirect := &routev3.Route{Name: "redirect", Match: prefix("/old"), Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{
		PathRewriteSpecifier: &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: "/new"},
	}}}
	only := to("/v1", "v1")
	only.Name = "v1-only"
	only.TypedPerFilterConfig = map[string]*anypb.Any{"marrow.rbac.allow": pack(t, &rbacv3.RBACPerRoute{})}
	filters := map[string]*anypb.Any{"marrow.rbac.deny": pack(t, &rbacv3.RBACPerRoute{}), "marrow.rbac.allow": pack(t, allow([]string{"GET", "POST", "OPTIONS"}, shopper))}
	w.mustApply(cluster(t, "v1"), cluster(t, "v2"), cluster(t, "tcp"), cluster(t, "empty"), endpoints("v1", "10.0.0.1:8080"), endpoints("v2", "10.0.0.2:8080"),
		endpoints("empty"), terminate(t), internal(t, manager(t)), routes(t, filters,
			canary, byQuery, part, abort, slow, cors, direct, redirect, only, byHeader, to("/gone", "nowhere"), to("/empty", "empty"), to("/any", "v1", retry("5xx", 2))))
	return w
}

// TestExplainEqualsServing: for thousands of random requests, what explain says is what the client gets, by the route and the cluster
// that the access log names, and from an endpoint that explain calls usable.
func TestExplainEqualsServing(t *testing.T) {
	w := explained(t)
	var draw uint64
	w.random = func(uint64) uint64 { return draw }
	clients := map[string]*http.Client{}
	ids := []string{shopper, "spiffe://td/ns/shop/sa/other"}
	for _, id := range ids {
		clients[id+"1"], clients[id+"2"] = w.client(id, vip+":80", false), w.client(id, vip+":80", true)
	}
	rnd := rand.New(rand.NewPCG(7, 9))
	one := func(of ...string) string { return of[rnd.IntN(len(of))] }
	seen := map[string]int{}
	const cases = 4000
	for range cases {
		w.mu.Lock()
		draw = rnd.Uint64() >> 1
		w.mu.Unlock()
		id, two := one(ids...), rnd.IntN(2) == 1
		method := one("GET", "GET", "POST", "DELETE", "OPTIONS")
		target := one("/", "/canary", "/canary/x", "/q?k=1", "/q?x=1", "/part", "/abort", "/slow", "/cors", "/direct/a", "/old/x?y=z", "/v1", "/gone", "/empty", "/any/../v1", "//any", "/%2e/any", "/none", "/any%2fx")
		q := &phases.Question{
			Peer: identity.MustParse(id), Local: identity.MustParse("spiffe://td/ns/shop/sa/wp"), Source: netip.MustParseAddrPort("127.0.0.1:1"),
			Destination: netip.MustParseAddrPort(vip + ":80"), Port: 80, Connect: vip + ":80", HTTP2: two, Method: method, Authority: "web", Target: target, Header: http.Header{},
		}
		for k, vs := range map[string][]string{"X-Version": {"", "2", "3"}, "Origin": {"", "http://a", "http://b"}, "Access-Control-Request-Method": {"", "GET"}} {
			if v := one(vs...); v != "" {
				q.Header.Set(k, v)
			}
		}
		a := w.handler.Explain(t.Context(), q)
		key := id + "1"
		if two {
			key = id + "2"
		}
		got := w.serve(clients[key], q)
		if err := differs(a, got); err != nil {
			t.Fatalf("%s %s %v as %s, draw %d: %v\nexplained: %+v", method, target, q.Header, id, draw, err, a)
		}
		seen[a.Outcome+" "+a.Detail]++
	}
	if len(seen) < 8 || seen["forward "] < cases/10 {
		t.Errorf("the requests did not reach every outcome: %v", seen)
	}
	t.Log(seen)
}

// served is what a client saw, and what the log says.
type served struct {
	status                    int
	app, location, path, host string
	flags, detail, cluster    string
}

func (w *world) serve(c *http.Client, q *phases.Question) served {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), q.Method, "http://web", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.URL.Opaque, req.Header = q.Target, q.Header.Clone()
	if strings.HasPrefix(q.Target, "//") {
		req.URL.Opaque, req.URL.Path = "", q.Target
	}
	before := len(w.log.all())
	if w.log.all()[0] == "" {
		before = 0
	}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	s := served{
		status: resp.StatusCode, app: resp.Header.Get("X-App"), location: resp.Header.Get("Location"), path: resp.Header.Get("Saw-Path"), host: resp.Header.Get("Saw-Host"),
	}
	line := w.log.after(before)
	f := strings.Fields(line)
	if len(f) < 6 {
		w.t.Fatalf("log line %q", line)
	}
	s.flags, s.detail, s.cluster = f[3], f[4], f[5]
	return s
}

func differs(a *phases.Answer, got served) error {
	wrong := func(what string, got, want any) error { return fmt.Errorf("%s: got %v, explained %v", what, got, want) }
	switch a.Outcome {
	case phases.OutcomeForward:
		usable := slices.ContainsFunc(a.Endpoints, func(c phases.Candidate) bool { return c.Usable && c.Workload == got.app })
		path, _, _ := strings.Cut(got.path, "?")
		switch {
		case got.status != 200:
			return wrong("status", got.status, "an endpoint's answer")
		case got.cluster != a.Cluster:
			return wrong("cluster", got.cluster, a.Cluster)
		case !usable:
			return wrong("endpoint", got.app, a.Endpoints)
		case path != a.Path || got.host != a.Host:
			return wrong("upstream's target", got.host+got.path, a.Host+a.Path)
		}
	case phases.OutcomeAnswer, phases.OutcomeRefuse:
		if got.status != a.Status || got.detail != a.Detail || got.location != a.Location || a.Outcome == phases.OutcomeRefuse && got.flags != a.Flags {
			return fmt.Errorf("got %+v", got)
		}
	default:
		return wrong("outcome", got, a.Outcome)
	}
	return nil
}

// TestExplainTellsWhy: the reasons name what decided.
func TestExplainTellsWhy(t *testing.T) {
	w := explained(t)
	ask := func(change ...func(*phases.Question)) *phases.Answer {
		q := &phases.Question{
			Peer: identity.MustParse(shopper), Source: netip.MustParseAddrPort("127.0.0.1:1"), Destination: netip.MustParseAddrPort(vip + ":80"), Port: 80,
			Connect: vip + ":80", Method: "GET", Authority: "web", Target: "/any",
		}
		for _, f := range change {
			f(q)
		}
		return w.handler.Explain(t.Context(), q)
	}
	for name, c := range map[string]struct {
		change func(*phases.Question)
		want   []string
	}{
		"route":  {func(*phases.Question) {}, []string{"dialled 10.96.0.1:80", `path is not "/canary"…`, `header X-Version = "2"`, "takes it: prefix /any", "time limit none; retries: up to 2 on 5xx", "1 usable endpoints of 1"}},
		"denied": {func(q *phases.Question) { q.Method = "DELETE" }, []string{"marrow.rbac.allow refuses it, matching policy: none", "403 rbac_access_denied_matched_policy[none]"}},
		"nobody": {func(q *phases.Question) {
			q.Connect, q.Destination = "10.9.9.9:80", netip.MustParseAddrPort("10.9.9.9:80")
		}, []string{"10.9.9.9:80 is not a destination"}},
		"tcp": {func(q *phases.Question) {
			q.Connect, q.Destination = tcpVIP+":80", netip.MustParseAddrPort(tcpVIP+":80")
		}, []string{"passes bytes on"}},
		"upgrade": {func(q *phases.Question) { q.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"other"}} }, []string{"403 upgrade_failed"}},
	} {
		a := ask(c.change)
		for _, part := range c.want {
			if !strings.Contains(a.String(), part) {
				t.Errorf("%s: no %q in\n%s", name, part, a)
			}
		}
	}
	if a := ask(func(q *phases.Question) { q.Target = "/canary" }); !a.Chance || len(a.Clusters) != 2 {
		t.Errorf("a canary is a matter of chance: %+v", a)
	}
}
