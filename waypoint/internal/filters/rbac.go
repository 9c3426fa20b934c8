package filters

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// RBAC is a compiled authorization filter, for requests and for opaque connections alike.
type RBAC struct {
	rules  *rules // nil = enforces nothing
	shadow *rules // nil = nothing is tried out
	prefix string // of the name under which shadow rules leave what they found
	named  bool
}

// AsksServerName says that the server's name which a TLS client asks for plays a part, so that the client's first bytes have to be seen.
func (r *RBAC) AsksServerName() bool { return r.named }

// ShadowKey is the name under which others find the policy that the shadow rules found.
func (r *RBAC) ShadowKey() string { return ShadowKey(r.prefix) }

// Audits says that the rules refuse nothing: what they match is to be told.
func (r *RBAC) Audits() bool { return r.rules != nil && r.rules.action == rbacconfig.RBAC_LOG }

func (*RBAC) http()    {}
func (*RBAC) network() {}

type rules struct {
	action   rbacconfig.RBAC_Action
	policies []policy // sorted by name, as Envoy evaluates them
}

type policy struct {
	name string
	what condition
	who  condition
}

type condition func(*match.Request) bool

// Verdict is what an RBAC filter says of one request.
type Verdict struct {
	Allowed bool
	Policy  string // the policy that matched, empty = none
	Shadow  string // the policy on trial that matched, empty = none
	Tried   bool   // there are policies on trial
	Would   bool   // what the policies on trial would have allowed
}

// Detail is the response code detail that Envoy writes for a refusal.
func (v Verdict) Detail() string {
	name := v.Policy
	if name == "" {
		name = "none"
	}
	return "rbac_access_denied_matched_policy[" + strings.ReplaceAll(name, " ", "_") + "]"
}

// Judge evaluates the filter.
func (r *RBAC) Judge(q *match.Request) Verdict {
	v := Verdict{Allowed: true}
	if r.rules != nil {
		v.Allowed, v.Policy = r.rules.judge(q)
	}
	if r.shadow != nil {
		v.Tried = true
		v.Would, v.Shadow = r.shadow.judge(q)
	}
	return v
}

func (r *rules) judge(q *match.Request) (allowed bool, name string) {
	matched := false
	for i := range r.policies {
		if p := &r.policies[i]; p.what(q) && p.who(q) {
			matched, name = true, p.name
			break
		}
	}
	switch r.action {
	case rbacconfig.RBAC_ALLOW:
		return matched, name
	case rbacconfig.RBAC_DENY:
		return !matched, name
	default: // LOG
		return true, name
	}
}

func compileRBAC(p *rbacv3.RBAC) (*RBAC, error) {
	if err := strict.Only(p, "rules", "rules_stat_prefix", "shadow_rules", "shadow_rules_stat_prefix", "track_per_rule_stats"); err != nil {
		return nil, err
	}
	return compileBoth(p.GetRules(), p.GetShadowRules(), p.GetShadowRulesStatPrefix())
}

func compileNetworkRBAC(p *networkrbac.RBAC) (*RBAC, error) {
	if err := strict.Only(p, "rules", "shadow_rules", "shadow_rules_stat_prefix", "stat_prefix", "enforcement_type"); err != nil {
		return nil, err
	}
	return compileBoth(p.GetRules(), p.GetShadowRules(), p.GetShadowRulesStatPrefix())
}

func compileBoth(enforced, shadow *rbacconfig.RBAC, prefix string) (*RBAC, error) {
	r := &RBAC{prefix: prefix, named: asksServerName(enforced) || asksServerName(shadow)}
	var err error
	if r.rules, err = compileRules(enforced); err != nil {
		return nil, err
	}
	if r.shadow, err = compileRules(shadow); err != nil {
		return nil, fmt.Errorf("shadow_rules: %w", err)
	}
	return r, nil
}

// asksServerName looks for the condition at any depth.
func asksServerName(p *rbacconfig.RBAC) bool {
	var asks func(p *rbacconfig.Permission) bool
	asks = func(p *rbacconfig.Permission) bool {
		switch r := p.GetRule().(type) {
		case *rbacconfig.Permission_AndRules:
			return slices.ContainsFunc(r.AndRules.GetRules(), asks)
		case *rbacconfig.Permission_OrRules:
			return slices.ContainsFunc(r.OrRules.GetRules(), asks)
		case *rbacconfig.Permission_NotRule:
			return asks(r.NotRule)
		case *rbacconfig.Permission_RequestedServerName:
			return true
		}
		return false
	}
	for _, pol := range p.GetPolicies() {
		if slices.ContainsFunc(pol.GetPermissions(), asks) {
			return true
		}
	}
	return false
}

func compileRules(p *rbacconfig.RBAC) (*rules, error) {
	if p == nil {
		return nil, nil
	}
	if err := strict.Only(p, "action", "policies"); err != nil {
		return nil, err
	}
	switch p.GetAction() {
	case rbacconfig.RBAC_ALLOW, rbacconfig.RBAC_DENY, rbacconfig.RBAC_LOG:
	default:
		return nil, fmt.Errorf("action %v: %w", p.GetAction(), strict.ErrUnsupported)
	}
	out := &rules{action: p.GetAction(), policies: make([]policy, 0, len(p.GetPolicies()))}
	for name, pol := range p.GetPolicies() {
		if err := strict.Only(pol, "permissions", "principals"); err != nil {
			return nil, fmt.Errorf("policy %q: %w", name, err)
		}
		what, err := list(pol.GetPermissions(), permission, anyOf)
		if err != nil {
			return nil, fmt.Errorf("policy %q: permissions: %w", name, err)
		}
		who, err := list(pol.GetPrincipals(), principal, anyOf)
		if err != nil {
			return nil, fmt.Errorf("policy %q: principals: %w", name, err)
		}
		out.policies = append(out.policies, policy{name: name, what: what, who: who})
	}
	sort.Slice(out.policies, func(i, j int) bool { return out.policies[i].name < out.policies[j].name })
	return out, nil
}

// list compiles each member and joins them. An empty list is refused: Envoy refuses it too, and either reading of it surprises.
func list[P any](ps []P, compile func(P) (condition, error), join func([]condition) condition) (condition, error) {
	if len(ps) == 0 {
		return nil, fmt.Errorf("list is empty: name at least one condition")
	}
	cs := make([]condition, 0, len(ps))
	for _, p := range ps {
		c, err := compile(p)
		if err != nil {
			return nil, err
		}
		cs = append(cs, c)
	}
	if len(cs) == 1 {
		return cs[0], nil
	}
	return join(cs), nil
}

func anyOf(cs []condition) condition {
	return func(q *match.Request) bool {
		for _, c := range cs {
			if c(q) {
				return true
			}
		}
		return false
	}
}

func allOf(cs []condition) condition {
	return func(q *match.Request) bool {
		for _, c := range cs {
			if !c(q) {
				return false
			}
		}
		return true
	}
}

func not(c condition) condition { return func(q *match.Request) bool { return !c(q) } }

func constant(v bool) condition { return func(*match.Request) bool { return v } }
