package bench

import (
	"bytes"
	"testing"
	"time"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/marrowmesh/marrow/perf/account"
	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/scenario"
)

func TestRequestLabs(t *testing.T) {
	raw, err := requestsManifest()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for doc := range bytes.SplitSeq(raw, []byte("---\n")) {
		var o struct {
			Kind string
			Spec struct {
				HTTP []any `json:"http"`
			}
		}
		if err := utilyaml.Unmarshal(doc, &o); err != nil {
			t.Fatal(err)
		}
		kinds[o.Kind]++
		kinds["routes"] += len(o.Spec.HTTP)
	}
	if kinds["Gateway"] != 3 || kinds["Service"] != 4 || kinds["VirtualService"] != 4 || kinds["AuthorizationPolicy"] != 6 || kinds["routes"] != 6002 {
		t.Errorf("%v", kinds)
	}
	for pod, want := range map[string]string{
		"waypoint-1-7d9f-abcde": "waypoint-1", "waypoint-1000-7d9f-abcde": "waypoint-1000", "client-1": "", "waypoint-10-x-y": "", "": "",
	} {
		if got := waypointOf(pod); got != want {
			t.Errorf("pod %q is waypoint %q, want %q", pod, got, want)
		}
	}
	// Only the waypoint that the requests go through is charged.
	s := find(t, "wp-h1-32-routes-1000")
	u := used{busy: time.Second, usage: map[string]account.Usage{nodeA: {CPU: time.Hour}, "waypoint-1": {CPU: time.Hour}, "waypoint-1000": {CPU: time.Second}}}
	got := map[string]float64{}
	fill(got, s, load.Report{Seconds: 2, Ops: 1000}, u, true)
	if got["cpu_us_per_req_waypoint"] != 1000 || got["req_per_s"] != 500 {
		t.Errorf("%v", got)
	}
	if sum := u.of(find(t, "rt-100-1")); sum.CPU != time.Hour {
		t.Errorf("node proxies used %v", sum.CPU)
	}
}

func TestRequestImpls(t *testing.T) {
	requests, trips := find(t, "wp-h1-1"), find(t, "rt-100-1")
	for _, c := range []struct {
		impl            Impl
		requests, trips bool
	}{
		{Impl{Name: result.Marrow}, true, true},
		{Impl{Name: result.Direct}, true, true},
		{Impl{Name: "envoy", Waypoint: []string{"x"}}, true, false},
		{Impl{Name: "istio", Ztunnel: []string{"x"}}, false, true},
		{Impl{Name: "envoy-plain", Ztunnel: []string{"x"}, Plain: envoy}, false, true},
	} {
		if c.impl.able(requests) != c.requests || c.impl.able(trips) != c.trips {
			t.Errorf("%s: requests %v, trips %v", c.impl.Name, c.impl.able(requests), c.impl.able(trips))
		}
	}
	w := &world{ips: map[string]string{server(0): "10.0.0.1"}, services: map[string]string{}}
	if a := w.serviceAddr(requests); a != "10.0.0.1:7000" {
		t.Errorf("without waypoints requests go to %s", a)
	}
	w.services["routes-1"] = "10.96.0.1"
	if a := w.serviceAddr(find(t, "wp-grpc-1")); a != "10.96.0.1:82" {
		t.Errorf("requests go to %s", a)
	}
	var b bench
	b.scenarios = map[string]scenario.Scenario{requests.Name: requests}
	b.cfg.Blocks = []result.Block{{Scenario: requests.Name, Impl: result.Marrow}, {Scenario: requests.Name, Impl: result.Direct}}
	if u := b.uses(Impl{Name: result.Marrow}); len(u) != 1 || !u[ofRequests] {
		t.Errorf("marrow needs %v", u)
	}
	if u := b.uses(Impl{Name: result.Direct}); len(u) != 1 || !u[ofPods] {
		t.Errorf("direct needs %v", u)
	}
}
