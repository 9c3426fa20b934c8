package authz_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/internal/authz"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
)

var (
	alice = identity.MustParse("spiffe://td/ns/shop/sa/alice")
	bob   = identity.MustParse("spiffe://other/ns/default/sa/bob")
)

func facts(peer identity.ID) authz.Facts {
	return authz.Facts{Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("10.0.0.2:8080"), Peer: peer}
}

func strs(kind mesh.StringKind, values ...string) []mesh.StringMatch {
	var out []mesh.StringMatch
	for _, v := range values {
		out = append(out, mesh.StringMatch{Kind: kind, Value: v})
	}
	return out
}

func policy(name string, action mesh.PolicyAction, rules ...mesh.Rule) *mesh.Policy {
	return &mesh.Policy{Resource: "ns/" + name, Namespace: "ns", Name: name, Action: action, Scope: mesh.PolicyNamespace, Rules: rules}
}

func one(m mesh.Match) mesh.Rule { return mesh.Rule{mesh.Clause{m}} }

func dry(p *mesh.Policy) *mesh.Policy {
	p.DryRun = true
	return p
}

func ExampleEvaluate() {
	strict := policy("strict", mesh.Deny, one(mesh.Match{NotPrincipals: []mesh.StringMatch{{Kind: mesh.Presence}}}))
	v := authz.Evaluate([]*authz.Policy{strict}, facts(identity.ID{}))
	fmt.Println(v.Allowed, v.Reason)
	// Output: false explicitly denied by: ns/strict
}

