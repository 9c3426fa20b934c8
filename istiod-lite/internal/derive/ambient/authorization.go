package ambient

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"
	apisecurity "istio.io/api/security/v1beta1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// Reasons of the conditions of AuthorizationPolicies.
const (
	ReasonAccepted         = "Accepted"
	ReasonUnsupportedValue = "UnsupportedValue"
)

// policyVerdict is what becomes of an AuthorizationPolicy without targets.
type policyVerdict struct {
	auth    *security.Authorization // nil: not sent
	reason  string
	message string
}

// targeted policies belong to waypoints and gateways, never to node proxies.
func targeted(p *apisecurity.AuthorizationPolicy) bool {
	return p.GetTargetRef() != nil || len(p.GetTargetRefs()) > 0
}

// convertPolicy makes the policy that node proxies enforce. They see connections, not requests: what needs HTTP is left
// out in the direction that lets less through.
func convertPolicy(ap *clientsecurity.AuthorizationPolicy, root string) policyVerdict {
	spec := &ap.Spec
	out := &security.Authorization{Name: ap.Name, Namespace: ap.Namespace, Scope: security.Scope_NAMESPACE}
	switch spec.GetAction() {
	case apisecurity.AuthorizationPolicy_ALLOW:
	case apisecurity.AuthorizationPolicy_DENY:
		out.Action = security.Action_DENY
	case apisecurity.AuthorizationPolicy_AUDIT, apisecurity.AuthorizationPolicy_CUSTOM:
		return policyVerdict{reason: ReasonUnsupportedValue, message: "action " + spec.GetAction().String() +
			" is not supported by ztunnel; attach the policy to a waypoint by targetRefs"}
	}
	if dry, err := strconv.ParseBool(ap.Annotations[kube.AnnotationDryRun]); err == nil && dry {
		return policyVerdict{reason: ReasonUnsupportedValue, message: "dry run is not supported by ztunnel, so the policy is not sent to it"}
	}
	switch {
	case spec.GetSelector() != nil:
		out.Scope = security.Scope_WORKLOAD_SELECTOR
	case ap.Namespace == root:
		out.Scope = security.Scope_GLOBAL
	}
	omitted := map[string]bool{}
	for _, r := range spec.GetRules() {
		if group := convertRule(r, ap.Namespace, out.GetAction(), omitted); group != nil {
			out.Groups = append(out.Groups, group)
		}
	}
	if sel := spec.GetSelector(); sel != nil && len(sel.GetMatchLabels()) == 0 {
		// The reference attaches such a policy to nobody, and other proxies rely on equal answers: so does this one,
		// but it does not keep quiet about it.
		return policyVerdict{auth: out, reason: ReasonUnsupportedValue, message: "the selector has no labels, so no workload " +
			"is selected and the policy is not in force; remove the selector to mean all workloads"}
	}
	if len(omitted) == 0 {
		return policyVerdict{auth: out, reason: ReasonAccepted, message: "attached to ztunnel"}
	}
	names := strings.Join(slices.Sorted(maps.Keys(omitted)), ", ")
	message := "ztunnel does not see HTTP attributes (" + names + "): "
	switch {
	case out.GetAction() == security.Action_DENY:
		message += "they are left out of the DENY rules; attach the policy to a waypoint by targetRefs"
	case len(out.GetGroups()) == 0:
		message += "all ALLOW rules that have them are left out and none remains, so nothing is allowed"
	default:
		message += "the ALLOW rules that have them are left out, so less is allowed"
	}
	return policyVerdict{auth: out, reason: ReasonUnsupportedValue, message: message}
}

// convertRule makes one group: its rules are ANDed, one for all destinations, one for all sources, one per condition.
// It returns nil for an ALLOW rule that needs HTTP.
func convertRule(r *apisecurity.Rule, ns string, action security.Action, omitted map[string]bool) *security.Group {
	group := &security.Group{}
	http := map[string]bool{}
	if len(r.GetTo()) > 0 {
		rules := &security.Rules{}
		for _, to := range r.GetTo() {
			rules.Matches = append(rules.Matches, matchOperation(to.GetOperation(), http))
		}
		group.Rules = append(group.Rules, rules)
	}
	if len(r.GetFrom()) > 0 {
		rules := &security.Rules{}
		for _, from := range r.GetFrom() {
			rules.Matches = append(rules.Matches, matchSource(from.GetSource(), ns, http))
		}
		group.Rules = append(group.Rules, rules)
	}
	for _, c := range r.GetWhen() {
		group.Rules = append(group.Rules, &security.Rules{Matches: []*security.Match{matchCondition(c, http)}})
	}
	maps.Copy(omitted, http)
	if len(http) > 0 && action == security.Action_ALLOW {
		return nil
	}
	return group
}

