package mesh

import "net/netip"

// PolicyScope says whom a policy applies to.
type PolicyScope uint8

// The scopes of a policy.
const (
	PolicyGlobal PolicyScope = iota
	PolicyNamespace
	// PolicySelector applies only to workloads that name the policy.
	PolicySelector
)

func (s PolicyScope) String() string {
	switch s {
	case PolicyGlobal:
		return "Global"
	case PolicyNamespace:
		return "Namespace"
	case PolicySelector:
	}
	return "WorkloadSelector"
}

// PolicyAction is what a matching policy does.
type PolicyAction uint8

// The actions of a policy.
const (
	Allow PolicyAction = iota
	Deny
)

func (a PolicyAction) String() string {
	if a == Deny {
		return "Deny"
	}
	return "Allow"
}

// Policy is one layer 4 authorization policy in the form that package authz evaluates. Treat it as read-only.
type Policy struct {
	// Resource is the name under which the policy travels and workloads refer to it.
	Resource  string
	Namespace string
	Name      string
	Scope     PolicyScope
	Action    PolicyAction
	DryRun    bool
	Rules     []Rule
}

// Key is "namespace/name", the form in logs and reasons.
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }

// Rule matches when all its clauses do; without clauses it matches.
type Rule []Clause

// Clause matches when one of its matches does; without matches it matches.
type Clause []Match

// Match holds when all its fields do; without any field it never holds.
type Match struct {
	Namespaces, NotNamespaces             []StringMatch
	Principals, NotPrincipals             []StringMatch
	SourceIPs, NotSourceIPs               []netip.Prefix
	DestinationIPs, NotDestinationIPs     []netip.Prefix
	DestinationPorts, NotDestinationPorts []uint16
	ServiceAccounts, NotServiceAccounts   []ServiceAccount
}

// ServiceAccount names an account whatever its trust domain.
type ServiceAccount struct {
	Namespace, Name string
}

// StringKind is how a StringMatch compares.
type StringKind uint8

// The comparisons.
const (
	Exact StringKind = iota
	Prefix
	Suffix
	Presence
)

func (k StringKind) String() string {
	names := [...]string{"Exact", "Prefix", "Suffix", "Presence"}
	if int(k) < len(names) {
		return names[k]
	}
	return "Exact"
}

// StringMatch compares one string; Value is unused for Presence.
type StringMatch struct {
	Kind  StringKind
	Value string
}
