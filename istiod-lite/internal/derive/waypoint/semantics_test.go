package waypoint

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"pgregory.net/rapid"
)

// request is what a policy may look at.
type request struct {
	principal          string // "cluster.local/ns/a/sa/b"
	src                netip.Addr
	host, method, path string
	port               string
	header             string // of x-h; "" is absent
}

// The slow, obvious reading of a policy.

func reads(pattern, value string) bool {
	switch {
	case pattern == "*":
		return value != ""
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(value, pattern[1:])
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(value, pattern[:len(pattern)-1])
	}
	return pattern == value
}

func anyOf(list []string, match func(string) bool) bool {
	return slices.ContainsFunc(list, match)
}

// says judges one attribute: any of the values if there are some, none of the others.
func says(values, not []string, match func(string) bool) bool {
	return (len(values) == 0 || anyOf(values, match)) && !anyOf(not, match)
}

func (r request) from(s *securityapi.Source, namespace string) bool {
	part := strings.Split(r.principal, "/")
	within := func(block string) bool {
		p, err := netip.ParsePrefix(block)
		return err == nil && p.Contains(r.src)
	}
	return says(s.GetPrincipals(), s.GetNotPrincipals(), func(v string) bool { return reads(v, r.principal) }) &&
		says(s.GetNamespaces(), s.GetNotNamespaces(), func(v string) bool { return reads(v, part[2]) }) &&
		says(s.GetServiceAccounts(), s.GetNotServiceAccounts(), func(v string) bool {
			if !strings.Contains(v, "/") {
				v = namespace + "/" + v
			}
			return v == part[2]+"/"+part[4]
		}) &&
		says(s.GetIpBlocks(), s.GetNotIpBlocks(), within)
}

func (r request) to(o *securityapi.Operation) bool {
	return says(o.GetHosts(), o.GetNotHosts(), func(v string) bool { return reads(strings.ToLower(v), strings.ToLower(r.host)) }) &&
		says(o.GetMethods(), o.GetNotMethods(), func(v string) bool { return reads(v, r.method) }) &&
		says(o.GetPaths(), o.GetNotPaths(), func(v string) bool { return reads(v, r.path) }) &&
		says(o.GetPorts(), o.GetNotPorts(), func(v string) bool { return v == r.port })
}

func (r request) rule(rule *securityapi.Rule, namespace string) bool {
	from, to := len(rule.GetFrom()) == 0, len(rule.GetTo()) == 0
	for _, f := range rule.GetFrom() {
		from = from || r.from(f.GetSource(), namespace)
	}
	for _, o := range rule.GetTo() {
		to = to || r.to(o.GetOperation())
	}
	for _, w := range rule.GetWhen() {
		value := map[string]string{"source.principal": r.principal, "request.headers[x-h]": r.header}[w.GetKey()]
		if !says(w.GetValues(), w.GetNotValues(), func(v string) bool { return value != "" && reads(v, value) }) {
			return false
		}
	}
	return from && to
}

// allowed is the mesh's rule: DENY first, then ALLOW if there is any.
func (r request) allowed(policies []*securityv1.AuthorizationPolicy) bool {
	guarded, granted := false, false
	for _, p := range policies {
		hit := slices.ContainsFunc(p.Spec.GetRules(), func(rule *securityapi.Rule) bool { return r.rule(rule, p.Namespace) })
		if p.Spec.GetAction() == securityapi.AuthorizationPolicy_DENY {
			if hit {
				return false
			}
			continue
		}
		guarded, granted = true, granted || hit
	}
	return !guarded || granted
}

// The reading of what is sent to a proxy.

func stringHolds(m *matcherv3.StringMatcher, v string) bool {
	fold := func(s string) string {
		if m.GetIgnoreCase() {
			return strings.ToLower(s)
		}
		return s
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return fold(p.Exact) == fold(v)
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(fold(v), fold(p.Prefix))
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(fold(v), fold(p.Suffix))
	case *matcherv3.StringMatcher_SafeRegex:
		return regexp.MustCompile("^(?:" + p.SafeRegex.GetRegex() + ")$").MatchString(v)
	}
	panic("a matcher that the twin does not know")
}