func matchOperation(o *apisecurity.Operation, http map[string]bool) *security.Match {
	noteHTTP(http, map[string][]string{
		"hosts": o.GetHosts(), "notHosts": o.GetNotHosts(), "methods": o.GetMethods(), "notMethods": o.GetNotMethods(),
		"paths": o.GetPaths(), "notPaths": o.GetNotPaths(),
	})
	return &security.Match{DestinationPorts: portsOf(o.GetPorts()), NotDestinationPorts: portsOf(o.GetNotPorts())}
}

func matchSource(s *apisecurity.Source, ns string, http map[string]bool) *security.Match {
	noteHTTP(http, map[string][]string{
		"remoteIpBlocks": s.GetRemoteIpBlocks(), "notRemoteIpBlocks": s.GetNotRemoteIpBlocks(),
		"requestPrincipals": s.GetRequestPrincipals(), "notRequestPrincipals": s.GetNotRequestPrincipals(),
	})
	return &security.Match{
		SourceIps: blocksOf(s.GetIpBlocks()), NotSourceIps: blocksOf(s.GetNotIpBlocks()),
		Namespaces: stringsOf(s.GetNamespaces()), NotNamespaces: stringsOf(s.GetNotNamespaces()),
		Principals: stringsOf(s.GetPrincipals()), NotPrincipals: stringsOf(s.GetNotPrincipals()),
		ServiceAccounts: accountsOf(s.GetServiceAccounts(), ns), NotServiceAccounts: accountsOf(s.GetNotServiceAccounts(), ns),
	}
}

func matchCondition(c *apisecurity.Condition, http map[string]bool) *security.Match {
	m := &security.Match{}
	values, not := c.GetValues(), c.GetNotValues()
	switch c.GetKey() {
	case "source.ip":
		m.SourceIps, m.NotSourceIps = blocksOf(values), blocksOf(not)
	case "source.namespace":
		m.Namespaces, m.NotNamespaces = stringsOf(values), stringsOf(not)
	case "source.principal":
		m.Principals, m.NotPrincipals = stringsOf(values), stringsOf(not)
	case "destination.ip":
		m.DestinationIps, m.NotDestinationIps = blocksOf(values), blocksOf(not)
	case "destination.port":
		m.DestinationPorts, m.NotDestinationPorts = portsOf(values), portsOf(not)
	default:
		http[c.GetKey()] = true
	}
	return m
}

func noteHTTP(http map[string]bool, lists map[string][]string) {
	for name, l := range lists {
		if len(l) > 0 {
			http[name] = true
		}
	}
}

// portsOf drops what is no port; the validation of manifests refuses such policies before they come here.
func portsOf(texts []string) []uint32 {
	var out []uint32
	for _, t := range texts {
		if n, err := strconv.ParseUint(t, 10, 16); err == nil {
			out = append(out, uint32(n))
		}
	}
	return out
}

func blocksOf(texts []string) []*security.Address {
	var out []*security.Address
	for _, t := range texts {
		if p, err := netip.ParsePrefix(t); err == nil {
			out = append(out, &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
		} else if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, &security.Address{Address: a.AsSlice(), Length: uint32(a.BitLen())})
		}
	}
	return out
}

// stringsOf reads the patterns of users: a star alone is any value, at one end any beginning or end.
func stringsOf(texts []string) []*security.StringMatch {
	var out []*security.StringMatch
	for _, t := range texts {
		m := &security.StringMatch{}
		switch {
		case t == "*":
			m.MatchType = &security.StringMatch_Presence{Presence: &emptypb.Empty{}}
		case strings.HasPrefix(t, "*"):
			m.MatchType = &security.StringMatch_Suffix{Suffix: t[1:]}
		case strings.HasSuffix(t, "*"):
			m.MatchType = &security.StringMatch_Prefix{Prefix: t[:len(t)-1]}
		default:
			m.MatchType = &security.StringMatch_Exact{Exact: t}
		}
		out = append(out, m)
	}
	return out
}

// accountsOf reads "namespace/account", or "account" of the policy's own namespace.
func accountsOf(texts []string, ns string) []*security.ServiceAccountMatch {
	var out []*security.ServiceAccountMatch
	for _, t := range texts {
		namespace, account, ok := strings.Cut(t, "/")
		if !ok {
			namespace, account = ns, t
		}
		out = append(out, &security.ServiceAccountMatch{Namespace: namespace, ServiceAccount: account})
	}
	return out
}
