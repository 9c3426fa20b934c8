package mesh

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/internal/identity"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func vip(network, prefix string) VIP {
	if !strings.Contains(prefix, "/") {
		a := ip(prefix)
		return VIP{network, netip.PrefixFrom(a, a.BitLen())}
	}
	return VIP{network, netip.MustParsePrefix(prefix)}
}

func pod(name string, addrs ...string) *Workload {
	w := &Workload{
		UID: "c//Pod/ns/" + name, Name: name, Namespace: "ns", Node: "n1", Capacity: 1, Protocol: HBONE,
		ID: identity.MustParse("spiffe://cluster.local/ns/ns/sa/" + name),
	}
	for _, a := range addrs {
		w.Addresses = append(w.Addresses, ip(a))
	}
	return w
}

func with(t *testing.T, v *View, b Batch) *View {
	t.Helper()
	next, rejects := v.With(b)
	if len(rejects) > 0 {
		t.Fatalf("rejects: %v", rejects)
	}
	return next
}

func ExampleView_With() {
	v, _ := NewView().With(Batch{
		Services:  []*Service{{Name: "web", Namespace: "shop", Hostname: "web.shop", VIPs: []VIP{vip("", "10.96.0.1")}}},
		Workloads: []*Workload{pod("a", "10.0.0.1")},
	})
	fmt.Println(v.ServiceByVIP("", ip("10.96.0.1"), "shop").Key(), v.WorkloadByAddr("", ip("10.0.0.1")).Name)
	// Output: shop/web.shop a
}

func TestWorkloadByAddrRank(t *testing.T) {
	plainPod, entry, plainEntry := pod("pod", "10.0.0.1"), pod("entry", "10.0.0.1"), pod("plain", "10.0.0.1")
	plainPod.Protocol = TCP
	entry.UID = "c/networking.istio.io/WorkloadEntry/ns/entry"
	plainEntry.UID, plainEntry.Protocol = "c/networking.istio.io/WorkloadEntry/ns/plain", TCP
	v := with(t, NewView(), Batch{Workloads: []*Workload{entry, plainPod, plainEntry}})
	find := func(v *View) string {
		if w := v.WorkloadByAddr("", ip("10.0.0.1")); w != nil {
			return w.Name
		}
		return "none"
	}
	for _, step := range []struct{ want, remove string }{
		{"pod", plainPod.UID}, {"entry", entry.UID}, {"plain", plainEntry.UID}, {"none", ""},
	} {
		if got := find(v); got != step.want {
			t.Fatalf("holder is %s, want %s", got, step.want)
		}
		v = with(t, v, Batch{Removed: []string{step.remove}})
	}
	// Among equals the latest wins, and an update makes a workload the latest.
	a, b := pod("a", "10.0.0.1"), pod("b", "10.0.0.1")
	v = with(t, NewView(), Batch{Workloads: []*Workload{a, b}})
	if got := find(v); got != "b" {
		t.Fatalf("holder is %s, want b", got)
	}
	if got := find(with(t, v, Batch{Workloads: []*Workload{a}})); got != "a" {
		t.Fatalf("after a's update the holder is %s, want a", got)
	}
}

func TestHostNetworkIsNotFoundByAddress(t *testing.T) {
	host, normal := pod("host", "10.0.0.1"), pod("normal", "10.0.0.1")
	host.HostNetwork = true
	v := with(t, NewView(), Batch{Workloads: []*Workload{host}})
	if w := v.WorkloadByAddr("", ip("10.0.0.1")); w != nil {
		t.Fatalf("found %s", w.Name)
	}
	v = with(t, v, Batch{Workloads: []*Workload{normal}})
	v = with(t, v, Batch{Removed: []string{host.UID}})
	if w := v.WorkloadByAddr("", ip("10.0.0.1")); w != normal {
		t.Fatal("removing the host workload took the pod's address away")
	}
}

func TestWorkloadByPod(t *testing.T) {
	v := with(t, NewView(), Batch{Workloads: []*Workload{pod("a", "10.0.0.1")}})
	for _, tc := range []struct {
		node, ns, name, sa string
		want               bool
	}{
		{"n1", "ns", "a", "a", true},
		{"", "ns", "a", "a", true},
		{"n2", "ns", "a", "a", false},
		{"n1", "ns", "a", "other", false},
		{"n1", "other", "a", "a", false},
		{"n1", "ns", "b", "a", false},
	} {
		if got := v.WorkloadByPod(tc.node, tc.ns, tc.name, tc.sa) != nil; got != tc.want {
			t.Errorf("WorkloadByPod(%q, %q, %q, %q) found = %v, want %v", tc.node, tc.ns, tc.name, tc.sa, got, tc.want)
		}
	}
}

