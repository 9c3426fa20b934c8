package authzl7_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"

	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/integration/authzl7"
)

// chance makes policies and requests out of few words, so that they meet.
type chance struct{ *rand.Rand }

func (c chance) one(list ...string) string { return list[c.IntN(len(list))] }

// some picks up to two, often none.
func (c chance) some(list ...string) []string {
	var out []string
	for range max(c.IntN(5)-2, 0) {
		out = append(out, c.one(list...))
	}
	return out
}

// least is some with at least one.
func (c chance) least(list ...string) []string {
	return append(c.some(list...), c.one(list...))
}

func principals() []string {
	return []string{
		"cluster.local/ns/shop/sa/client", "cluster.local/ns/shop/sa/admin", "cluster.local/ns/shop-2/sa/client", "cluster.local/*", "*/sa/client",
		"*", "cluster.local/ns/shop*", "*dmin", "*shop/sa/client", "other.example/ns/shop/sa/client",
	}
}

func namespaces() []string {
	return []string{"shop", "shop-2", "sh*", "*2", "*", "s*p", "elsewhere", "*sa*"}
}

func accounts() []string {
	return []string{"client", "admin", "shop/client", "shop-2/client", "elsewhere/admin"}
}

func domains() []string {
	return []string{"cluster.local", "cluster*", "*.local", "*", "other.example"}
}

func blocks() []string {
	return []string{"10.0.0.1", "10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/8", "192.168.0.0/16", "fd00::/8", "fd00::1", "0.0.0.0/0"}
}

func hosts() []string {
	return []string{"web.shop", "WEB.shop", "web*", "*.shop", "*.example", "*", "a.example", "web.shop:80", "a.example:*", "*.shop:8080"}
}

func paths() []string {
	return []string{
		"/", "/a", "/a/b", "/a/*", "/a*", "*/b", "*", "/a/{*}", "/{*}/b", "/a/{**}", "/a/{**}/c", "/{*}/{**}", "/a/{*}/c", "/A", "*.html", "/a/*b", "/*/b*",
	}
}

func (c chance) source() *securityapi.Source {
	for {
		s := &securityapi.Source{IpBlocks: c.some(blocks()...), NotIpBlocks: c.some(blocks()...), RemoteIpBlocks: c.some(blocks()...)}
		if c.IntN(3) == 0 {
			s.ServiceAccounts, s.NotServiceAccounts = c.some(accounts()...), c.some(accounts()...)
		} else {
			s.Principals, s.NotPrincipals = c.some(principals()...), c.some(principals()...)
			s.Namespaces, s.NotNamespaces = c.some(namespaces()...), c.some(namespaces()...)
		}
		if c.IntN(4) == 0 {
			s.TrustDomains, s.NotTrustDomains = c.some(domains()...), c.some(domains()...)
			s.NotRemoteIpBlocks = c.some(blocks()...)
		}
		if s.String() != "" {
			return s
		}
	}
}

func (c chance) operation() *securityapi.Operation {
	methods := []string{"GET", "POST", "P*", "*T", "*", "DELETE"}
	ports := []string{"80", "81", "9090"}
	for {
		o := &securityapi.Operation{
			Hosts: c.some(hosts()...), NotHosts: c.some(hosts()...), Methods: c.some(methods...), NotMethods: c.some(methods...),
			Paths: c.some(paths()...), NotPaths: c.some(paths()...), Ports: c.some(ports...), NotPorts: c.some(ports...),
		}
		if o.String() != "" {
			return o
		}
	}
}

func (c chance) condition() *securityapi.Condition {
	vocabulary := map[string][]string{
		"request.headers[X-Team]": {"red", "re*", "*d", "*", "red,blue", "blue"}, "request.headers[X-None]": {"*", "x", "x*"},
		"source.ip": blocks(), "remote.ip": blocks(), "destination.ip": {"10.96.0.1", "10.96.0.0/16", "10.97.0.0/16"}, "destination.port": {"80", "9090", "81"},
		"source.namespace": namespaces(), "source.principal": principals(), "source.serviceAccount": accounts(), "source.trustDomain": domains(),
	}
	key := c.one("request.headers[X-Team]", "request.headers[X-Team]", "request.headers[X-None]", "source.ip", "remote.ip", "destination.ip",
		"destination.port", "source.namespace", "source.principal", "source.serviceAccount", "source.trustDomain")
	w := &securityapi.Condition{Key: key}
	switch c.IntN(3) {
	case 0:
		w.Values = c.least(vocabulary[key]...)
	case 1:
		w.NotValues = c.least(vocabulary[key]...)
	default:
		w.Values, w.NotValues = c.least(vocabulary[key]...), c.least(vocabulary[key]...)
	}
	return w
}