// TestDegenerateShapes pins the four shapes whose meaning is not obvious.
func TestDegenerateShapes(t *testing.T) {
	for _, tc := range []struct {
		name string
		p    *mesh.Policy
		want bool
	}{
		{"policy with no rules", policy("p", mesh.Allow), false},
		{"rule with no clauses", policy("p", mesh.Allow, mesh.Rule{}), true},
		{"clause with no matches", policy("p", mesh.Allow, mesh.Rule{mesh.Clause{}}), true},
		{"match with no fields", policy("p", mesh.Allow, one(mesh.Match{})), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := authz.Matches(tc.p, facts(alice)); got != tc.want {
				t.Fatalf("matches = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestFields(t *testing.T) {
	cidr := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	accounts := func(ns, sa string) []mesh.ServiceAccount { return []mesh.ServiceAccount{{Namespace: ns, Name: sa}} }
	// want is the result for alice, bob and nobody.
	for _, tc := range []struct {
		name string
		m    mesh.Match
		want string
	}{
		{"principal exact", mesh.Match{Principals: strs(mesh.Exact, "td/ns/shop/sa/alice")}, "yes no no"},
		{"principal with scheme never", mesh.Match{Principals: strs(mesh.Exact, "spiffe://td/ns/shop/sa/alice")}, "no no no"},
		{"principal is case-sensitive", mesh.Match{Principals: strs(mesh.Exact, "TD/ns/shop/sa/alice")}, "no no no"},
		{"principal prefix", mesh.Match{Principals: strs(mesh.Prefix, "td/")}, "yes no no"},
		{"principal suffix", mesh.Match{Principals: strs(mesh.Suffix, "/bob")}, "no yes no"},
		{"principal presence", mesh.Match{Principals: strs(mesh.Presence, "")}, "yes yes no"},
		{"principal empty prefix", mesh.Match{Principals: strs(mesh.Prefix, "")}, "yes yes no"},
		{"principal either", mesh.Match{Principals: strs(mesh.Suffix, "/bob", "/alice")}, "yes yes no"},
		{"not principal", mesh.Match{NotPrincipals: strs(mesh.Suffix, "/alice")}, "no yes yes"},
		{"not presence: strict", mesh.Match{NotPrincipals: strs(mesh.Presence, "")}, "no no yes"},
		{"namespace exact", mesh.Match{Namespaces: strs(mesh.Exact, "shop")}, "yes no no"},
		{"namespace empty prefix hits nobody too", mesh.Match{Namespaces: strs(mesh.Prefix, "")}, "yes yes yes"},
		{"namespace empty suffix hits nobody too", mesh.Match{Namespaces: strs(mesh.Suffix, "")}, "yes yes yes"},
		{"namespace presence", mesh.Match{Namespaces: strs(mesh.Presence, "")}, "yes yes no"},
		{"not namespace", mesh.Match{NotNamespaces: strs(mesh.Exact, "shop")}, "no yes yes"},
		{"service account", mesh.Match{ServiceAccounts: accounts("shop", "alice")}, "yes no no"},
		{"service account of any trust domain", mesh.Match{ServiceAccounts: accounts("default", "bob")}, "no yes no"},
		{"not service account", mesh.Match{NotServiceAccounts: accounts("shop", "alice")}, "no yes yes"},
		{"service account of another namespace", mesh.Match{ServiceAccounts: accounts("default", "alice")}, "no no no"},
		{"another service account of the namespace", mesh.Match{ServiceAccounts: accounts("shop", "bob")}, "no no no"},
		{"empty service account is not nobody", mesh.Match{ServiceAccounts: accounts("", "")}, "no no no"},
		{"source network", mesh.Match{SourceIPs: cidr("10.0.0.77/24")}, "yes yes yes"},
		{"source elsewhere", mesh.Match{SourceIPs: cidr("10.0.1.0/24")}, "no no no"},
		{"not source", mesh.Match{NotSourceIPs: cidr("10.0.0.0/24")}, "no no no"},
		{"destination", mesh.Match{DestinationIPs: cidr("10.0.0.2/32")}, "yes yes yes"},
		{"destination of the other family", mesh.Match{DestinationIPs: cidr("::/0")}, "no no no"},
		{"not destination", mesh.Match{NotDestinationIPs: cidr("10.0.0.2/32")}, "no no no"},
		{"port", mesh.Match{DestinationPorts: []uint16{80, 8080}}, "yes yes yes"},
		{"other port", mesh.Match{DestinationPorts: []uint16{80}}, "no no no"},
		{"not port", mesh.Match{NotDestinationPorts: []uint16{8080}}, "no no no"},
		{"all fields must hold", mesh.Match{DestinationPorts: []uint16{8080}, Namespaces: strs(mesh.Exact, "shop")}, "yes no no"},
		{"positive and negative", mesh.Match{Principals: strs(mesh.Presence, ""), NotPrincipals: strs(mesh.Suffix, "/bob")}, "yes no no"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, peer := range []identity.ID{alice, bob, {}} {
				answer := "no"
				if authz.Matches(policy("p", mesh.Allow, one(tc.m)), facts(peer)) {
					answer = "yes"
				}
				got = append(got, answer)
			}
			if strings.Join(got, " ") != tc.want {
				t.Fatalf("alice, bob, nobody = %v, want %s", got, tc.want)
			}
		})
	}
}

func TestNesting(t *testing.T) {
	// (namespace shop or default) and port 8080
	p := policy("p", mesh.Allow, mesh.Rule{
		{{Namespaces: strs(mesh.Exact, "shop")}, {Namespaces: strs(mesh.Exact, "default")}},
		{{DestinationPorts: []uint16{8080}}},
	})
	other := facts(alice)
	other.Dst = netip.MustParseAddrPort("10.0.0.2:81")
	if !authz.Matches(p, facts(alice)) || !authz.Matches(p, facts(bob)) || authz.Matches(p, facts(identity.ID{})) || authz.Matches(p, other) {
		t.Fatal("(a or b) and port is wrong")
	}
}

var (
	all  = mesh.Rule{}
	none = one(mesh.Match{DestinationPorts: []uint16{1}})
)

func TestOrder(t *testing.T) {
	const noAllow = "allow policies exist, but none allowed"
	for _, tc := range []struct {
		name     string
		policies []*mesh.Policy
		allowed  bool
		reason   string
	}{
		{"no policy", nil, true, "no allow policies, allow"},
		{"deny matches", []*mesh.Policy{policy("a", mesh.Allow, all), policy("d", mesh.Deny, all)}, false, "explicitly denied by: ns/d"},
		{"deny does not match", []*mesh.Policy{policy("d", mesh.Deny, none)}, true, "no allow policies, allow"},
		{"deny without rules", []*mesh.Policy{policy("d", mesh.Deny)}, true, "no allow policies, allow"},
		{"allow matches", []*mesh.Policy{policy("n", mesh.Allow, none), policy("a", mesh.Allow, all)}, true, "allow policy match"},
		{"allow does not match", []*mesh.Policy{policy("a", mesh.Allow, none)}, false, noAllow},
		{"allow nothing", []*mesh.Policy{policy("a", mesh.Allow)}, false, noAllow},
	} {
		for _, reversed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s reversed=%v", tc.name, reversed), func(t *testing.T) {
				policies := slices.Clone(tc.policies)
				if reversed {
					slices.Reverse(policies)
				}
				v := authz.Evaluate(policies, facts(alice))
				if v.Allowed != tc.allowed || v.Reason != tc.reason {
					t.Fatalf("verdict %+v, want allowed=%v %q", v, tc.allowed, tc.reason)
				}
				var denied *authz.Denied
				if errors.As(v.Err(), &denied) == tc.allowed {
					t.Fatalf("Err() = %v", v.Err())
				}
				if denied != nil && denied.Error() != "connection closed due to policy rejection: "+tc.reason {
					t.Fatalf("text %q", denied)
				}
			})
		}
	}
}