func TestServiceByVIP(t *testing.T) {
	svc := func(ns string, edit func(*Service), vips ...VIP) *Service {
		s := &Service{Name: "s", Namespace: ns, Hostname: "s.example", VIPs: vips}
		if edit != nil {
			edit(s)
		}
		return s
	}
	canonical := func(s *Service) { s.Canonical = true }
	private := func(s *Service) { s.Private = true }
	exact, other := vip("", "10.96.0.1"), vip("net2", "10.96.0.1")
	for _, tc := range []struct {
		name     string
		services []*Service
		network  string
		addr     string
		client   string
		want     string
	}{
		{"own namespace first", []*Service{svc("a", canonical, exact), svc("b", nil, exact)}, "", "10.96.0.1", "b", "b"},
		{"then canonical", []*Service{svc("a", nil, exact), svc("b", canonical, exact)}, "", "10.96.0.1", "c", "b"},
		{"then first", []*Service{svc("a", nil, exact), svc("b", nil, exact)}, "", "10.96.0.1", "c", "a"},
		{"other network", []*Service{svc("a", nil, other)}, "", "10.96.0.1", "a", ""},
		{"private elsewhere", []*Service{svc("a", private, exact)}, "", "10.96.0.1", "b", ""},
		{"private at home", []*Service{svc("a", private, exact)}, "", "10.96.0.1", "a", "a"},
		{"private exact falls through to a range", []*Service{svc("a", private, exact), svc("b", nil, vip("", "10.96.0.0/16"))}, "", "10.96.0.1", "c", "b"},
		{"exact beats range", []*Service{svc("a", nil, exact), svc("b", nil, vip("", "10.96.0.0/24"))}, "", "10.96.0.1", "b", "a"},
		{"narrower range", []*Service{svc("a", nil, vip("", "10.0.0.0/8")), svc("b", nil, vip("", "10.96.0.0/16"))}, "", "10.96.0.9", "c", "b"},
		{"wider range at home", []*Service{svc("a", nil, vip("", "10.0.0.0/8")), svc("b", nil, vip("", "10.96.0.0/16"))}, "", "10.96.0.9", "a", "a"},
		{"canonical range", []*Service{svc("a", nil, vip("", "10.0.0.0/8")), svc("b", canonical, vip("", "10.0.0.0/8"))}, "", "10.96.0.9", "c", "b"},
		{"first range", []*Service{svc("a", nil, vip("", "10.0.0.0/8")), svc("b", nil, vip("", "10.0.0.0/8"))}, "", "10.96.0.9", "c", "a"},
		{"narrower range that comes first", []*Service{svc("a", nil, vip("", "10.96.0.0/16")), svc("b", nil, vip("", "10.0.0.0/8"))}, "", "10.96.0.9", "c", "a"},
		{"both ranges canonical", []*Service{svc("a", canonical, vip("", "10.0.0.0/8")), svc("b", canonical, vip("", "10.0.0.0/8"))}, "", "10.96.0.9", "c", "a"},
		{"private range", []*Service{svc("a", private, vip("", "10.0.0.0/8"))}, "", "10.96.0.9", "c", ""},
		{"private range is narrower", []*Service{svc("a", private, vip("", "10.96.0.0/16")), svc("b", nil, vip("", "10.0.0.0/8"))}, "", "10.96.0.9", "c", "b"},
		{"host bits of a range", []*Service{svc("a", nil, vip("", "10.1.2.3/8"))}, "", "10.96.0.9", "c", "a"},
		{"families do not mix", []*Service{svc("a", nil, vip("", "::/0"))}, "", "10.96.0.9", "c", ""},
		{"range of v6", []*Service{svc("a", nil, vip("", "fd00::/64"))}, "", "fd00::1", "c", "a"},
		{"range of another network", []*Service{svc("a", nil, vip("net2", "10.0.0.0/8"))}, "", "10.96.0.9", "c", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := with(t, NewView(), Batch{Services: tc.services})
			got := ""
			if s := v.ServiceByVIP(tc.network, ip(tc.addr), tc.client); s != nil {
				got = s.Namespace
			}
			if got != tc.want {
				t.Fatalf("service of namespace %q, want %q", got, tc.want)
			}
			// Removing one owner leaves the others; removing all leaves nothing.
			var names []string
			for _, s := range tc.services {
				names = append(names, s.ResourceName())
			}
			v = with(t, v, Batch{Removed: names})
			if s := v.ServiceByVIP(tc.network, ip(tc.addr), tc.client); s != nil {
				t.Fatalf("found %s after its removal", s.Key())
			}
		})
	}
}

