package steer_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/ztunnel/internal/steer"
)

func first(uint64) uint64 { return 0 }

// TestUnknownFailsClosed: what is not known is refused, and the zero Plan is no way to go.
func TestUnknownFailsClosed(t *testing.T) {
	w := newWorld(t)
	w.run("workload a ip=10.0.0.1\nservice web vip=10.96.0.1 ports=80:8080 waypoint=nobody.ns:15008")
	v, a := w.view(), w.workloads["a"]
	client := a.Addresses[0]
	for name, tc := range map[string]struct {
		src *mesh.Workload
		dst string
	}{
		"unknown source":   {nil, "192.0.2.1:80"},
		"unknown waypoint": {a, "10.96.0.1:80"},
		"own port":         {a, "127.0.0.1:15008"},
	} {
		plan, err := steer.Outbound(v, tc.src, client, netip.MustParseAddrPort(tc.dst), first)
		if refusal := (*steer.Refusal)(nil); !errors.As(err, &refusal) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
		if plan.Via != 0 || plan.NextHop.IsValid() {
			t.Errorf("%s: a refusal with the plan %s", name, plan)
		}
	}
	if _, err := steer.Outbound(v, a, client, netip.AddrPort{}, first); err == nil {
		t.Error("an invalid destination has a plan")
	}
	if _, err := steer.Inbound(v, "", steer.InboundFacts{Workload: a}); err == nil {
		t.Error("an invalid original destination is admitted")
	}
	if _, err := steer.Inbound(v, "", steer.InboundFacts{Authority: "10.0.0.1:80"}); err == nil {
		t.Error("an unknown pod admits")
	}
	if s := steer.Via(0).String(); s != "undecided" || steer.Via(0).Tunnelled() {
		t.Errorf("the zero Via prints %q", s)
	}
}

// TestHBONEIsNeverPlain: whatever the world, a destination that speaks HBONE is reached by a tunnel
// with somebody expected at its end.
func TestHBONEIsNeverPlain(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var b mesh.Batch
		addr := rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.96.0.1"})
		key := mesh.NamespacedHostname{Namespace: "ns", Hostname: "s"}
		gw := func(label string) *mesh.GatewayAddress {
			if rapid.Bool().Draw(rt, label) {
				return nil
			}
			return &mesh.GatewayAddress{Host: key, Port: 80}
		}
		for _, name := range []string{"a", "b", "c"} {
			w := &mesh.Workload{
				UID: name, Name: name, Namespace: "ns", Capacity: 1, ID: identity.MustParse("spiffe://td/ns/ns/sa/" + name),
				Addresses: []netip.Addr{netip.MustParseAddr(addr.Draw(rt, "address of "+name))},
				Network:   rapid.SampledFrom([]string{"", "n"}).Draw(rt, "network"),
				Waypoint:  gw("waypoint"), NetworkGateway: gw("gateway"),
				HostNetwork: rapid.Bool().Draw(rt, "host network"), Unhealthy: rapid.Bool().Draw(rt, "sick"),
			}
			if rapid.Bool().Draw(rt, "hbone") {
				w.Protocol = mesh.HBONE
			}
			if rapid.Bool().Draw(rt, "member") {
				w.Services = []mesh.Membership{{Service: key}}
			}
			b.Workloads = append(b.Workloads, w)
		}
		b.Services = []*mesh.Service{{
			Namespace: "ns", Hostname: "s", Ports: []mesh.PortMapping{{Service: 80, Target: 8080}}, Waypoint: gw("service waypoint"),
			VIPs: []mesh.VIP{{Prefix: netip.MustParsePrefix("10.96.0.1/32")}},
		}}
		v, _ := mesh.NewView().With(b)
		dst := netip.AddrPortFrom(netip.MustParseAddr(addr.Draw(rt, "destination")), 80)
		plan, err := steer.Outbound(v, b.Workloads[0], b.Workloads[0].Addresses[0], dst, func(n uint64) uint64 {
			return rapid.Uint64Range(0, n-1).Draw(rt, "random")
		})
		if err != nil {
			if plan.Via != 0 {
				rt.Fatalf("refused (%v) with a plan: %s", err, plan)
			}
			return
		}
		switch {
		case plan.Via.Tunnelled() && len(plan.Expect) == 0:
			rt.Fatalf("a tunnel to nobody: %s", plan)
		case !plan.Via.Tunnelled() && plan.Dest != nil && plan.Dest.Protocol == mesh.HBONE:
			rt.Fatalf("plaintext to a member of the mesh: %s", plan)
		case plan.Via == steer.Passthrough && v.WorkloadByAddr("", dst.Addr()) != nil && b.Workloads[0].Network == "":
			rt.Fatalf("%s is known and passed through: %s", dst, plan)
		case len(plan.Why) == 0:
			rt.Fatalf("no reason: %s", plan)
		}
	})
}

func TestResolved(t *testing.T) {
	w := newWorld(t)
	w.run("workload a ip=10.0.0.1\nworkload m host=m.example of=s\nservice s vip=10.96.0.1 ports=80:8080")
	plan, err := steer.Outbound(w.view(), w.workloads["a"], netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("10.96.0.1:80"), first)
	if err != nil || plan.Resolve != "m.example" {
		t.Fatalf("plan %s, %v", plan, err)
	}
	plan = plan.Resolved(netip.MustParseAddr("192.0.2.7"))
	if plan.NextHop.String() != "192.0.2.7:15008" || plan.Authority != "192.0.2.7:8080" || plan.Resolve != "" {
		t.Fatalf("resolved plan %s", plan)
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[::1]:80", "web.ns:80", "web", ":80", "[fe80::1%eth0]:1", "1:+1", "a b:80", "\x00:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, err := steer.ParseTarget(s)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "authority ") {
				t.Fatalf("error does not name its object: %v", err)
			}
			return
		}
		if target.Port == 0 || target.Addr.IsValid() == (target.Host != "") {
			t.Fatalf("ParseTarget(%q) = %+v", s, target)
		}
		if again, err := steer.ParseTarget(target.String()); err != nil || again != target {
			t.Fatalf("%q prints %q, which reads %+v, %v", s, target, again, err)
		}
	})
}

// TestOutboundAllocations keeps a decision at what it returns: the authority, whom to expect, and why.
func TestOutboundAllocations(t *testing.T) {
	w := newWorld(t)
	w.run("workload a ip=10.0.0.1\nworkload b ip=10.0.0.2 of=web\nservice web vip=10.96.0.1 ports=80:8080")
	v, a, dst := w.view(), w.workloads["a"], netip.MustParseAddrPort("10.96.0.1:80")
	if n := testing.AllocsPerRun(100, func() { _, _ = steer.Outbound(v, a, a.Addresses[0], dst, first) }); n > 3 {
		t.Fatalf("%v allocations, want at most 3", n)
	}
}

func BenchmarkOutbound(b *testing.B) {
	w := &world{workloads: map[string]*mesh.Workload{}, services: map[string]*mesh.Service{}}
	w.run("workload a ip=10.0.0.1\nworkload b ip=10.0.0.2 of=web\nservice web vip=10.96.0.1 ports=80:8080")
	v, a := w.view(), w.workloads["a"]
	dst := netip.MustParseAddrPort("10.96.0.1:80")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := steer.Outbound(v, a, a.Addresses[0], dst, first); err != nil {
			b.Fatal(err)
		}
	}
}
