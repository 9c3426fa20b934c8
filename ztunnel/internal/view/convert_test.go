package view_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/ztunnel/internal/view"
)

// byValue compares the types that hide their fields.
var byValue = cmpopts.EquateComparable(identity.ID{}, netip.Addr{}, netip.Prefix{})

// TestEveryFieldOfAWorkload: a field that is lost on the way changes how the workload is reached.
func TestEveryFieldOfAWorkload(t *testing.T) {
	got, err := view.Workload(&workload.Workload{
		Uid: "u", Name: "a", Namespace: "ns", Network: "n", Node: "n1", Hostname: "h", TrustDomain: "td", ServiceAccount: "sa",
		Addresses: [][]byte{{10, 0, 0, 1}}, TunnelProtocol: workload.TunnelProtocol_HBONE, NetworkMode: workload.NetworkMode_HOST_NETWORK,
		Status: workload.WorkloadStatus_UNHEALTHY, NativeTunnel: true, AuthorizationPolicies: []string{"ns/p"},
		ApplicationTunnel: &workload.ApplicationTunnel{Protocol: workload.ApplicationTunnel_PROXY, Port: 15088},
		Waypoint: &workload.GatewayAddress{HboneMtlsPort: 15008, Destination: &workload.GatewayAddress_Hostname{
			Hostname: &workload.NamespacedHostname{Namespace: "infra", Hostname: "way"},
		}},
		NetworkGateway: &workload.GatewayAddress{HboneMtlsPort: 15009, Destination: &workload.GatewayAddress_Address{
			Address: &workload.NetworkAddress{Network: "far", Address: []byte{172, 30, 0, 1}},
		}},
		WorkloadType: workload.WorkloadType_CRONJOB, WorkloadName: "owner", CanonicalName: "c", CanonicalRevision: "r", ClusterId: "k",
		Locality: &workload.Locality{Region: "re", Zone: "zo", Subzone: "su"},
		Services: map[string]*workload.PortList{"ns/b": {}, "ns/a": {}, "ab/z": {}},
	})
	if err != nil {
		t.Fatal(err)
	}
	member := func(ns, host string) mesh.Membership {
		return mesh.Membership{Service: mesh.NamespacedHostname{Namespace: ns, Hostname: host}}
	}
	want := &mesh.Workload{
		UID: "u", Name: "a", Namespace: "ns", Network: "n", Node: "n1", Hostname: "h", ID: identity.MustParse("spiffe://td/ns/ns/sa/sa"),
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Protocol: mesh.HBONE, HostNetwork: true, Unhealthy: true, NativeTunnel: true,
		Policies: []string{"ns/p"}, Tunnel: &mesh.ApplicationTunnel{Protocol: mesh.TunnelProxy, Port: 15088},
		Waypoint: &mesh.GatewayAddress{Port: 15008, Host: mesh.NamespacedHostname{Namespace: "infra", Hostname: "way"}},
		NetworkGateway: &mesh.GatewayAddress{
			Port: 15009, Addr: mesh.NetworkAddress{Network: "far", Addr: netip.MustParseAddr("172.30.0.1")},
		},
		Runtime: mesh.Runtime{
			WorkloadType: "cronjob", WorkloadName: "owner", CanonicalName: "c", CanonicalRevision: "r", ClusterID: "k",
			Locality: mesh.Locality{Region: "re", Zone: "zo", Subzone: "su"},
		},
		Services: []mesh.Membership{member("ab", "z"), member("ns", "a"), member("ns", "b")}, Capacity: 1,
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Error(diff)
	}
}

// TestEveryFieldOfAService likewise.
func TestEveryFieldOfAService(t *testing.T) {
	way := func(host string) *workload.GatewayAddress {
		return &workload.GatewayAddress{HboneMtlsPort: 15008, Destination: &workload.GatewayAddress_Hostname{
			Hostname: &workload.NamespacedHostname{Namespace: "infra", Hostname: host},
		}}
	}
	got, ignored, err := view.Service(&workload.Service{
		Name: "s", Namespace: "ns", Hostname: "h", Canonical: true, Visibility: workload.Visibility_NAMESPACE,
		Addresses:       []*workload.NetworkAddress{{Network: "n", Address: []byte{10, 96, 0, 1}}},
		Ports:           []*workload.Port{{ServicePort: 80, TargetPort: 8080}},
		SubjectAltNames: []string{"spiffe://td/ns/ns/sa/x", "nonsense"}, Waypoint: way("one"),
		WeightedWaypoints: []*workload.WeightedWaypoint{{Destination: way("two"), Weight: 7}}, IpFamilies: workload.IPFamilies_IPV6_ONLY,
		LoadBalancing: &workload.LoadBalancing{
			Mode: workload.LoadBalancing_FAILOVER, HealthPolicy: workload.LoadBalancing_ALLOW_ALL,
			RoutingPreference: []workload.LoadBalancing_Scope{workload.LoadBalancing_REGION, workload.LoadBalancing_NETWORK},
		},
	})
	if err != nil || len(ignored) != 1 {
		t.Fatalf("%v, ignored %v", err, ignored)
	}
	gateway := func(host string) mesh.GatewayAddress {
		return mesh.GatewayAddress{Port: 15008, Host: mesh.NamespacedHostname{Namespace: "infra", Hostname: host}}
	}
	one := gateway("one")
	want := &mesh.Service{
		Name: "s", Namespace: "ns", Hostname: "h", Canonical: true, Private: true,
		VIPs:  []mesh.VIP{{Network: "n", Prefix: netip.MustParsePrefix("10.96.0.1/32")}},
		Ports: []mesh.PortMapping{{Service: 80, Target: 8080}}, SANs: []identity.ID{identity.MustParse("spiffe://td/ns/ns/sa/x")},
		Waypoint: &one, WeightedWaypoints: []mesh.WeightedWaypoint{{Destination: gateway("two"), Weight: 7}}, Families: mesh.IPv6Only,
		LoadBalancing: mesh.LoadBalancing{
			Mode: mesh.ModeFailover, AllowUnhealthy: true, Preferences: []mesh.Scope{mesh.ScopeRegion, mesh.ScopeNetwork},
		},
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Error(diff)
	}
	for wire, want := range map[workload.LoadBalancing_Mode]mesh.Mode{
		workload.LoadBalancing_UNSPECIFIED_MODE: mesh.ModeStandard, workload.LoadBalancing_STRICT: mesh.ModeStrict,
		workload.LoadBalancing_PASSTHROUGH: mesh.ModePassthrough,
	} {
		s, _, err := view.Service(&workload.Service{LoadBalancing: &workload.LoadBalancing{Mode: wire}})
		if err != nil || s.LoadBalancing.Mode != want {
			t.Errorf("mode %s becomes %v, %v", wire, s.LoadBalancing.Mode, err)
		}
	}
	for wire, want := range map[workload.IPFamilies]mesh.IPFamilies{
		workload.IPFamilies_AUTOMATIC: mesh.AnyFamily, workload.IPFamilies_IPV4_ONLY: mesh.IPv4Only, workload.IPFamilies_DUAL: mesh.DualStack,
	} {
		if s, _, err := view.Service(&workload.Service{IpFamilies: wire}); err != nil || s.Families != want {
			t.Errorf("families %s become %v, %v", wire, s.Families, err)
		}
	}
	for _, scope := range []workload.LoadBalancing_Scope{workload.LoadBalancing_UNSPECIFIED_SCOPE, workload.LoadBalancing_NETWORK + 1} {
		lb := &workload.LoadBalancing{RoutingPreference: []workload.LoadBalancing_Scope{scope}}
		if _, _, err := view.Service(&workload.Service{LoadBalancing: lb}); err == nil {
			t.Errorf("the preference %s is taken", scope)
		}
	}
}

