package waypoint

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// order lists a cluster's endpoints as priority:address*weight of its locality.
func order(t *testing.T, in Input, cluster string) string {
	t.Helper()
	r, _ := Derive(in)
	a := r.Endpoints[cluster]
	if a == nil {
		t.Fatalf("no endpoints %q", cluster)
	}
	var out []string
	for _, g := range a.GetEndpoints() {
		for _, e := range g.GetLbEndpoints() {
			id := e.GetEndpoint().GetAddress().GetEnvoyInternalAddress().GetEndpointId()
			out = append(out, fmt.Sprintf("%d:%s*%d", g.GetPriority(), strings.TrimSuffix(id, ":8080"), g.GetLoadBalancingWeight().GetValue()))
		}
	}
	return strings.Join(out, " ")
}

func localityWorld(t *testing.T) Input {
	t.Helper()
	for _, w := range worlds(t) {
		if strings.HasSuffix(w.path, "locality.txtar") {
			return w.in
		}
	}
	t.Fatal("no such world")
	return Input{}
}

func TestNearEndpointsFirst(t *testing.T) {
	in := localityWorld(t)
	for service, want := range map[string]string{
		"near":     "0:10.0.0.1*8 0:10.0.0.6*8 1:10.0.0.2*1 2:10.0.0.3*1 3:10.0.0.5*1 4:10.0.0.4*1",
		"labelled": "0:10.0.1.1*1 1:10.0.1.2*1 2:10.0.1.3*1",
		"close":    "0:10.0.2.1*1 1:10.0.2.2*1 2:10.0.2.3*1",
		"shared":   "0:10.0.3.1*70000 0:10.0.3.2*10000 0:10.0.3.3*20000",
		"plain":    "0:10.0.4.1*1 0:10.0.4.2*1",
		"off":      "0:10.0.5.2*1 0:10.0.5.1*1",
	} {
		if got := order(t, in, vipName(80, true, "", service+".shop.svc.cluster.local")); got != want {
			t.Errorf("%s: got %s, want %s", service, got, want)
		}
	}
}

// TestElsewhereIsAnotherOrder: the same mesh seen from another place.
func TestElsewhereIsAnotherOrder(t *testing.T) {
	in := localityWorld(t)
	in.Place = Place{"r2", "z1", "s1"}
	for service, want := range map[string]string{
		"near":   "0:10.0.0.4*1",
		"close":  "0:10.0.2.3*1",
		"shared": "0:10.0.3.1*25000",
	} {
		got := order(t, in, vipName(80, true, "", service+".shop.svc.cluster.local"))
		if first, _, _ := strings.Cut(got, " "); first != want {
			t.Errorf("%s: first is %s, want %s", service, first, want)
		}
	}
	in.Place = Place{} // not known: nothing is near
	if got := order(t, in, vipName(80, true, "", "near.shop.svc.cluster.local")); strings.Contains(got, "1:") {
		t.Errorf("got %s", got)
	}
}

func TestCovers(t *testing.T) {
	at := locality{"r1", "z1", "s1"}
	for pattern, want := range map[string]bool{
		"*": true, "r1": true, "r1/*": true, "r1/z1": true, "r1/z1/*": true, "r1/z1/s1": true,
		"r2": false, "r2/*": false, "r1/z2": false, "r1/z1/s2": false, "": false,
	} {
		if got := covers(pattern, at); got != want {
			t.Errorf("%q: %v", pattern, got)
		}
	}
	if got := bySpecificity(map[string]uint32{"*": 1, "r1/*": 1, "r1": 1, "r1/z1/s1": 1, "r1/z1/*": 1}); !slices.Equal(got, []string{"r1/z1/s1", "r1/z1/*", "r1/*", "r1", "*"}) {
		t.Errorf("got %v", got)
	}
}
