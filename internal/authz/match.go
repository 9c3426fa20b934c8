package authz

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
)

// Matches says whether some rule of the policy matches; a policy without rules matches nothing.
func Matches(p *Policy, f Facts) bool {
	for _, r := range p.Rules {
		if ruleMatches(r, f) {
			return true
		}
	}
	return false
}

// ruleMatches: every clause matches; no clause is no constraint.
func ruleMatches(r mesh.Rule, f Facts) bool {
	for _, c := range r {
		if !clauseMatches(c, f) {
			return false
		}
	}
	return true
}

// clauseMatches: some match holds; no match is no constraint.
func clauseMatches(c mesh.Clause, f Facts) bool {
	if len(c) == 0 {
		return true
	}
	for i := range c {
		if matchHolds(&c[i], f) {
			return true
		}
	}
	return false
}

// matchHolds: every field holds, and there is a field.
func matchHolds(m *mesh.Match, f Facts) bool {
	if emptyMatch(m) {
		return false
	}
	return holds(m.DestinationIPs, m.NotDestinationIPs, f.Dst.Addr(), inPrefix) &&
		holds(m.SourceIPs, m.NotSourceIPs, f.Src.Addr(), inPrefix) &&
		holds(m.DestinationPorts, m.NotDestinationPorts, f.Dst.Port(), equal) &&
		holds(m.Principals, m.NotPrincipals, f.Peer, principalIs) &&
		holds(m.Namespaces, m.NotNamespaces, f.Peer, namespaceIs) &&
		holds(m.ServiceAccounts, m.NotServiceAccounts, f.Peer, accountIs)
}

func emptyMatch(m *mesh.Match) bool {
	return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
		len(m.SourceIPs)+len(m.NotSourceIPs)+len(m.DestinationIPs)+len(m.NotDestinationIPs)+
		len(m.DestinationPorts)+len(m.NotDestinationPorts)+
		len(m.ServiceAccounts)+len(m.NotServiceAccounts) == 0
}

// holds is (no positive value, or one hits) and (no negative value hits).
func holds[W, V any](positive, negative []W, have V, hit func(want W, have V) bool) bool {
	is := func(want W) bool { return hit(want, have) }
	return (len(positive) == 0 || slices.ContainsFunc(positive, is)) && !slices.ContainsFunc(negative, is)
}

func inPrefix(want netip.Prefix, have netip.Addr) bool { return want.Contains(have) }

func equal(want, have uint16) bool { return want == have }

// principalIs never hits for nobody, whatever the comparison.
func principalIs(want mesh.StringMatch, have identity.ID) bool {
	return !have.IsZero() && stringIs(want, have.Principal())
}

// namespaceIs compares with the empty string for nobody: an empty prefix or suffix hits.
func namespaceIs(want mesh.StringMatch, have identity.ID) bool {
	return stringIs(want, have.Namespace())
}

// accountIs ignores the trust domain.
func accountIs(want mesh.ServiceAccount, have identity.ID) bool {
	return !have.IsZero() && want.Namespace == have.Namespace() && want.Name == have.ServiceAccount()
}

func stringIs(want mesh.StringMatch, have string) bool {
	switch want.Kind {
	case mesh.Exact:
		return have == want.Value
	case mesh.Prefix:
		return strings.HasPrefix(have, want.Value)
	case mesh.Suffix:
		return strings.HasSuffix(have, want.Value)
	case mesh.Presence:
		return have != ""
	}
	return false
}
