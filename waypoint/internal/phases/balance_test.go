package phases_test

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// seed makes the world's chances the same in every run.
func (w *world) seed(n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.random = rand.New(rand.NewPCG(n, 1)).Uint64N
}

// likely demands that got of n is what a chance of p gives, within five standard deviations.
func likely(t *testing.T, what string, got, n int, p float64) {
	t.Helper()
	mean, dev := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
	if math.Abs(float64(got)-mean) > 5*dev {
		t.Errorf("%s: %d of %d, want %.0f give or take %.0f", what, got, n, mean, 5*dev)
	}
}

func percent(n uint32) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: n, Denominator: typev3.FractionalPercent_HUNDRED}
}

// TestSharesByCount: weights, faults and mirrors are what they say, counted.
func TestSharesByCount(t *testing.T) {
	const n = 1200
	var mirrored atomic.Int32
	w := newWorld(t)
	w.seed(11)
	w.pod("10.0.0.1:8080", named("v1"))
	w.pod("10.0.0.2:8080", named("v2"))
	w.pod("10.0.0.3:8080", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { mirrored.Add(1) }))
	r := to("/", "v1", func(a *routev3.RouteAction) {
		a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: []*routev3.WeightedCluster_ClusterWeight{
			{Name: "v1", Weight: wrapperspb.UInt32(3)}, {Name: "v2", Weight: wrapperspb.UInt32(1)},
		}}}
		a.RequestMirrorPolicies = []*routev3.RouteAction_RequestMirrorPolicy{{
			Cluster: "mirror", RuntimeFraction: &corev3.RuntimeFractionalPercent{DefaultValue: percent(20)},
		}}
	})
	r.TypedPerFilterConfig = map[string]*anypb.Any{"envoy.filters.http.fault": pack(t, &faultv3.HTTPFault{
		Abort: &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_HttpStatus{HttpStatus: 418}, Percentage: percent(10)},
		Delay: &faultcommonv3.FaultDelay{FaultDelaySecifier: &faultcommonv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(time.Millisecond)}, Percentage: percent(5)},
	})}
	w.mustApply(cluster(t, "v1"), cluster(t, "v2"), cluster(t, "mirror"), endpoints("v1", "10.0.0.1:8080"), endpoints("v2", "10.0.0.2:8080"),
		endpoints("mirror", "10.0.0.3:8080"), terminate(t), internal(t, manager(t)), routes(t, nil, r))
	c := w.client(shopper, vip+":80", false)
	got := map[string]int{}
	for range n {
		resp, _ := do(t, c, "GET", "/")
		if resp.StatusCode != 200 {
			got[fmt.Sprint(resp.StatusCode)]++
			continue
		}
		got[resp.Header.Get("X-App")]++
	}
	likely(t, "aborted", got["418"], n, 0.1)
	likely(t, "v1", got["v1"], n, 0.9*0.75)
	likely(t, "v2", got["v2"], n, 0.9*0.25)
	if got["418"]+got["v1"]+got["v2"] != n {
		t.Errorf("got %v", got)
	}
	w.stop()
	likely(t, "mirrored", int(mirrored.Load()), n, 0.9*0.2)
	delayed := 0
	for _, l := range w.log.all() {
		if strings.Contains(l, "DI") {
			delayed++
		}
	}
	likely(t, "delayed", delayed, n, 0.05)
}

// TestRetriesByCount: of a backend that fails by chance, as many requests fail in the end as luck runs out for.
func TestRetriesByCount(t *testing.T) {
	const n = 600
	chance := rand.New(rand.NewPCG(5, 5))
	var mu sync.Mutex
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if chance.Float64() < 0.4 {
			rw.WriteHeader(503)
		}
	}), retry("5xx", 2))
	c := w.client(shopper, vip+":80", false)
	failed := 0
	for range n {
		if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != 200 {
			failed++
		}
	}
	likely(t, "failed three times", failed, n, 0.4*0.4*0.4)
}

func TestMirrorCopiesBodies(t *testing.T) {
	got := make(chan string, 1)
	w := newWorld(t)
	w.pod("10.0.0.1:8080", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.Copy(rw, r.Body) }))
	w.pod("10.0.0.3:8080", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- fmt.Sprint(r.Method, " ", len(b))
	}))
	w.mustApply(cluster(t, "v1"), cluster(t, "mirror"), endpoints("v1", "10.0.0.1:8080"), endpoints("mirror", "10.0.0.3:8080"),
		terminate(t), internal(t, manager(t)), routes(t, nil, to("/", "v1", func(a *routev3.RouteAction) {
			a.RequestMirrorPolicies = []*routev3.RouteAction_RequestMirrorPolicy{{Cluster: "mirror"}}
		})))
	for _, two := range []bool{false, true} {
		c := w.client(shopper, vip+":80", two)
		for _, size := range []int{5, 300_000, 3 << 20} {
			body := strings.Repeat("x", size)
			resp, echo := do(t, c, "POST", "/", func(r *http.Request) {
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(size)
			})
			if resp.StatusCode != 200 || len(echo) != size {
				t.Fatalf("the original: %d, %d bytes", resp.StatusCode, len(echo))
			}
			if size > 1<<20 {
				continue // too long to hold: there is no copy
			}
			if copied := <-got; copied != fmt.Sprint("POST ", size) {
				t.Errorf("the copy is %s", copied)
			}
		}
	}
	w.stop()
	if len(got) != 0 {
		t.Errorf("a body that is too long was copied: %s", <-got)
	}
}