// TestEveryFieldOfAPolicy: each of a match's fields arrives as itself, each comparison too. A field
// that is lost makes an ALLOW wider, a negation that becomes its opposite turns the policy around.
func TestEveryFieldOfAPolicy(t *testing.T) {
	strs := func(s string) []*security.StringMatch {
		return []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: s}}}
	}
	ips := func(last byte) []*security.Address {
		return []*security.Address{{Address: []byte{10, 0, 0, last}, Length: 32}}
	}
	accounts := func(name string) []*security.ServiceAccountMatch {
		return []*security.ServiceAccountMatch{{Namespace: "ns-" + name, ServiceAccount: name}}
	}
	all := &security.Match{
		Namespaces: strs("1"), NotNamespaces: strs("2"), Principals: strs("3"), NotPrincipals: strs("4"),
		SourceIps: ips(5), NotSourceIps: ips(6), DestinationIps: ips(7), NotDestinationIps: ips(8),
		DestinationPorts: []uint32{9}, NotDestinationPorts: []uint32{10}, ServiceAccounts: accounts("11"), NotServiceAccounts: accounts("12"),
	}
	kinds := &security.Match{Principals: []*security.StringMatch{
		{MatchType: &security.StringMatch_Exact{Exact: "e"}},
		{MatchType: &security.StringMatch_Prefix{Prefix: "p"}},
		{MatchType: &security.StringMatch_Suffix{Suffix: "s"}},
		{MatchType: &security.StringMatch_Presence{}},
	}}
	got, err := view.Policy("ns/p", &security.Authorization{
		Name: "p", Namespace: "ns", Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY, DryRun: true,
		Groups: []*security.Group{{Rules: []*security.Rules{{Matches: []*security.Match{all, kinds}}, {}}}, {}},
	})
	if err != nil {
		t.Fatal(err)
	}
	exact := func(s string) []mesh.StringMatch { return []mesh.StringMatch{{Kind: mesh.Exact, Value: s}} }
	cidr := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.0.0." + s + "/32")} }
	account := func(s string) []mesh.ServiceAccount { return []mesh.ServiceAccount{{Namespace: "ns-" + s, Name: s}} }
	want := &mesh.Policy{
		Resource: "ns/p", Namespace: "ns", Name: "p", Scope: mesh.PolicySelector, Action: mesh.Deny, DryRun: true,
		Rules: []mesh.Rule{{mesh.Clause{
			{
				Namespaces: exact("1"), NotNamespaces: exact("2"), Principals: exact("3"), NotPrincipals: exact("4"),
				SourceIPs: cidr("5"), NotSourceIPs: cidr("6"), DestinationIPs: cidr("7"), NotDestinationIPs: cidr("8"),
				DestinationPorts: []uint16{9}, NotDestinationPorts: []uint16{10}, ServiceAccounts: account("11"), NotServiceAccounts: account("12"),
			},
			{Principals: []mesh.StringMatch{
				{Kind: mesh.Exact, Value: "e"}, {Kind: mesh.Prefix, Value: "p"}, {Kind: mesh.Suffix, Value: "s"}, {Kind: mesh.Presence},
			}},
		}, mesh.Clause{}}, {}},
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Error(diff)
	}
	for wire, want := range map[security.Scope]mesh.PolicyScope{
		security.Scope_GLOBAL: mesh.PolicyGlobal, security.Scope_NAMESPACE: mesh.PolicyNamespace,
	} {
		if p, err := view.Policy("x", &security.Authorization{Scope: wire}); err != nil || p.Scope != want || p.Action != mesh.Allow {
			t.Errorf("scope %s becomes %v, %v", wire, p, err)
		}
	}
}
