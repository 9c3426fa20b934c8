package mesh

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// spread counts how often each endpoint is chosen when the random number takes every value once.
func spread(v *View, src *Workload, s *Service, port uint16, use Use) string {
	counts := map[string]int{}
	for i := range uint64(64) {
		var size uint64
		c, ok := v.Choose(src, s, port, use, func(n uint64) uint64 { size = n; return i % n })
		if !ok {
			return "none"
		}
		if i >= size {
			break
		}
		counts[fmt.Sprintf("%s:%d", c.Workload.Name, c.Port)]++
	}
	var out []string
	for name, n := range counts {
		out = append(out, fmt.Sprintf("%s=%d", name, n))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestChoose(t *testing.T) {
	key := NamespacedHostname{"ns", "s"}
	at := func(name, region, zone, node string, edit ...func(*Workload)) *Workload {
		w := pod(name, "10.0.0."+fmt.Sprint(len(name)))
		w.Locality = Locality{Region: region, Zone: zone}
		w.Node = node
		w.Services = []Membership{{Service: key}}
		for _, e := range edit {
			e(w)
		}
		return w
	}
	src := at("src", "r1", "z1", "n1")
	ports := func(p ...PortMapping) func(*Workload) {
		return func(w *Workload) { w.Services[0].Ports = p }
	}
	weight := func(n uint32) func(*Workload) { return func(w *Workload) { w.Capacity = n } }
	sick := func(w *Workload) { w.Unhealthy = true }
	network := func(n string) func(*Workload) { return func(w *Workload) { w.Network = n } }
	bare := func(w *Workload) { w.Addresses = nil }
	host := func(w *Workload) { w.Hostname = "db.example" }
	gatewayed := func(w *Workload) { w.NetworkGateway = &GatewayAddress{} }
	tunnelled := func(port uint16) func(*Workload) {
		return func(w *Workload) { w.Tunnel = &ApplicationTunnel{Port: port} }
	}
	std := []PortMapping{{80, 8080}}
	lb := func(mode Mode, prefs ...Scope) LoadBalancing { return LoadBalancing{Mode: mode, Preferences: prefs} }
	for _, tc := range []struct {
		name  string
		ports []PortMapping
		lb    LoadBalancing
		use   Use
		ends  []*Workload
		want  string
	}{
		{name: "no endpoint", ports: std, want: "none"},
		{name: "port not listed", ports: []PortMapping{{81, 8080}}, ends: []*Workload{at("a", "", "", "")}, want: "none"},
		{name: "even", ports: std, ends: []*Workload{at("a", "", "", ""), at("b", "", "", "")}, want: "a:8080=1 b:8080=1"},
		{name: "by weight", ports: std, ends: []*Workload{at("a", "", "", "", weight(3)), at("b", "", "", "")}, want: "a:8080=3 b:8080=1"},
		{name: "weight zero is never chosen", ports: std, ends: []*Workload{at("a", "", "", "", weight(0)), at("b", "", "", "")}, want: "b:8080=1"},
		{name: "only weight zero", ports: std, ends: []*Workload{at("a", "", "", "", weight(0))}, want: "none"},
		{name: "unhealthy", ports: std, ends: []*Workload{at("a", "", "", "", sick), at("b", "", "", "")}, want: "b:8080=1"},
		{
			name: "unhealthy allowed", ports: std, lb: LoadBalancing{AllowUnhealthy: true},
			ends: []*Workload{at("a", "", "", "", sick), at("b", "", "", "")}, want: "a:8080=1 b:8080=1",
		},
		{name: "own port beats the service's", ports: std, ends: []*Workload{at("a", "", "", "", ports(PortMapping{80, 9090}))}, want: "a:9090=1"},
		{
			name: "named port", ports: []PortMapping{{80, 0}},
			ends: []*Workload{at("a", "", "", "", ports(PortMapping{80, 9090})), at("b", "", "", "")}, want: "a:9090=1",
		},
		{name: "duplicate ports: last wins", ports: []PortMapping{{80, 1}, {80, 2}}, ends: []*Workload{at("a", "", "", "")}, want: "a:2=1"},
		{name: "no address on the own network", ports: std, ends: []*Workload{at("a", "", "", "", bare, gatewayed)}, want: "none"},
		{name: "no address elsewhere, no gateway", ports: std, ends: []*Workload{at("a", "", "", "", bare, network("n2"))}, want: "none"},
		{name: "no address elsewhere, gateway", ports: std, ends: []*Workload{at("a", "", "", "", bare, network("n2"), gatewayed)}, want: "a:8080=1"},
		{name: "only a host name", ports: std, ends: []*Workload{at("a", "", "", "", bare, host)}, want: "a:8080=1"},
		{
			name: "strict", ports: std, lb: lb(ModeStrict, ScopeNode),
			ends: []*Workload{at("a", "", "", "n1"), at("b", "", "", "n2")}, want: "a:8080=1",
		},
		{name: "strict without a match", ports: std, lb: lb(ModeStrict, ScopeNode), ends: []*Workload{at("b", "", "", "n2")}, want: "none"},
		{
			name: "strict needs all", ports: std, lb: lb(ModeStrict, ScopeRegion, ScopeZone),
			ends: []*Workload{at("a", "r1", "z2", ""), at("b", "r2", "z1", "")}, want: "none",
		},
		{
			name: "failover best rank only", ports: std, lb: lb(ModeFailover, ScopeRegion, ScopeZone),
			ends: []*Workload{at("a", "r1", "z1", ""), at("b", "r1", "z2", ""), at("c", "r2", "z1", "")}, want: "a:8080=1",
		},
		{
			name: "failover stops at the first mismatch", ports: std, lb: lb(ModeFailover, ScopeRegion, ScopeZone),
			ends: []*Workload{at("b", "r1", "z2", ""), at("c", "r2", "z1", "")}, want: "b:8080=1",
		},
		{
			name: "failover falls back to any", ports: std, lb: lb(ModeFailover, ScopeRegion),
			ends: []*Workload{at("b", "r2", "z2", ""), at("c", "r3", "z1", "")}, want: "b:8080=1 c:8080=1",
		},
		{
			name: "same network beats a better remote one", ports: std, lb: lb(ModeFailover, ScopeNetwork, ScopeRegion, ScopeZone),
			ends: []*Workload{at("a", "r9", "z9", ""), at("b", "r1", "z1", "", network("n2"))}, want: "a:8080=1",
		},
		{
			name: "the network counts where it stands", ports: std, lb: lb(ModeFailover, ScopeRegion, ScopeNetwork, ScopeZone),
			ends: []*Workload{at("a", "r9", "z1", ""), at("b", "r1", "z9", "", network("n2"))}, want: "b:8080=1",
		},
		{
			name: "only the network may be missed", ports: std, lb: lb(ModeFailover, ScopeRegion, ScopeZone, ScopeNode),
			ends: []*Workload{at("a", "r9", "z1", "n1"), at("b", "r1", "z9", "n9")}, want: "b:8080=1",
		},
		{name: "preferences without a mode", ports: std, lb: lb(ModeStandard, ScopeNode), ends: []*Workload{at("a", "", "", "n1"), at("b", "", "", "n2")}, want: "a:8080=1 b:8080=1"},
		{
			name: "an own port of zero is none", ports: std,
			ends: []*Workload{at("a", "", "", "", ports(PortMapping{80, 0}))}, want: "a:8080=1",
		},
		{
			name: "remote ones are ranked too", ports: std, lb: lb(ModeFailover, ScopeNetwork, ScopeRegion, ScopeZone),
			ends: []*Workload{at("a", "r1", "z9", "", network("n2")), at("b", "r1", "z1", "", network("n2"))}, want: "b:8080=1",
		},
		{
			name: "best rank without capacity", ports: std, lb: lb(ModeFailover, ScopeRegion),
			ends: []*Workload{at("a", "r1", "", "", weight(0)), at("b", "r2", "", "")}, want: "none",
		},
		{name: "waypoint behind a tunnel needs no listed port", use: ForWaypoint, ends: []*Workload{at("a", "", "", "", tunnelled(15088))}, want: "a:80=1"},
		{name: "tunnel without a port likewise", use: ForWaypoint, ends: []*Workload{at("a", "", "", "", tunnelled(0))}, want: "a:80=1"},
		{name: "waypoint without tunnel needs a port", use: ForWaypoint, ends: []*Workload{at("a", "", "", "")}, want: "none"},
		{name: "traffic does not use the tunnel rule", ports: []PortMapping{{80, 0}}, ends: []*Workload{at("a", "", "", "", tunnelled(15088))}, want: "none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &Service{Namespace: "ns", Hostname: "s", Ports: tc.ports, LoadBalancing: tc.lb}
			v := with(t, NewView(), Batch{Services: []*Service{s}, Workloads: tc.ends})
			if got := spread(v, src, s, 80, tc.use); got != tc.want {
				t.Fatalf("chosen %s, want %s", got, tc.want)
			}
		})
	}
}

func TestChooseAllocatesNothing(t *testing.T) {
	v := NewView()
	w := pod("a", "10.0.0.1")
	w.Services = []Membership{{Service: NamespacedHostname{"ns", "s"}}}
	s := &Service{Namespace: "ns", Hostname: "s", Ports: []PortMapping{{80, 80}}}
	v = with(t, v, Batch{Services: []*Service{s}, Workloads: []*Workload{w}})
	rnd := func(uint64) uint64 { return 0 }
	if n := testing.AllocsPerRun(100, func() { v.Choose(w, s, 80, ForTraffic, rnd) }); n != 0 {
		t.Fatalf("%v allocations, want 0", n)
	}
}

func TestPickAddr(t *testing.T) {
	dual := pod("a", "fd00::1", "10.0.0.1")
	four := pod("b", "10.0.0.2")
	for _, tc := range []struct {
		name     string
		w        *Workload
		families IPFamilies
		asked    string
		want     string
	}{
		{"the asked one", dual, AnyFamily, "10.0.0.1", "10.0.0.1"},
		{"the asked one whatever the families", dual, IPv6Only, "10.0.0.1", "10.0.0.1"},
		{"family asked for", dual, AnyFamily, "10.96.0.1", "10.0.0.1"},
		{"family asked for, v6", dual, DualStack, "fd01::1", "fd00::1"},
		{"v6 only though v4 was asked", dual, IPv6Only, "10.96.0.1", "fd00::1"},
		{"v4 only though v6 was asked", dual, IPv4Only, "fd01::1", "10.0.0.1"},
		{"the other family if need be", four, AnyFamily, "fd01::1", "10.0.0.2"},
		{"none accepted", four, IPv6Only, "fd01::1", ""},
		{"none at all", pod("c"), AnyFamily, "10.96.0.1", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := PickAddr(tc.w, tc.families, ip(tc.asked))
			if ok != (tc.want != "") || (ok && got != ip(tc.want)) {
				t.Fatalf("PickAddr = %v, %v; want %q", got, ok, tc.want)
			}
		})
	}
}

func TestPickWaypoint(t *testing.T) {
	main, one, two := GatewayAddress{Port: 1}, GatewayAddress{Port: 2}, GatewayAddress{Port: 3}
	s := &Service{Waypoint: &main}
	pick := func(at uint64) uint16 { return s.PickWaypoint(func(n uint64) uint64 { return at % n }).Port }
	if got := pick(0); got != 1 {
		t.Fatalf("without weights: %d", got)
	}
	s.WeightedWaypoints = []WeightedWaypoint{{one, 0}, {two, 2}, {one, 1}}
	for at, want := range []uint16{3, 3, 2} {
		if got := pick(uint64(at)); got != want {
			t.Fatalf("at %d: waypoint %d, want %d", at, got, want)
		}
	}
	s.WeightedWaypoints = []WeightedWaypoint{{one, 0}, {two, 0}}
	if got := pick(0); got != 1 {
		t.Fatalf("all weights zero: %d, want the plain waypoint", got)
	}
}