func TestAffinityByCookie(t *testing.T) {
	w := newWorld(t)
	w.seed(3)
	for i := 1; i <= 3; i++ {
		w.pod(fmt.Sprintf("10.0.0.%d:8080", i), named(fmt.Sprint("v", i)))
	}
	ring := func(c *clusterv3.Cluster) { c.LbPolicy = clusterv3.Cluster_RING_HASH }
	w.mustApply(cluster(t, "v1", ring), endpoints("v1", "10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"), terminate(t), internal(t, manager(t)),
		routes(t, nil, to("/", "v1", func(a *routev3.RouteAction) {
			a.HashPolicy = []*routev3.RouteAction_HashPolicy{{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{Cookie: &routev3.RouteAction_HashPolicy_Cookie{
				Name: "user", Path: "/", Ttl: durationpb.New(time.Hour), Attributes: []*routev3.RouteAction_HashPolicy_CookieAttribute{{Name: "SameSite", Value: "Strict"}, {Name: "Secure"}},
			}}}}
		})))
	c := w.client(shopper, vip+":80", false)
	first, _ := do(t, c, "GET", "/")
	set := first.Header.Get("Set-Cookie")
	for _, want := range []string{"user=", "Path=/", "Max-Age=3600", "HttpOnly", "; SameSite=Strict; Secure"} {
		if !strings.Contains(set, want) {
			t.Errorf("Set-Cookie %q lacks %s", set, want)
		}
	}
	pair, _, _ := strings.Cut(set, ";")
	for range 20 {
		resp, _ := do(t, c, "GET", "/", func(r *http.Request) { r.Header.Set("Cookie", pair) })
		if resp.Header.Get("X-App") != first.Header.Get("X-App") || resp.Header.Get("Set-Cookie") != "" {
			t.Fatalf("went to %s with cookie %q", resp.Header.Get("X-App"), resp.Header.Get("Set-Cookie"))
		}
	}
}

func TestOverflowIsTold(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t)
	w.pod("10.0.0.1:8080", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	w.mustApply(cluster(t, "v1", func(c *clusterv3.Cluster) {
		c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRequests: wrapperspb.UInt32(1)}}}
	}), endpoints("v1", "10.0.0.1:8080"), terminate(t), internal(t, manager(t)), routes(t, nil, to("/", "v1")))
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(t, w.client(shopper, vip+":80", false), "GET", "/first")
	}()
	c := w.client(shopper, vip+":80", false)
	for w.ups.Get("v1").Hosts[0].Active() == 0 {
		time.Sleep(time.Millisecond)
	}
	resp, _ := do(t, c, "GET", "/second")
	if resp.StatusCode != 503 || resp.Header.Get("X-Envoy-Overloaded") != "true" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	close(release)
	<-done
	w.stop()
	if l := strings.Join(w.log.all(), "\n"); !strings.Contains(l, "/second 503 UO") {
		t.Errorf("log %q", l)
	}
}

func TestBackOffByTheAnswer(t *testing.T) {
	var at []time.Time
	var mu sync.Mutex
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if at = append(at, time.Now()); len(at) == 1 {
			rw.Header().Set("Retry-After", "1")
			rw.WriteHeader(503)
		}
	}), retry("5xx", 1), func(a *routev3.RouteAction) {
		a.RetryPolicy.RateLimitedRetryBackOff = &routev3.RetryPolicy_RateLimitedRetryBackOff{
			ResetHeaders: []*routev3.RetryPolicy_ResetHeader{{Name: "Retry-After", Format: routev3.RetryPolicy_SECONDS}},
		}
	})
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/"); resp.StatusCode != 200 || at[1].Sub(at[0]) < 900*time.Millisecond {
		t.Errorf("got %d after %v", resp.StatusCode, at)
	}
}

func TestRateLimitedAnswersAreLeftAlone(t *testing.T) {
	for on, want := range map[string]int32{"5xx": 1, "5xx,envoy-ratelimited": 3} {
		var n atomic.Int32
		w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			n.Add(1)
			rw.Header().Set("X-Envoy-Ratelimited", "true")
			rw.WriteHeader(503)
		}), retry(on, 2))
		do(t, w.client(shopper, vip+":80", false), "GET", "/")
		if n.Load() != want {
			t.Errorf("%s: %d attempts, want %d", on, n.Load(), want)
		}
	}
}
