//go:build lab

package rbacgoldens

import (
	"fmt"
	"strings"
	"testing"

	configrbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// clause is one field of a rule, alone: its values or those that must not be.
type clause struct {
	name   string
	values []string
	not    bool
	with   func(values []string) *securityapi.Rule
}

func from(set func(*securityapi.Source, []string)) func([]string) *securityapi.Rule {
	return func(v []string) *securityapi.Rule {
		s := &securityapi.Source{}
		set(s, v)
		return &securityapi.Rule{From: []*securityapi.Rule_From{{Source: s}}}
	}
}

func to(set func(*securityapi.Operation, []string)) func([]string) *securityapi.Rule {
	return func(v []string) *securityapi.Rule {
		o := &securityapi.Operation{}
		set(o, v)
		return &securityapi.Rule{To: []*securityapi.Rule_To{{Operation: o}}}
	}
}

// operations are the clauses of a rule's `to`, in the order in which Istio's filters have them.
func operations(o *securityapi.Operation) []clause {
	return []clause{
		{"hosts", o.GetHosts(), false, to(func(o *securityapi.Operation, v []string) { o.Hosts = v })},
		{"notHosts", o.GetNotHosts(), true, to(func(o *securityapi.Operation, v []string) { o.NotHosts = v })},
		{"methods", o.GetMethods(), false, to(func(o *securityapi.Operation, v []string) { o.Methods = v })},
		{"notMethods", o.GetNotMethods(), true, to(func(o *securityapi.Operation, v []string) { o.NotMethods = v })},
		{"paths", o.GetPaths(), false, to(func(o *securityapi.Operation, v []string) { o.Paths = v })},
		{"notPaths", o.GetNotPaths(), true, to(func(o *securityapi.Operation, v []string) { o.NotPaths = v })},
		{"ports", o.GetPorts(), false, to(func(o *securityapi.Operation, v []string) { o.Ports = v })},
		{"notPorts", o.GetNotPorts(), true, to(func(o *securityapi.Operation, v []string) { o.NotPorts = v })},
	}
}

// sources are the clauses of a rule's `from`, in that order too.
func sources(s *securityapi.Source) []clause {
	return []clause{
		{"principals", s.GetPrincipals(), false, from(func(s *securityapi.Source, v []string) { s.Principals = v })},
		{"notPrincipals", s.GetNotPrincipals(), true, from(func(s *securityapi.Source, v []string) { s.NotPrincipals = v })},
		{"requestPrincipals", s.GetRequestPrincipals(), false, from(func(s *securityapi.Source, v []string) { s.RequestPrincipals = v })},
		{"notRequestPrincipals", s.GetNotRequestPrincipals(), true, from(func(s *securityapi.Source, v []string) { s.NotRequestPrincipals = v })},
		{"namespaces", s.GetNamespaces(), false, from(func(s *securityapi.Source, v []string) { s.Namespaces = v })},
		{"notNamespaces", s.GetNotNamespaces(), true, from(func(s *securityapi.Source, v []string) { s.NotNamespaces = v })},
		{"serviceAccounts", s.GetServiceAccounts(), false, from(func(s *securityapi.Source, v []string) { s.ServiceAccounts = v })},
		{"notServiceAccounts", s.GetNotServiceAccounts(), true, from(func(s *securityapi.Source, v []string) { s.NotServiceAccounts = v })},
		{"trustDomains", s.GetTrustDomains(), false, from(func(s *securityapi.Source, v []string) { s.TrustDomains = v })},
		{"notTrustDomains", s.GetNotTrustDomains(), true, from(func(s *securityapi.Source, v []string) { s.NotTrustDomains = v })},
		{"remoteIpBlocks", s.GetRemoteIpBlocks(), false, from(func(s *securityapi.Source, v []string) { s.RemoteIpBlocks = v })},
		{"notRemoteIpBlocks", s.GetNotRemoteIpBlocks(), true, from(func(s *securityapi.Source, v []string) { s.NotRemoteIpBlocks = v })},
		{"ipBlocks", s.GetIpBlocks(), false, from(func(s *securityapi.Source, v []string) { s.IpBlocks = v })},
		{"notIpBlocks", s.GetNotIpBlocks(), true, from(func(s *securityapi.Source, v []string) { s.NotIpBlocks = v })},
	}
}

// conditions are the clauses of a rule's `when`.
func conditions(whens []*securityapi.Condition, ofPermission bool) (out []clause) {
	for _, w := range whens {
		k := w.GetKey()
		if ofPermission != (strings.HasPrefix(k, "destination.") || k == "connection.sni" || strings.HasPrefix(k, "experimental.")) {
			continue
		}
		make := func(not bool) func([]string) *securityapi.Rule {
			return func(v []string) *securityapi.Rule {
				c := &securityapi.Condition{Key: k, Values: v}
				if not {
					c.Values, c.NotValues = nil, v
				}
				return &securityapi.Rule{When: []*securityapi.Condition{c}}
			}
		}
		out = append(out, clause{k, w.GetValues(), false, make(false)}, clause{k + " not", w.GetNotValues(), true, make(true)})
	}
	return out
}

func present(list []clause) (out []clause) {
	for _, c := range list {
		if len(c.values) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// cut takes each clause of each rule of a golden with one filter alone, and each value of a clause.
func cut(t *testing.T, g golden, list []*securityv1.AuthorizationPolicy, filter *rbacv3.RBAC) (out []*judged) {
	t.Helper()
	for _, p := range list {
		for i, rule := range p.Spec.GetRules() {
			if len(rule.GetFrom()) > 1 || len(rule.GetTo()) > 1 {
				continue // the filter has a line for each, and so no one place for a condition
			}
			name := fmt.Sprintf("ns[%s]-policy[%s]-rule%d", p.Namespace, p.Name, i)
			f := filter.GetRules().GetPolicies()[name]
			if f == nil || len(f.GetPermissions()) != 1 || len(f.GetPrincipals()) != 1 {
				t.Fatalf("%s: no rule %s, or not one line of it: %v", g.name, name, f)
			}
			var o *securityapi.Operation
			var s *securityapi.Source
			if len(rule.GetTo()) == 1 {
				o = rule.GetTo()[0].GetOperation()
			}
			if len(rule.GetFrom()) == 1 {
				s = rule.GetFrom()[0].GetSource()
			}
			ofPermission := present(append(operations(o), conditions(rule.GetWhen(), true)...))
			ofPrincipal := present(append(sources(s), conditions(rule.GetWhen(), false)...))
			permissions, principals := f.GetPermissions()[0].GetAndRules().GetRules(), f.GetPrincipals()[0].GetAndIds().GetIds()
			if len(ofPermission) > 0 && len(ofPermission) != len(permissions) || len(ofPrincipal) > 0 && len(ofPrincipal) != len(principals) {
				t.Fatalf("%s: %s has %d and %d clauses, its filter %d and %d", g.name, name, len(ofPermission), len(ofPrincipal), len(permissions), len(principals))
			}
			for k, c := range ofPermission {
				out = append(out, c.cases(g, p, filter, permissionValues(permissions[k]))...)
			}
			for k, c := range ofPrincipal {
				out = append(out, c.cases(g, p, filter, principalValues(principals[k]))...)
			}
		}
	}
	return out
}

// line is a rule of a filter.
type line struct {
	permission *configrbacv3.Permission
	principal  *configrbacv3.Principal
}

func anyPermission() *configrbacv3.Permission {
	return &configrbacv3.Permission{Rule: &configrbacv3.Permission_Any{Any: true}}
}

func anyPrincipal() *configrbacv3.Principal {
	return &configrbacv3.Principal{Identifier: &configrbacv3.Principal_Any{Any: true}}
}

// permissionValues are the whole of a clause, then its values alone if the filter tells them apart.
func permissionValues(p *configrbacv3.Permission) []line {
	out := []line{{p, anyPrincipal()}}
	not := p.GetNotRule()
	if not != nil {
		p = not
	}
	for _, one := range p.GetOrRules().GetRules() {
		if not != nil {
			one = &configrbacv3.Permission{Rule: &configrbacv3.Permission_NotRule{NotRule: one}}
		}
		out = append(out, line{one, anyPrincipal()})
	}
	return out
}

func principalValues(p *configrbacv3.Principal) []line {
	out := []line{{anyPermission(), p}}
	not := p.GetNotId()
	if not != nil {
		p = not
	}
	for _, one := range p.GetOrIds().GetIds() {
		if not != nil {
			one = &configrbacv3.Principal{Identifier: &configrbacv3.Principal_NotId{NotId: one}}
		}
		out = append(out, line{anyPermission(), one})
	}
	return out
}

func (c clause) cases(g golden, p *securityv1.AuthorizationPolicy, filter *rbacv3.RBAC, lines []line) (out []*judged) {
	add := func(values []string, l line) {
		alone := p.DeepCopy()
		alone.Spec.Rules = []*securityapi.Rule{c.with(values)}
		out = append(out, &judged{
			name: fmt.Sprintf("%s %s %v", g.name, c.name, values), Policies: []*securityv1.AuthorizationPolicy{alone},
			filters: []*rbacv3.RBAC{{Rules: &configrbacv3.RBAC{
				Action: filter.GetRules().GetAction(),
				Policies: map[string]*configrbacv3.Policy{"alone": {
					Permissions: []*configrbacv3.Permission{l.permission}, Principals: []*configrbacv3.Principal{l.principal},
				}},
			}}},
		})
	}
	add(c.values, lines[0])
	if len(lines)-1 == len(c.values) {
		for i, v := range c.values {
			add([]string{v}, lines[i+1])
		}
	}
	return out
}