// TestHostNamesFollowTheirWorkload: gateways are found by these names, so a name must go with its workload.
func TestHostNamesFollowTheirWorkload(t *testing.T) {
	named := func(host string) *Workload {
		w := pod("a", "10.0.0.1")
		w.Hostname = host
		return w
	}
	first := named("gw.example")
	v := with(t, NewView(), Batch{Workloads: []*Workload{first}})
	if v.WorkloadByHost("ns", "gw.example") != first || v.WorkloadByHost("other", "gw.example") != nil {
		t.Fatal("the name does not lead to its workload alone")
	}
	v = with(t, v, Batch{Workloads: []*Workload{named("new.example")}})
	if v.WorkloadByHost("ns", "gw.example") != nil || v.WorkloadByHost("ns", "new.example") == nil {
		t.Fatal("the old name stayed, or the new one is missing")
	}
	v = with(t, v, Batch{Removed: []string{first.UID}})
	if v.WorkloadByHost("ns", "new.example") != nil {
		t.Fatal("the name outlived its workload")
	}
	if unnamed := with(t, v, Batch{Workloads: []*Workload{named("")}}); unnamed.WorkloadByHost("ns", "") != nil {
		t.Fatal("a workload without a name was found by it")
	}
}

func TestEndpointIsExact(t *testing.T) {
	key := NamespacedHostname{"ns", "s"}
	a, c := pod("a", "10.0.0.1"), pod("c", "10.0.0.3")
	a.Services, c.Services = []Membership{{Service: key}}, []Membership{{Service: key}}
	v := with(t, NewView(), Batch{Workloads: []*Workload{a, c}})
	if ep := v.Endpoint(key, c.UID); ep == nil || ep.Workload != c {
		t.Fatalf("c is %v", ep)
	}
	if ep := v.Endpoint(key, pod("b").UID); ep != nil {
		t.Fatalf("b, who is no member, is %s", ep.Workload.Name)
	}
}

func TestRemovedNames(t *testing.T) {
	s := &Service{Namespace: "ns", Hostname: "h"}
	v := with(t, NewView(), Batch{Workloads: []*Workload{pod("a")}, Services: []*Service{s}})
	v = with(t, v, Batch{Removed: []string{"c//Pod/ns/unknown", "nothing", "ns/unknown", ""}})
	if w, svc, _ := v.Sizes(); w != 1 || svc != 1 {
		t.Fatalf("unknown names removed something: %d workloads, %d services", w, svc)
	}
	v = with(t, v, Batch{Removed: []string{"c//Pod/ns/a", "ns/h"}})
	if w, svc, _ := v.Sizes(); w != 0 || svc != 0 {
		t.Fatalf("%d workloads, %d services are left", w, svc)
	}
}

func TestRejects(t *testing.T) {
	v, rejects := NewView().With(Batch{
		Workloads: []*Workload{{Name: "x", Namespace: "ns"}, pod("a")},
		Services:  []*Service{{Name: "y", Namespace: "ns"}},
		Policies:  []*Policy{{Name: "z", Namespace: "ns"}},
	})
	if len(rejects) != 3 {
		t.Fatalf("rejects = %v, want 3", rejects)
	}
	if w, _, _ := v.Sizes(); w != 1 {
		t.Fatal("the good workload was held back")
	}
}

func TestEndpointsOutliveTheirService(t *testing.T) {
	key := NamespacedHostname{"ns", "h"}
	a, b := pod("a"), pod("b")
	a.Services = []Membership{{Service: key}}
	b.Services = []Membership{{Service: key}}
	v := with(t, NewView(), Batch{Workloads: []*Workload{b, a}})
	uids := func(v *View) (out []string) {
		for _, ep := range v.Endpoints(key) {
			out = append(out, ep.Workload.Name)
		}
		return out
	}
	if staged := len(maps.Collect(v.Staged())); staged != 1 {
		t.Fatalf("%d staged services, want 1", staged)
	}
	v = with(t, v, Batch{Services: []*Service{{Namespace: "ns", Hostname: "h"}}})
	if got := uids(v); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("endpoints %v, want a and b", got)
	}
	if v.Endpoint(key, a.UID) == nil || v.Endpoint(key, "nobody") != nil {
		t.Fatal("Endpoint finds the wrong members")
	}
	v = with(t, v, Batch{Removed: []string{"ns/h"}})
	v = with(t, v, Batch{Services: []*Service{{Namespace: "ns", Hostname: "h"}}})
	if got := uids(v); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("after the service came back: %v", got)
	}
	moved := *a
	moved.Services = nil
	v = with(t, v, Batch{Workloads: []*Workload{&moved}, Removed: []string{b.UID}})
	if got := uids(v); len(got) != 0 {
		t.Fatalf("endpoints left: %v", got)
	}
}

