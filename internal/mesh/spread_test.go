package mesh

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestChooseSpreads: connections to a waypoint with five pods spread evenly, near ones first: in the client's zone while one of it is healthy,
// over the others when none is.
func TestChooseSpreads(t *testing.T) {
	key := NamespacedHostname{"ns", "waypoint"}
	at := func(i int, zone string, sick bool) *Workload {
		w := pod(fmt.Sprintf("w%d", i), fmt.Sprintf("10.0.1.%d", i))
		w.Locality, w.Unhealthy = Locality{Region: "r", Zone: zone}, sick
		w.Services = []Membership{{Service: key}}
		return w
	}
	src := pod("client", "10.0.0.1")
	src.Locality = Locality{Region: "r", Zone: "a"}
	service := &Service{
		Namespace: key.Namespace, Hostname: key.Hostname, Ports: []PortMapping{{Service: 15008, Target: 15008}},
		LoadBalancing: LoadBalancing{Mode: ModeFailover, Preferences: []Scope{ScopeNetwork, ScopeRegion, ScopeZone}},
	}
	for name, c := range map[string]struct {
		zones string // of the pods; a capital letter is a sick one
		used  int
	}{
		"one zone": {"aaaaa", 5}, "two near": {"aabbb", 2}, "one near": {"abbbb", 1}, "near ones are sick": {"AAbbb", 3}, "one of the near is sick": {"Aaabb", 2},
		"none near": {"bbccc", 5},
	} {
		t.Run(name, func(t *testing.T) {
			var b Batch
			b.Services = append(b.Services, service)
			for i, z := range c.zones {
				b.Workloads = append(b.Workloads, at(i+1, string(z|0x20), z < 'a'))
			}
			v, rejects := (&View{}).With(b)
			if len(rejects) > 0 {
				t.Fatal(rejects)
			}
			chance := rand.New(rand.NewPCG(1, 2))
			counts := map[string]int{}
			for range 3000 {
				got, ok := v.Choose(src, v.ServiceByHost(key.Namespace, key.Hostname), 15008, ForWaypoint, chance.Uint64N)
				if !ok {
					t.Fatal("nobody can be chosen")
				}
				counts[got.Workload.Name]++
			}
			least, most := 3000, 0
			for _, n := range counts {
				least, most = min(least, n), max(most, n)
			}
			if len(counts) != c.used || float64(most) > 1.3*float64(least) {
				t.Errorf("%v, want %d evenly", counts, c.used)
			}
		})
	}
}
