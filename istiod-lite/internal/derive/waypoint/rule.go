package waypoint

import (
	"maps"
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// ruleIndex finds the DestinationRule of a service as a waypoint sees it: the waypoint's namespace, then the service's,
// then the root namespace; inside one the exact host before wildcards, the longest first.
type ruleIndex struct {
	mesh      Mesh
	namespace string // the waypoint's
	rules     map[string][]hostRule
}

type hostRule struct {
	host string
	rule *networkingv1.DestinationRule
}

// destination is the merge of the rules that apply to one service; nil is a service without rules.
type destination struct {
	owner   types.NamespacedName // the rule whose traffic policy counts
	traffic *networkingapi.TrafficPolicy
	subsets map[string]*networkingapi.Subset
}

func indexRules(rules []*networkingv1.DestinationRule, m Mesh, waypointNamespace string) *ruleIndex {
	x := &ruleIndex{mesh: m, namespace: waypointNamespace, rules: map[string][]hostRule{}}
	for _, r := range rules {
		if len(r.Spec.GetWorkloadSelector().GetMatchLabels()) > 0 {
			continue // concerns only the proxies of the selected pods, never a waypoint
		}
		host := qualify(r.Spec.GetHost(), r.GetNamespace(), m)
		x.rules[r.GetNamespace()] = append(x.rules[r.GetNamespace()], hostRule{host: host, rule: r})
	}
	return x
}

// qualify completes a short host name with the namespace of the object that says it.
func qualify(host, namespace string, m Mesh) string {
	if host == "" || strings.ContainsAny(host, ".*:") {
		return host
	}
	return host + "." + namespace + ".svc." + m.ClusterDomain
}

func (x *ruleIndex) forService(s *Service) *destination {
	for i, namespace := range []string{x.namespace, s.Namespace, x.mesh.RootNamespace} {
		host := ""
		for _, r := range x.rules[namespace] {
			if hostMatches(r.host, s.Hostname) && betterHost(r.host, host) && (i == 0 || exported(r.rule.Spec.GetExportTo(), namespace, x.namespace)) {
				host = r.host
			}
		}
		if host != "" {
			return x.merge(namespace, host, i == 0)
		}
	}
	return nil
}

// merge joins the rules for one host of one namespace: the oldest traffic policy, the union of the subsets.
func (x *ruleIndex) merge(namespace, host string, own bool) *destination {
	d := &destination{subsets: map[string]*networkingapi.Subset{}}
	for _, r := range x.rules[namespace] {
		if r.host != host || !own && !exported(r.rule.Spec.GetExportTo(), namespace, x.namespace) {
			continue
		}
		if d.owner.Name == "" {
			d.owner = kube.NameOf(r.rule)
		}
		if d.traffic == nil && r.rule.Spec.GetTrafficPolicy() != nil {
			d.traffic, d.owner = r.rule.Spec.GetTrafficPolicy(), kube.NameOf(r.rule)
		}
		for _, s := range r.rule.Spec.GetSubsets() {
			if _, taken := d.subsets[s.GetName()]; !taken {
				d.subsets[s.GetName()] = s
			}
		}
	}
	return d
}

func (d *destination) subset(name string) *networkingapi.Subset {
	if d == nil {
		return nil
	}
	return d.subsets[name]
}

func (d *destination) subsetNames() []string {
	if d == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(d.subsets))
}

// policy is what applies to one port and subset. A port's settings replace the four groups they cover completely; a
// subset's settings replace group by group.
func (d *destination) policy(port uint32, subset string) *networkingapi.TrafficPolicy {
	if d == nil {
		return nil
	}
	out := forPort(d.traffic, port)
	s := d.subset(subset)
	if s.GetTrafficPolicy() == nil {
		return out
	}
	over := s.GetTrafficPolicy()
	if portSettings(over, port) != nil {
		return forPort(over, port)
	}
	if out == nil {
		return forPort(over, port)
	}
	if over.GetLoadBalancer() != nil {
		out.LoadBalancer = over.GetLoadBalancer()
	}
	if over.GetConnectionPool() != nil {
		out.ConnectionPool = over.GetConnectionPool()
	}
	if over.GetOutlierDetection() != nil {
		out.OutlierDetection = over.GetOutlierDetection()
	}
	if over.GetTls() != nil {
		out.Tls = over.GetTls()
	}
	if over.GetProxyProtocol() != nil {
		out.ProxyProtocol = over.GetProxyProtocol()
	}
	if over.GetRetryBudget() != nil {
		out.RetryBudget = over.GetRetryBudget()
	}
	return out
}

func portSettings(t *networkingapi.TrafficPolicy, port uint32) *networkingapi.TrafficPolicy_PortTrafficPolicy {
	for _, p := range t.GetPortLevelSettings() {
		if p.GetPort().GetNumber() == port {
			return p
		}
	}
	return nil
}

func forPort(t *networkingapi.TrafficPolicy, port uint32) *networkingapi.TrafficPolicy {
	if t == nil {
		return nil
	}
	if p := portSettings(t, port); p != nil {
		return &networkingapi.TrafficPolicy{
			LoadBalancer: p.GetLoadBalancer(), ConnectionPool: p.GetConnectionPool(),
			OutlierDetection: p.GetOutlierDetection(), Tls: p.GetTls(),
			ProxyProtocol: t.GetProxyProtocol(), RetryBudget: t.GetRetryBudget(), Tunnel: t.GetTunnel(),
		}
	}
	return &networkingapi.TrafficPolicy{
		LoadBalancer: t.GetLoadBalancer(), ConnectionPool: t.GetConnectionPool(),
		OutlierDetection: t.GetOutlierDetection(), Tls: t.GetTls(),
		ProxyProtocol: t.GetProxyProtocol(), RetryBudget: t.GetRetryBudget(), Tunnel: t.GetTunnel(),
	}
}

// hostMatches compares a rule's host, which may start with "*", with a service's hostname.
func hostMatches(pattern, host string) bool {
	if rest, wild := strings.CutPrefix(pattern, "*"); wild {
		return strings.HasSuffix(host, rest)
	}
	return pattern == host
}

// betterHost prefers exact hosts, then longer wildcards; both already match.
func betterHost(candidate, than string) bool {
	if than == "" {
		return true
	}
	exactA, exactB := !strings.HasPrefix(candidate, "*"), !strings.HasPrefix(than, "*")
	if exactA != exactB {
		return exactA
	}
	return len(candidate) > len(than)
}

// exported says whether an object of namespace from is visible in namespace to.
func exported(exportTo []string, from, to string) bool {
	if len(exportTo) == 0 {
		return true
	}
	return slices.ContainsFunc(exportTo, func(e string) bool {
		return e == "*" || e == to || e == "." && from == to
	})
}