func TestPoliciesFor(t *testing.T) {
	w := pod("a")
	w.Policies = []string{"ns/named", "ns/missing"}
	p := func(name, ns string, scope PolicyScope) *Policy {
		return &Policy{Resource: ns + "/" + name, Name: name, Namespace: ns, Scope: scope}
	}
	v := with(t, NewView(), Batch{Policies: []*Policy{
		p("global", "root", PolicyGlobal), p("mine", "ns", PolicyNamespace), p("other", "other", PolicyNamespace),
		p("named", "ns", PolicySelector), p("unnamed", "ns", PolicySelector),
	}})
	names := func(v *View) string {
		var out []string
		for name, p := range v.PoliciesFor(w) {
			if p == nil {
				name = "!" + name
			}
			out = append(out, name)
		}
		return strings.Join(out, " ")
	}
	if got, want := names(v), "ns/mine root/global ns/named !ns/missing"; got != want {
		t.Fatalf("policies %q, want %q", got, want)
	}
	// A change of scope leaves nothing behind under the old one.
	v = with(t, v, Batch{Policies: []*Policy{p("mine", "ns", PolicySelector)}, RemovedPolicies: []string{"root/global"}})
	if got, want := names(v), "ns/named !ns/missing"; got != want {
		t.Fatalf("policies %q, want %q", got, want)
	}
}

// world is the slow obvious twin of a View: what is left, in order of arrival.
type world struct {
	workloads []*Workload
	services  []*Service
	policies  []*Policy
}

func (w *world) apply(b Batch) {
	for _, x := range b.Workloads {
		w.workloads = append(slices.DeleteFunc(w.workloads, func(o *Workload) bool { return o.UID == x.UID }), x)
	}
	for _, x := range b.Services {
		w.services = append(slices.DeleteFunc(w.services, func(o *Service) bool { return o.Key() == x.Key() }), x)
	}
	for _, x := range b.Policies {
		w.policies = append(slices.DeleteFunc(w.policies, func(o *Policy) bool { return o.Resource == x.Resource }), x)
	}
	for _, name := range b.Removed {
		before := len(w.workloads)
		w.workloads = slices.DeleteFunc(w.workloads, func(o *Workload) bool { return o.UID == name })
		if len(w.workloads) == before {
			w.services = slices.DeleteFunc(w.services, func(o *Service) bool { return o.ResourceName() == name })
		}
	}
	for _, name := range b.RemovedPolicies {
		w.policies = slices.DeleteFunc(w.policies, func(o *Policy) bool { return o.Resource == name })
	}
}

func drawBatch(t *rapid.T) Batch {
	n := rapid.IntRange(0, 3)
	var b Batch
	addrs := []string{"10.0.0.1", "10.0.0.2", "fd00::1"}
	hosts := []string{"x", "y", "z"}
	for range n.Draw(t, "workloads") {
		w := pod(rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "name"))
		w.Addresses = []netip.Addr{ip(rapid.SampledFrom(addrs).Draw(t, "addr"))}
		w.HostNetwork = rapid.Bool().Draw(t, "host network")
		w.Network = rapid.SampledFrom([]string{"", "n"}).Draw(t, "network")
		if rapid.Bool().Draw(t, "plain") {
			w.Protocol = TCP
		}
		for _, h := range hosts {
			if rapid.Bool().Draw(t, "member of "+h) {
				w.Services = append(w.Services, Membership{Service: NamespacedHostname{"ns", h}})
			}
		}
		b.Workloads = append(b.Workloads, w)
	}
	for range n.Draw(t, "services") {
		s := &Service{Namespace: rapid.SampledFrom([]string{"ns", "other"}).Draw(t, "ns"), Hostname: rapid.SampledFrom(hosts).Draw(t, "host")}
		s.VIPs = []VIP{vip("", rapid.SampledFrom([]string{"10.96.0.1", "10.96.0.2", "10.96.0.0/16", "10.96.0.0/24"}).Draw(t, "vip"))}
		s.Canonical, s.Private = rapid.Bool().Draw(t, "canonical"), rapid.Bool().Draw(t, "private")
		b.Services = append(b.Services, s)
	}
	for range n.Draw(t, "policies") {
		p := &Policy{Namespace: "ns", Name: rapid.SampledFrom(hosts).Draw(t, "policy"), Scope: PolicyScope(rapid.IntRange(0, 2).Draw(t, "scope"))}
		p.Resource = p.Key()
		b.Policies = append(b.Policies, p)
	}
	names := []string{"c//Pod/ns/a", "c//Pod/ns/b", "c//Pod/ns/c", "ns/x", "ns/y", "other/x", "other/z"}
	b.Removed = rapid.SliceOfN(rapid.SampledFrom(names), 0, 2).Draw(t, "removed")
	b.RemovedPolicies = rapid.SliceOfN(rapid.SampledFrom([]string{"ns/x", "ns/y"}), 0, 1).Draw(t, "removed policies")
	return b
}