func TestDryRunNeverDecides(t *testing.T) {
	enforced := [][]*mesh.Policy{
		nil,
		{policy("a", mesh.Allow, all)},
		{policy("a", mesh.Allow, none)},
		{policy("d", mesh.Deny, all)},
	}
	trials := [][]*mesh.Policy{
		{dry(policy("x", mesh.Deny, all))},
		{dry(policy("x", mesh.Allow, all))},
		{dry(policy("x", mesh.Allow, none))},
		{dry(policy("x", mesh.Deny, none)), dry(policy("y", mesh.Allow))},
	}
	for i, e := range enforced {
		for j, d := range trials {
			want := authz.Evaluate(e, facts(alice))
			if got := authz.Evaluate(slices.Concat(d, e), facts(alice)); got != want {
				t.Errorf("enforced %d with dry run %d: %+v, want %+v", i, j, got, want)
			}
		}
	}
}

func TestZeroVerdictRefuses(t *testing.T) {
	if (authz.Verdict{}).Err() == nil {
		t.Fatal("the zero verdict allows")
	}
	if v := authz.Judge(mesh.NewView(), nil, facts(alice), nil); v.Allowed {
		t.Fatal("a connection to nobody is allowed")
	}
}

func TestJudgeNotes(t *testing.T) {
	w := &mesh.Workload{UID: "w", Namespace: "ns", Policies: []string{"ns/missing"}}
	v, _ := mesh.NewView().With(mesh.Batch{Policies: []*mesh.Policy{
		dry(policy("trial", mesh.Deny, all)),
		dry(policy("try", mesh.Allow, none)),
	}})
	var got []string
	verdict := authz.Judge(v, w, facts(alice), func(e authz.Event) { got = append(got, strings.TrimSpace(e.Text+" "+e.Policy)) })
	want := []string{
		"dry-run: deny policy match ns/trial", "skipping unknown policy ns/missing",
		"dry-run: no allow policies match", "no allow policies, allow",
	}
	if !verdict.Allowed || !slices.Equal(got, want) {
		t.Fatalf("verdict %+v, notes %q; want %q", verdict, got, want)
	}
}

// TestNotesTellTheStep: each way to a verdict says which policy took it, the first one that matched.
func TestNotesTellTheStep(t *testing.T) {
	for _, tc := range []struct {
		policies []*mesh.Policy
		policy   string
		want     string
	}{
		{[]*mesh.Policy{policy("d1", mesh.Deny, all), policy("d2", mesh.Deny, all)}, "ns/d1", "deny policy match ns/d1"},
		{[]*mesh.Policy{policy("a1", mesh.Allow, all), policy("a2", mesh.Allow, all)}, "ns/a1", "allow policy match ns/a1"},
		{[]*mesh.Policy{policy("a", mesh.Allow, none)}, "", "no allow policies matched"},
		{[]*mesh.Policy{dry(policy("x", mesh.Allow, all))}, "", "dry-run: allow policy match ns/x, no allow policies, allow"},
		{[]*mesh.Policy{dry(policy("x", mesh.Allow, none)), policy("a", mesh.Allow, all)}, "ns/a", "allow policy match ns/a"},
	} {
		v, _ := mesh.NewView().With(mesh.Batch{Policies: tc.policies})
		var got []string
		verdict := authz.Judge(v, &mesh.Workload{UID: "w", Namespace: "ns"}, facts(alice), func(e authz.Event) {
			got = append(got, strings.TrimSpace(e.Text+" "+e.Policy))
		})
		if verdict.Policy != tc.policy || strings.Join(got, ", ") != tc.want {
			t.Errorf("verdict %+v, notes %q; want %q by %q", verdict, got, tc.want, tc.policy)
		}
	}
}
