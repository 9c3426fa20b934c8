package view

import (
	"net/netip"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/internal/mesh"
)

// Policy converts the wire form. resource is the name under which it travelled and workloads refer to it.
func Policy(resource string, a *security.Authorization) (*mesh.Policy, error) {
	p := &mesh.Policy{Resource: resource, Namespace: a.GetNamespace(), Name: a.GetName(), DryRun: a.GetDryRun()}
	switch a.GetScope() {
	case security.Scope_GLOBAL:
		p.Scope = mesh.PolicyGlobal
	case security.Scope_NAMESPACE:
		p.Scope = mesh.PolicyNamespace
	case security.Scope_WORKLOAD_SELECTOR:
		p.Scope = mesh.PolicySelector
	default:
		return nil, unknownEnum("scope", a.GetScope())
	}
	switch a.GetAction() {
	case security.Action_ALLOW:
		p.Action = mesh.Allow
	case security.Action_DENY:
		p.Action = mesh.Deny
	default:
		return nil, unknownEnum("action", a.GetAction())
	}
	for _, group := range a.GetGroups() {
		rule := make(mesh.Rule, 0, len(group.GetRules()))
		for _, rules := range group.GetRules() {
			clause := make(mesh.Clause, 0, len(rules.GetMatches()))
			for _, m := range rules.GetMatches() {
				clause = append(clause, match(m))
			}
			rule = append(rule, clause)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p, nil
}

func match(m *security.Match) mesh.Match {
	return mesh.Match{
		Namespaces: stringMatches(m.GetNamespaces()), NotNamespaces: stringMatches(m.GetNotNamespaces()),
		Principals: stringMatches(m.GetPrincipals()), NotPrincipals: stringMatches(m.GetNotPrincipals()),
		SourceIPs: prefixes(m.GetSourceIps()), NotSourceIPs: prefixes(m.GetNotSourceIps()),
		DestinationIPs: prefixes(m.GetDestinationIps()), NotDestinationIPs: prefixes(m.GetNotDestinationIps()),
		DestinationPorts: portNumbers(m.GetDestinationPorts()), NotDestinationPorts: portNumbers(m.GetNotDestinationPorts()),
		ServiceAccounts: accounts(m.GetServiceAccounts()), NotServiceAccounts: accounts(m.GetNotServiceAccounts()),
	}
}

// stringMatches drops entries without a kind: that is how all proxies of the protocol read them.
func stringMatches(list []*security.StringMatch) []mesh.StringMatch {
	var out []mesh.StringMatch
	for _, s := range list {
		switch kind := s.GetMatchType().(type) {
		case *security.StringMatch_Exact:
			out = append(out, mesh.StringMatch{Kind: mesh.Exact, Value: kind.Exact})
		case *security.StringMatch_Prefix:
			out = append(out, mesh.StringMatch{Kind: mesh.Prefix, Value: kind.Prefix})
		case *security.StringMatch_Suffix:
			out = append(out, mesh.StringMatch{Kind: mesh.Suffix, Value: kind.Suffix})
		case *security.StringMatch_Presence:
			out = append(out, mesh.StringMatch{Kind: mesh.Presence})
		}
	}
	return out
}

// prefixes drops impossible entries, likewise. Host bits do not matter.
func prefixes(list []*security.Address) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.GetAddress())
		if !ok || a.GetLength() > uint32(ip.BitLen()) {
			continue
		}
		out = append(out, netip.PrefixFrom(ip, int(a.GetLength())).Masked())
	}
	return out
}

func portNumbers(list []uint32) []uint16 {
	var out []uint16
	for _, p := range list {
		out = append(out, uint16(p)) // modulo 65536, as the protocol says
	}
	return out
}

func accounts(list []*security.ServiceAccountMatch) []mesh.ServiceAccount {
	var out []mesh.ServiceAccount
	for _, a := range list {
		out = append(out, mesh.ServiceAccount{Namespace: a.GetNamespace(), Name: a.GetServiceAccount()})
	}
	return out
}