// answers asks a View everything that the drawn names and addresses allow.
func answers(v *View) map[string]any {
	out := map[string]any{}
	for _, network := range []string{"", "n"} {
		for _, a := range []string{"10.0.0.1", "10.0.0.2", "fd00::1", "10.96.0.1", "10.96.0.2", "10.96.0.7"} {
			out["workload "+network+a] = v.WorkloadByAddr(network, ip(a))
			for _, client := range []string{"ns", "other", "third"} {
				out["vip "+network+a+client] = v.ServiceByVIP(network, ip(a), client)
			}
		}
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		out["pod "+name] = v.WorkloadByPod("n1", "ns", name, name)
	}
	for _, h := range []string{"x", "y", "z"} {
		out["host "+h] = v.BestServiceByHost(h, "third")
		out["members "+h] = v.Endpoints(NamespacedHostname{"ns", h})
	}
	var policies []string
	for name := range v.PoliciesFor(pod("a")) {
		policies = append(policies, name)
	}
	slices.Sort(policies)
	out["policies"] = policies
	w, s, p := v.Sizes()
	out["sizes"] = []int{w, s, p}
	return out
}

func TestWithEqualsScratch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, twin := NewView(), &world{}
		for range rapid.IntRange(1, 8).Draw(t, "batches") {
			b := drawBatch(t)
			before := answers(v)
			next, _ := v.With(b)
			if diff := cmp.Diff(before, answers(v), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, identity.ID{})); diff != "" {
				t.Fatalf("With changed its receiver:\n%s", diff)
			}
			v = next
			twin.apply(b)
		}
		scratch, _ := NewView().With(Batch{Workloads: twin.workloads, Services: twin.services, Policies: twin.policies})
		if diff := cmp.Diff(answers(scratch), answers(v), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, identity.ID{})); diff != "" {
			t.Fatalf("built by batches differs from built at once:\n%s", diff)
		}
	})
}

func TestViewIsImmutable(t *testing.T) {
	v := with(t, NewView(), Batch{Workloads: []*Workload{pod("a", "10.0.0.1")}})
	next := with(t, v, Batch{Workloads: []*Workload{pod("b", "10.0.0.1")}, Removed: []string{"c//Pod/ns/a"}})
	if v.WorkloadByAddr("", ip("10.0.0.1")).Name != "a" || v.WorkloadByUID("c//Pod/ns/b") != nil {
		t.Fatal("the old view changed")
	}
	if next.WorkloadByAddr("", ip("10.0.0.1")).Name != "b" || next.Version() != v.Version()+1 {
		t.Fatal("the new view is wrong")
	}
}

func bigView(b *testing.B, n int) *View {
	b.Helper()
	batch := Batch{}
	for i := range n {
		w := pod(fmt.Sprintf("w%d", i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String())
		w.Services = []Membership{{Service: NamespacedHostname{"ns", fmt.Sprintf("s%d", i%(n/10+1))}}}
		batch.Workloads = append(batch.Workloads, w)
	}
	v, _ := NewView().With(batch)
	return v
}

// BenchmarkWith replaces one workload; the time must hardly grow with the mesh.
func BenchmarkWith(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			v := bigView(b, n)
			one := pod("w7", "10.0.0.7")
			one.Services = []Membership{{Service: NamespacedHostname{"ns", "s7"}}}
			b.ReportAllocs()
			for b.Loop() {
				v, _ = v.With(Batch{Workloads: []*Workload{one}})
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	v := bigView(b, 10_000)
	addr := ip("10.0.1.7")
	b.ReportAllocs()
	for b.Loop() {
		v.WorkloadByAddr("", addr)
	}
}
