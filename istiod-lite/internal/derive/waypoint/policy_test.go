package waypoint

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	"google.golang.org/protobuf/proto"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func onePolicy(action securityapi.AuthorizationPolicy_Action, rule *securityapi.Rule) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
	p.Spec.Action = action
	p.Spec.Rules = []*securityapi.Rule{rule}
	p.Spec.TargetRefs = []*typeapi.PolicyTargetReference{{Kind: "Service", Name: "web"}}
	return p
}

func from(s *securityapi.Source) *securityapi.Rule {
	return &securityapi.Rule{From: []*securityapi.Rule_From{{Source: s}}}
}

func to(o *securityapi.Operation) *securityapi.Rule {
	return &securityapi.Rule{To: []*securityapi.Rule_To{{Operation: o}}}
}

func when(key string, values ...string) *securityapi.Rule {
	return &securityapi.Rule{When: []*securityapi.Condition{{Key: key, Values: values}}}
}

// TestUnexpressibleFailsClosed: whatever cannot be judged takes an ALLOW rule away and makes a DENY rule match more.
func TestUnexpressibleFailsClosed(t *testing.T) {
	rules := map[string]*securityapi.Rule{
		"no claim":          when("request.auth.claims[]", "b"),
		"unclosed claim":    when("request.auth.claims[a", "b"),
		"unknown of tokens": when("request.auth.weather", "b"),
		"unknown key":       when("request.weather", "fine"),
		"no values":         when("source.ip"),
		"no source":         from(nil),
		"empty source":      from(&securityapi.Source{}),
		"empty operation":   to(&securityapi.Operation{}),
		"bad range":         from(&securityapi.Source{IpBlocks: []string{"10.0.0.0/8", "10.0.0"}}),
		"bad negated range": from(&securityapi.Source{NotIpBlocks: []string{"10.0.0"}}),
		"bad port":          to(&securityapi.Operation{Ports: []string{"http"}}),
		"bad template":      to(&securityapi.Operation{Paths: []string{"/{**}/{*}"}}),
		"bad account":       from(&securityapi.Source{ServiceAccounts: []string{"a/b/c"}}),
		"empty value":       to(&securityapi.Operation{Methods: []string{""}}),
		"bad header":        when("request.headers[a b]", "x"),
	}
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			d := &derivation{in: Input{Mesh: Mesh{TrustDomain: "cluster.local"}}, findings: map[Finding]bool{}}
			if c := d.compilePolicy(onePolicy(securityapi.AuthorizationPolicy_ALLOW, rule)); len(c.http) != 0 || len(c.tcp) != 0 {
				t.Errorf("an ALLOW rule survived: %v %v", c.http, c.tcp)
			}
			if len(d.findings) == 0 {
				t.Error("nobody is told")
			}
			c := d.compilePolicy(onePolicy(securityapi.AuthorizationPolicy_DENY, rule))
			for _, p := range []map[string]*rbacv3.Policy{c.http, c.tcp} {
				if len(p) != 1 || !matchesEverything(p["ns[shop]-policy[p]-rule[0]"]) {
					t.Errorf("a DENY rule does not match everything: %v", p)
				}
			}
		})
	}
}

func matchesEverything(p *rbacv3.Policy) bool {
	return p.GetPermissions()[0].GetAny() && p.GetPrincipals()[0].GetAny()
}

// TestHTTPAttributesOnTCP: bytes have no method. ALLOW rules that name one are dropped there, DENY rules ignore it.
func TestHTTPAttributesOnTCP(t *testing.T) {
	rule := to(&securityapi.Operation{Methods: []string{"GET"}, Ports: []string{"80"}})
	d := &derivation{findings: map[Finding]bool{}}
	if c := d.compilePolicy(onePolicy(securityapi.AuthorizationPolicy_ALLOW, rule)); len(c.http) != 1 || len(c.tcp) != 0 {
		t.Errorf("ALLOW: http %v tcp %v", c.http, c.tcp)
	}
	c := d.compilePolicy(onePolicy(securityapi.AuthorizationPolicy_DENY, rule))
	if got := c.tcp["ns[shop]-policy[p]-rule[0]"].GetPermissions()[0].GetDestinationPort(); got != 80 {
		t.Errorf("DENY on tcp: %v", c.tcp)
	}
}

