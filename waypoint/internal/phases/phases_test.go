package phases_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// do sends a request and reads the whole answer.
func do(t *testing.T, c *http.Client, method, path string, change ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://web"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func header(k, v string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(k, v) }
}

func TestRequestGoesThrough(t *testing.T) {
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			w := basic(t)
			c := w.client(shopper, vip+":80", two)
			resp, body := do(t, c, "GET", "/a?b=c", header("X-Forwarded-Client-Cert", "forged"))
			if resp.StatusCode != 200 || body != "hello from v1" {
				t.Fatalf("got %d %q", resp.StatusCode, body)
			}
			for k, want := range map[string]string{
				"Saw-Path": "/a?b=c", "Saw-Host": "web", "Saw-X-Request-Id": "id-1", "Saw-X-Forwarded-Proto": "http",
				"Saw-X-Forwarded-Client-Cert": "", "Server": "istio-envoy",
			} {
				if got := resp.Header.Get(k); got != want {
					t.Errorf("%s: got %q, want %q", k, got, want)
				}
			}
			w.stop()
			if got := w.log.all()[0]; got != "GET /a?b=c 200 - via_upstream v1 1" {
				t.Errorf("log line %q", got)
			}
		})
	}
}

func TestCanaryWeights(t *testing.T) {
	r := to("/", "")
	r.GetRoute().ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: []*routev3.WeightedCluster_ClusterWeight{
		{Name: "v1", Weight: wrapperspb.UInt32(90)}, {Name: "v2", Weight: wrapperspb.UInt32(10)},
	}}}
	w := basic(t, r)
	n := uint64(0)
	w.random = func(total uint64) uint64 {
		if total == 100 {
			n++
			return n - 1
		}
		return 0
	}
	c := w.client(shopper, vip+":80", false)
	got := map[string]int{}
	for range 100 {
		resp, _ := do(t, c, "GET", "/")
		got[resp.Header.Get("X-App")]++
	}
	if got["v1"] != 90 || got["v2"] != 10 {
		t.Errorf("got %v", got)
	}
}

func TestHeaderMatch(t *testing.T) {
	r := to("/", "v2")
	r.Match.Headers = []*routev3.HeaderMatcher{{Name: "x-user", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "tester"}},
	}}}
	w := basic(t, r, to("/", "v1"))
	c := w.client(shopper, vip+":80", false)
	if resp, _ := do(t, c, "GET", "/", header("X-User", "tester")); resp.Header.Get("X-App") != "v2" {
		t.Error("the tester did not get v2")
	}
	if resp, _ := do(t, c, "GET", "/"); resp.Header.Get("X-App") != "v1" {
		t.Error("somebody else did not get v1")
	}
}

func TestRBACByMethodAndPrincipal(t *testing.T) {
	w := basic(t)
	w.mustApply(routes(t, map[string]*anypb.Any{
		"marrow.rbac.deny": open(t)["marrow.rbac.deny"], "marrow.rbac.allow": pack(t, allow([]string{"GET"}, shopper)),
	}, to("/", "v1")))
	c := w.client(shopper, vip+":80", false)
	if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != 200 {
		t.Errorf("GET: %d", resp.StatusCode)
	}
	resp, body := do(t, c, "DELETE", "/")
	if resp.StatusCode != 403 || body != "RBAC: access denied" {
		t.Errorf("DELETE: %d %q", resp.StatusCode, body)
	}
	other := w.client("spiffe://td/ns/shop/sa/other", vip+":80", false)
	if resp, _ := do(t, other, "GET", "/"); resp.StatusCode != 403 {
		t.Errorf("somebody else: %d", resp.StatusCode)
	}
	w.stop()
	if got := w.log.all()[1]; !strings.Contains(got, "DELETE / 403 - rbac_access_denied_matched_policy[none]") {
		t.Errorf("log line %q", got)
	}
}

func TestClosedWithoutPolicies(t *testing.T) {
	w := basic(t)
	w.mustApply(routes(t, map[string]*anypb.Any{}, to("/", "v1")))
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/"); resp.StatusCode != 403 {
		t.Errorf("a virtual host that lost its policies answered %d", resp.StatusCode)
	}
}

func fault(t testing.TB, f *faultv3.HTTPFault) *routev3.Route {
	r := to("/", "v1")
	r.TypedPerFilterConfig = map[string]*anypb.Any{"envoy.filters.http.fault": pack(t, f)}
	return r
}

func all() *typev3.FractionalPercent { return &typev3.FractionalPercent{Numerator: 100} }

func TestFaults(t *testing.T) {
	const delay = 80 * time.Millisecond
	r := fault(t, &faultv3.HTTPFault{
		Delay: &commonfault.FaultDelay{Percentage: all(), FaultDelaySecifier: &commonfault.FaultDelay_FixedDelay{FixedDelay: durationpb.New(delay)}},
		Abort: &faultv3.FaultAbort{Percentage: all(), ErrorType: &faultv3.FaultAbort_HttpStatus{HttpStatus: 418}},
	})
	w := basic(t, r)
	c := w.client(shopper, vip+":80", false)
	began := time.Now()
	resp, body := do(t, c, "GET", "/")
	if resp.StatusCode != 418 || body != "fault filter abort" || time.Since(began) < delay {
		t.Errorf("got %d %q after %v", resp.StatusCode, body, time.Since(began))
	}
	w.stop()
	if got := w.log.all()[0]; !strings.Contains(got, "418 DI,FI fault_filter_abort") {
		t.Errorf("log line %q", got)
	}
}

func TestNoRouteNoClusterNoHost(t *testing.T) {
	missing := to("/missing", "UnknownService")
	gone := to("/gone", "UnknownService", func(a *routev3.RouteAction) {
		a.ClusterNotFoundResponseCode = routev3.RouteAction_INTERNAL_SERVER_ERROR
	})
	w := basic(t, to("/here", "v1"), missing, gone, to("/empty", "tcp"))
	w.mustApply(endpoints("tcp"))
	c := w.client(shopper, vip+":80", false)
	for path, want := range map[string]string{
		"/nowhere": "404 NR route_not_found", "/missing": "503 NC cluster_not_found", "/gone": "500 NC cluster_not_found",
		"/empty": "503 UH no_healthy_upstream",
	} {
		resp, _ := do(t, c, "GET", path)
		found := false
		for _, l := range w.log.all() {
			found = found || strings.Contains(l, path+" "+want)
		}
		if !strings.HasPrefix(want, resp.Status[:3]) || !found {
			t.Errorf("%s: got %s, want %q in %q", path, resp.Status, want, w.log.all())
		}
	}
}