func (c chance) rule() *securityapi.Rule {
	r := &securityapi.Rule{}
	for range max(c.IntN(4)-1, 0) {
		r.From = append(r.From, &securityapi.Rule_From{Source: c.source()})
	}
	for range max(c.IntN(4)-1, 0) {
		r.To = append(r.To, &securityapi.Rule_To{Operation: c.operation()})
	}
	for range max(c.IntN(4)-2, 0) {
		r.When = append(r.When, c.condition())
	}
	return r
}

func (c chance) policy(n int) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{
		Name: "p" + strconv.Itoa(n), Namespace: c.one("shop", "shop", "shop", "istio-system", "elsewhere"),
	}}
	const gateway = "gateway.networking.k8s.io"
	refs := []*typeapi.PolicyTargetReference{
		{Kind: "Service", Name: "web"},
		{Kind: "Service", Name: "web"},
		{Group: "core", Kind: "Service", Name: "web"},
		{Kind: "Service", Name: "other"},
		{Group: gateway, Kind: "Gateway", Name: "waypoint"},
		{Group: gateway, Kind: "Gateway", Name: "other"},
		{Group: gateway, Kind: "GatewayClass", Name: "istio-waypoint"},
		{Group: gateway, Kind: "GatewayClass", Name: "istio"},
	}
	if p.Namespace == "istio-system" {
		refs = refs[4:]
	}
	for range 1 + c.IntN(2) {
		p.Spec.TargetRefs = append(p.Spec.TargetRefs, refs[c.IntN(len(refs))])
	}
	switch c.IntN(12) {
	case 0:
		p.Spec.Action = securityapi.AuthorizationPolicy_AUDIT
	case 1:
		p.Spec.Action = securityapi.AuthorizationPolicy_CUSTOM
		p.Spec.ActionDetail = &securityapi.AuthorizationPolicy_Provider{Provider: &securityapi.AuthorizationPolicy_ExtensionProvider{Name: "nobody"}}
	case 2, 3, 4, 5:
		p.Spec.Action = securityapi.AuthorizationPolicy_DENY
	default:
	}
	if c.IntN(10) == 0 {
		p.Annotations = map[string]string{"istio.io/dry-run": "true"}
		if p.Spec.GetAction() == securityapi.AuthorizationPolicy_CUSTOM {
			p.Annotations = nil // a provider that is not there denies all the same
		}
	}
	least := 1
	if p.Spec.GetAction() == securityapi.AuthorizationPolicy_ALLOW {
		least = 0
	}
	for range max(c.IntN(4), least) {
		p.Spec.Rules = append(p.Spec.Rules, c.rule())
	}
	return p
}

func (c chance) policies() []*securityv1.AuthorizationPolicy {
	var out []*securityv1.AuthorizationPolicy
	for n := range 1 + c.IntN(4) {
		out = append(out, c.policy(n))
	}
	return out
}

func (c chance) request() authzl7.Request {
	q := authzl7.Request{
		TCP: c.IntN(4) == 0,
		Principal: c.one("", "cluster.local/ns/shop/sa/client", "cluster.local/ns/shop/sa/client", "cluster.local/ns/shop/sa/admin",
			"cluster.local/ns/shop-2/sa/client", "cluster.local/ns/elsewhere/sa/admin", "other.example/ns/shop/sa/client"),
		Source: netip.MustParseAddrPort(c.one("10.0.0.1:4000", "10.0.0.2:4001", "10.0.1.7:4002", "192.168.3.4:4003", "[fd00::1]:4004")),
	}
	if q.TCP {
		q.To = netip.MustParseAddrPort("10.96.0.1:9090")
		return q
	}
	q.To = netip.MustParseAddrPort("10.96.0.1:80")
	q.Host = c.one("web.shop", "Web.Shop", "web.shop:80", "web.shop:8080", "web.shop.", "a.example", "a.example:1", "b.a.example", "web")
	q.Method = c.one("GET", "POST", "PUT", "DELETE", "OPTIONS")
	q.Path = c.one("/", "/a", "/a/", "/a/b", "/a/b/c", "/a//c", "/b", "/b/b", "/A", "/x.html", "/a/*b", "/ab", "/a/c", "/a/x/c")
	switch c.IntN(3) {
	case 0:
		q.Header = map[string]string{"X-Team": c.one("red", "blue", "red,blue", "reed", "")}
	default:
	}
	return q
}

// world is a set of policies and the requests that they judge.
type world struct {
	Policies []*securityv1.AuthorizationPolicy `json:"policies"`
	Requests []authzl7.Request                 `json:"requests"`
}

func worlds(seed uint64, sets, requests int) []world {
	c := chance{rand.New(rand.NewPCG(seed, 7))}
	out := make([]world, sets)
	for i := range out {
		out[i].Policies = c.policies()
		for range requests {
			out[i].Requests = append(out[i].Requests, c.request())
		}
	}
	return out
}

func describe(w world, i int) string {
	text := fmt.Sprintf("%+v\n", w.Requests[i])
	for _, p := range w.Policies {
		text += fmt.Sprintf("%s/%s %v %v\n", p.Namespace, p.Name, p.Annotations, p.Spec.String())
	}
	return text
}
