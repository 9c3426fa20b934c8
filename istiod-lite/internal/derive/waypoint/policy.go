package waypoint

import (
	"maps"
	"slices"
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/types/known/anypb"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

const (
	waypointClass     = "istio-waypoint"
	dryRunAnnotation  = "istio.io/dry-run"
	badCustom         = "-deny-due-to-bad-CUSTOM-action"
	reasonUnsupported = "UnsupportedValue"
	reasonInvalid     = "Invalid"
	reasonNotFound    = "DestinationNotFound"
)

// compiledPolicy is an AuthorizationPolicy in the two forms in which chains enforce it.
type compiledPolicy struct {
	object *securityv1.AuthorizationPolicy
	kind   policyKind
	dryRun bool
	http   map[string]*rbacv3.Policy
	tcp    map[string]*rbacv3.Policy
	server *authzServer // of a CUSTOM policy
}

type policyKind int

const (
	auditKind policyKind = iota
	denyKind
	allowKind
	customKind
)

// targetsOf are a policy's references; the singular form is the older one.
func targetsOf(p *securityv1.AuthorizationPolicy) []*typeapi.PolicyTargetReference {
	if refs := p.Spec.GetTargetRefs(); len(refs) > 0 {
		return refs
	}
	if ref := p.Spec.GetTargetRef(); ref != nil {
		return []*typeapi.PolicyTargetReference{ref}
	}
	return nil
}

func (d *derivation) compilePolicies() []*compiledPolicy {
	var out []*compiledPolicy
	for _, p := range d.in.Policies {
		if len(targetsOf(p)) == 0 && !d.selectsEdge(p) {
			continue // without a target it belongs to the node proxies
		}
		out = append(out, d.compilePolicy(p))
	}
	return out
}

func (d *derivation) compilePolicy(p *securityv1.AuthorizationPolicy) *compiledPolicy {
	c := &compiledPolicy{object: p, http: map[string]*rbacv3.Policy{}, tcp: map[string]*rbacv3.Policy{}}
	before, suffix := "", ""
	switch p.Spec.GetAction() {
	case securityapi.AuthorizationPolicy_ALLOW:
		c.kind = allowKind
	case securityapi.AuthorizationPolicy_AUDIT:
		c.kind = auditKind
	case securityapi.AuthorizationPolicy_DENY:
		c.kind = denyKind
	case securityapi.AuthorizationPolicy_CUSTOM:
		var err error
		c.kind = customKind
		if c.server, err = d.server(p.Spec.GetProvider().GetName()); err != nil {
			c.kind, suffix = denyKind, badCustom // what would have been asked about is refused
			d.report("AuthorizationPolicy", p.Namespace, p.Name, reasonInvalid, err.Error()+"; requests that match the policy are denied")
			break
		}
		before = customPolicyPrefix + c.server.name + "-"
	default: // of a newer API
		c.kind, suffix = denyKind, badCustom
		d.report("AuthorizationPolicy", p.Namespace, p.Name, reasonUnsupported,
			"action "+p.Spec.GetAction().String()+" is not supported; requests that match the policy are denied")
	}
	if v, ok := p.Annotations[dryRunAnnotation]; ok && suffix == "" && c.kind != auditKind {
		c.dryRun, _ = strconv.ParseBool(v) // anything but a true value enforces
	}
	if c.dryRun && c.kind == customKind {
		c.kind = auditKind // the server is not asked; what it would have been asked about is told
	}
	for i, rule := range p.Spec.GetRules() {
		name := before + "ns[" + p.Namespace + "]-policy[" + p.Name + "]-rule[" + strconv.Itoa(i) + "]" + suffix
		t := translation{policy: p, mesh: d.in.Mesh, allow: c.kind == allowKind, custom: before != ""}
		if out := t.rule(rule, true); out != nil {
			c.http[name] = out
		}
		for _, problem := range t.problems {
			d.report("AuthorizationPolicy", p.Namespace, p.Name, reasonUnsupported, "rules["+strconv.Itoa(i)+"]: "+problem)
		}
		t.problems = nil
		if out := t.rule(rule, false); out != nil {
			c.tcp[name] = out
		}
	}
	return c
}

// policySet is what protects one chain.
type policySet []*compiledPolicy

// policiesFor picks the policies of a service's chains; nil stands for the chains of workloads, to which only the
// waypoint's own policies apply.
func (d *derivation) policiesFor(s *Service) policySet {
	var out policySet
	for _, c := range d.policies {
		if d.selectsEdge(c.object) || slices.ContainsFunc(targetsOf(c.object), func(ref *typeapi.PolicyTargetReference) bool {
			return d.targets(ref, c.object.Namespace, s)
		}) {
			out = append(out, c)
		}
	}
	return out
}

// targets says whether a reference means this waypoint, its class, or the service.
func (d *derivation) targets(ref *typeapi.PolicyTargetReference, namespace string, s *Service) bool {
	group := ref.GetGroup()
	if group == "core" {
		group = ""
	}
	switch {
	case ref.GetNamespace() != "" && ref.GetNamespace() != namespace:
		return false // a policy protects its own namespace only
	case group == "gateway.networking.k8s.io" && ref.GetKind() == "Gateway":
		return namespace == d.in.Gateway.Namespace && ref.GetName() == d.in.Gateway.Name
	case group == "gateway.networking.k8s.io" && ref.GetKind() == "GatewayClass":
		return d.in.Edge == nil && namespace == d.in.Mesh.RootNamespace && ref.GetName() == waypointClass
	case s == nil:
		return false
	}
	return ref.GetKind() == s.Kind && group == serviceGroup(s.Kind) && namespace == s.Namespace && ref.GetName() == s.Name
}

// rules joins the policies of one kind, enforced and dry-run apart. Both are nil when there is none.
func (set policySet) rules(kind policyKind, http bool) (enforced, shadow *rbacv3.RBAC) {
	action := map[policyKind]rbacv3.RBAC_Action{
		auditKind: rbacv3.RBAC_LOG, denyKind: rbacv3.RBAC_DENY, allowKind: rbacv3.RBAC_ALLOW,
	}[kind]
	for _, c := range set {
		if c.kind != kind {
			continue
		}
		into := &enforced
		if c.dryRun {
			into = &shadow
		}
		if *into == nil {
			*into = &rbacv3.RBAC{Action: action, Policies: map[string]*rbacv3.Policy{}}
		}
		policies := c.tcp
		if http {
			policies = c.http
		}
		maps.Copy((*into).GetPolicies(), policies)
	}
	return enforced, shadow
}

// filterNames are the RBAC filters in the order in which they judge.
func filterNames() [3]string { return [3]string{rbacAudit, rbacDeny, rbacAllow} }

func shadowPrefix(kind policyKind) string {
	switch kind {
	case denyKind:
		return "istio_dry_run_deny_"
	case auditKind:
		return "istio_dry_run_custom_"
	default:
		return "istio_dry_run_allow_"
	}
}

// http is the per-host configuration of the RBAC filters; each is always there, see httpFilters.
func (set policySet) http() map[string]*anypb.Any {
	out := map[string]*anypb.Any{}
	for i, name := range filterNames() {
		per := &httprbacv3.RBACPerRoute{}
		enforced, shadow := set.rules(policyKind(i), true)
		if enforced != nil || shadow != nil {
			per.Rbac = &httprbacv3.RBAC{Rules: enforced, ShadowRules: shadow}
			if shadow != nil {
				per.Rbac.ShadowRulesStatPrefix = shadowPrefix(policyKind(i))
			}
		}
		out[name] = pack(per)
	}
	for _, s := range set.servers() {
		out[s.rbacName()] = pack(&httprbacv3.RBACPerRoute{Rbac: &httprbacv3.RBAC{
			ShadowRules: set.questions(s, true), ShadowRulesStatPrefix: s.shadowPrefix(),
		}})
	}
	return out
}

// network are the filters of a TCP chain; a kind without policies has none.
func (set policySet) network() []*listenerv3.Filter {
	var out []*listenerv3.Filter
	for i, name := range filterNames() {
		enforced, shadow := set.rules(policyKind(i), false)
		if enforced == nil && shadow == nil {
			continue
		}
		f := &networkrbacv3.RBAC{Rules: enforced, ShadowRules: shadow, StatPrefix: "tcp."}
		if shadow != nil {
			f.ShadowRulesStatPrefix = shadowPrefix(policyKind(i))
		}
		out = append(out, networkFilter(name, f))
	}
	return out
}