func (r request) headerHolds(h *routev3.HeaderMatcher) bool {
	v := map[string]string{":authority": r.host, ":method": r.method, "x-h": r.header}[h.GetName()]
	if v == "" {
		return false
	}
	return h.GetPresentMatch() || stringHolds(h.GetStringMatch(), v)
}

func (r request) rangeHolds(c *corev3.CidrRange) bool {
	return netip.PrefixFrom(netip.MustParseAddr(c.GetAddressPrefix()), int(c.GetPrefixLen().GetValue())).Contains(r.src)
}

func (r request) principalHolds(p *rbacv3.Principal) bool {
	switch i := p.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return true
	case *rbacv3.Principal_NotId:
		return !r.principalHolds(i.NotId)
	case *rbacv3.Principal_AndIds:
		return !slices.ContainsFunc(i.AndIds.GetIds(), func(p *rbacv3.Principal) bool { return !r.principalHolds(p) })
	case *rbacv3.Principal_OrIds:
		return slices.ContainsFunc(i.OrIds.GetIds(), r.principalHolds)
	case *rbacv3.Principal_FilterState:
		return stringHolds(i.FilterState.GetStringMatch(), "spiffe://"+r.principal)
	case *rbacv3.Principal_DirectRemoteIp:
		return r.rangeHolds(i.DirectRemoteIp)
	case *rbacv3.Principal_Header:
		return r.headerHolds(i.Header)
	}
	panic("a principal that the twin does not know")
}

func (r request) permissionHolds(p *rbacv3.Permission) bool {
	switch i := p.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return true
	case *rbacv3.Permission_NotRule:
		return !r.permissionHolds(i.NotRule)
	case *rbacv3.Permission_AndRules:
		return !slices.ContainsFunc(i.AndRules.GetRules(), func(p *rbacv3.Permission) bool { return !r.permissionHolds(p) })
	case *rbacv3.Permission_OrRules:
		return slices.ContainsFunc(i.OrRules.GetRules(), r.permissionHolds)
	case *rbacv3.Permission_DestinationPort:
		return decimal(i.DestinationPort) == r.port
	case *rbacv3.Permission_Header:
		return r.headerHolds(i.Header)
	case *rbacv3.Permission_UrlPath:
		return stringHolds(i.UrlPath.GetPath(), r.path)
	}
	panic("a permission that the twin does not know")
}

func (r request) rbac(rules *rbacv3.RBAC) (matched bool) {
	for _, p := range rules.GetPolicies() {
		if slices.ContainsFunc(p.GetPermissions(), r.permissionHolds) && slices.ContainsFunc(p.GetPrincipals(), r.principalHolds) {
			return true
		}
	}
	return false
}

func some(t *rapid.T, label string, values ...string) []string {
	return rapid.SliceOfN(rapid.SampledFrom(values), 0, 2).Draw(t, label)
}