// TestSelectorPoliciesDoNotApply: a policy by selector, or for a whole namespace, is the node proxies' business.
func TestSelectorPoliciesDoNotApply(t *testing.T) {
	in := parseWorld(t, []byte("service web.shop 10.96.0.1 80/http"), nil)
	p := onePolicy(securityapi.AuthorizationPolicy_DENY, &securityapi.Rule{})
	p.Spec.TargetRefs = nil
	selected := p.DeepCopy()
	selected.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: map[string]string{"app": "web"}}
	selected.Name = "selected"
	before, _ := Derive(in)
	in.Policies = []*securityv1.AuthorizationPolicy{p, selected}
	after, findings := Derive(in)
	if !slices.Equal(hashes(before), hashes(after)) || len(findings) != 0 {
		t.Errorf("something changed: %v", findings)
	}
}

// hashes lists every resource with its version.
func hashes(r Resources) []string {
	var out []string
	for _, url := range []string{ListenerType, ClusterType, EndpointType, RouteType} {
		for _, res := range r.Pack(url) {
			out = append(out, res.Name+" "+res.Version)
		}
	}
	return out
}

// TestDeterministic: the order of the rows does not show.
func TestDeterministic(t *testing.T) {
	for _, w := range worlds(t) {
		want, findings := Derive(w.in)
		for seed := range uint64(10) {
			in := shuffled(w.in, rand.New(rand.NewPCG(seed, 1)))
			got, again := Derive(in)
			if !slices.Equal(hashes(want), hashes(got)) || !slices.Equal(findings, again) {
				t.Errorf("%s: shuffle %d changes the result", w.path, seed)
			}
		}
	}
}

func shuffled(in Input, r *rand.Rand) Input {
	in.Services = shuffle(in.Services, r)
	for i := range in.Services {
		in.Services[i].Endpoints = shuffle(in.Services[i].Endpoints, r)
	}
	in.Workloads = shuffle(in.Workloads, r)
	in.HTTPRoutes = shuffle(in.HTTPRoutes, r)
	in.GRPCRoutes = shuffle(in.GRPCRoutes, r)
	in.VirtualServices = shuffle(in.VirtualServices, r)
	in.DestinationRules = shuffle(in.DestinationRules, r)
	in.Policies = shuffle(in.Policies, r)
	in.Authentications = shuffle(in.Authentications, r)
	return in
}

func shuffle[T any](list []T, r *rand.Rand) []T {
	out := slices.Clone(list)
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// TestNoEmptyRanges: Envoy refuses a listener whose matcher has an empty list or map anywhere.
func TestNoEmptyRanges(t *testing.T) {
	for _, w := range worlds(t) {
		r, _ := Derive(w.in)
		text := asYAML(t, r.Listeners[MainInternal])
		for _, bad := range []string{"ranges: []", "rangeMatchers: []", "map: {}", "exactMatchMap: {}"} {
			if strings.Contains(text, bad) {
				t.Errorf("%s: %s", w.path, bad)
			}
		}
		if r.Listeners[MainInternal].GetFilterChainMatcher() == nil {
			t.Errorf("%s: no matcher", w.path)
		}
	}
}

// without are those of names that r has as clusters without endpoints of their own.
func without(r Resources, names ...string) (out []string) {
	for _, n := range names {
		if r.Clusters[n] != nil {
			out = append(out, n)
		}
	}
	return out
}

// TestReferencesResolve: every chain, route configuration and cluster that something names is derived too, except
// those whose absence is the answer.
func TestReferencesResolve(t *testing.T) {
	for _, w := range worlds(t) {
		r, _ := Derive(w.in)
		outside := 0
		for name, want := range r.Clusters {
			if t := want.GetType(); t != clusterv3.Cluster_EDS && t != clusterv3.Cluster_STATIC && name != ConnectOriginate {
				outside++ // its endpoints are found without a list
			}
			if eds := want.GetEdsClusterConfig(); eds != nil && r.Endpoints[eds.GetServiceName()] == nil {
				t.Errorf("%s: cluster %s has no endpoints resource", w.path, name)
			}
		}
		if got, want := len(r.Endpoints), len(r.Clusters)-3-outside-len(without(r, nobodyAnswers)); got != want {
			t.Errorf("%s: %d endpoint resources for %d service clusters", w.path, got, want)
		}
		for _, name := range slices.Sorted(maps.Keys(r.Routes)) {
			if proto.Size(r.Routes[name]) == 0 || len(r.Routes[name].GetVirtualHosts()[0].GetTypedPerFilterConfig()) < 3 {
				t.Errorf("%s: routes %s do not say which policies there are", w.path, name)
			}
		}
	}
}