func drawRule(t *rapid.T) *securityapi.Rule {
	rule := &securityapi.Rule{}
	for range rapid.IntRange(0, 2).Draw(t, "from") {
		s := &securityapi.Source{
			NotPrincipals: some(t, "notPrincipals", "cluster.local/ns/a/sa/x", "*/sa/y"),
			NotNamespaces: some(t, "notNamespaces", "a", "b*"), IpBlocks: some(t, "ipBlocks", "10.0.0.0/8", "10.1.0.0/16"),
			NotIpBlocks: some(t, "notIpBlocks", "10.1.2.0/24"),
		}
		if rapid.Bool().Draw(t, "by account") {
			s.ServiceAccounts = some(t, "serviceAccounts", "a/x", "x", "bb/y")
			s.NotPrincipals, s.NotNamespaces = nil, nil
		} else {
			s.Principals = some(t, "principals", "cluster.local/ns/a/sa/x", "cluster.local/ns/a*", "*/sa/y", "*")
			s.Namespaces = some(t, "namespaces", "a", "b*", "*b")
		}
		if s.String() != "" {
			rule.From = append(rule.From, &securityapi.Rule_From{Source: s})
		}
	}
	for range rapid.IntRange(0, 2).Draw(t, "to") {
		o := &securityapi.Operation{
			Hosts: some(t, "hosts", "Web", "web.*", "*.shop", "*"), NotHosts: some(t, "notHosts", "web.shop"),
			Methods: some(t, "methods", "GET", "P*", "*"), NotMethods: some(t, "notMethods", "POST"),
			Paths: some(t, "paths", "/a", "/a*", "*b", "*"), NotPaths: some(t, "notPaths", "/a/b"),
			Ports: some(t, "ports", "80", "81"), NotPorts: some(t, "notPorts", "81"),
		}
		if o.String() != "" {
			rule.To = append(rule.To, &securityapi.Rule_To{Operation: o})
		}
	}
	for _, key := range some(t, "when", "source.principal", "request.headers[x-h]") {
		c := &securityapi.Condition{Key: key, Values: some(t, "values", "v", "v*", "*", "*/sa/x"), NotValues: some(t, "notValues", "vw")}
		if len(c.GetValues())+len(c.GetNotValues()) > 0 {
			rule.When = append(rule.When, c)
		}
	}
	return rule
}

// TestPoliciesKeepTheirMeaning compares random policies, read slowly, with what a proxy makes of their translation.
func TestPoliciesKeepTheirMeaning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := Input{Mesh: Mesh{TrustDomain: "cluster.local"}}
		for i := range rapid.IntRange(1, 3).Draw(t, "policies") {
			p := onePolicy(rapid.SampledFrom([]securityapi.AuthorizationPolicy_Action{
				securityapi.AuthorizationPolicy_ALLOW, securityapi.AuthorizationPolicy_DENY,
			}).Draw(t, "action"), nil)
			p.Name, p.Namespace, p.Spec.Rules = decimal(uint32(i)), "a", nil
			for range rapid.IntRange(0, 2).Draw(t, "rules") {
				p.Spec.Rules = append(p.Spec.Rules, drawRule(t))
			}
			in.Policies = append(in.Policies, p)
		}
		d := newDerivation(in)
		set := policySet(d.policies)
		deny, _ := set.rules(denyKind, true)
		allow, _ := set.rules(allowKind, true)
		for range 20 {
			r := request{
				principal: rapid.SampledFrom([]string{"cluster.local/ns/a/sa/x", "cluster.local/ns/a/sa/y", "cluster.local/ns/bb/sa/y", "td/ns/b/sa/x", "cluster.local/ns/ab/sa/x", "td/ns/a/sa/xx"}).Draw(t, "principal"),
				src:       netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.1", "10.1.2.3", "192.0.2.1"}).Draw(t, "src")),
				host:      rapid.SampledFrom([]string{"web", "web.shop", "WEB.shop", "other"}).Draw(t, "host"),
				method:    rapid.SampledFrom([]string{"GET", "POST", "PUT"}).Draw(t, "method"),
				path:      rapid.SampledFrom([]string{"/a", "/a/b", "/b", "/c"}).Draw(t, "path"),
				port:      rapid.SampledFrom([]string{"80", "81"}).Draw(t, "port"),
				header:    rapid.SampledFrom([]string{"", "v", "vw", "other"}).Draw(t, "header"),
			}
			got := !r.rbac(deny) && (allow == nil || r.rbac(allow))
			if want := r.allowed(in.Policies); got != want {
				t.Fatalf("%+v: allowed %v, want %v\ndeny %v\nallow %v\n%v", r, got, want, deny, allow, in.Policies)
			}
		}
	})
}
