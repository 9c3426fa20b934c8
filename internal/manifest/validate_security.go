package manifest

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	apisecurity "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"
)

func validateAuthorization(spec *apisecurity.AuthorizationPolicy, p *problems) {
	validateTargets(spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs(), p)
	action := spec.GetAction()
	custom := action == apisecurity.AuthorizationPolicy_CUSTOM
	switch {
	case custom && spec.GetProvider().GetName() == "":
		p.add("spec.provider.name", "is empty, want the extension provider that a CUSTOM policy asks")
	case !custom && spec.GetProvider() != nil:
		p.add("spec.provider", "belongs to action CUSTOM, not to %s; remove it or change the action", action)
	}
	if (custom || action == apisecurity.AuthorizationPolicy_DENY) && len(spec.GetRules()) == 0 {
		p.add("spec.rules", "is empty, so the %s policy never applies; add a rule, {} for every request", action)
	}
	for i, r := range spec.GetRules() {
		at := fmt.Sprintf("spec.rules[%d]", i)
		if custom {
			validateCustomRule(at, r, p)
		}
		for j, from := range r.GetFrom() {
			f := fmt.Sprintf("%s.from[%d].source", at, j)
			validateStrings(f, from.GetSource(), p)
			validateSource(f, from.GetSource(), p)
		}
		for j, to := range r.GetTo() {
			f := fmt.Sprintf("%s.to[%d].operation", at, j)
			validateStrings(f, to.GetOperation(), p)
			validateOperation(f, to.GetOperation(), p)
		}
		for j, c := range r.GetWhen() {
			validateCondition(fmt.Sprintf("%s.when[%d]", at, j), c, p)
		}
	}
}

// validateCustomRule refuses attributes by which nobody can say whether a provider is asked: it is asked before tokens are checked, and
// Istio's providers are not told identities.
func validateCustomRule(at string, r *apisecurity.Rule, p *problems) {
	const why = "cannot be used with action CUSTOM; the provider is asked before identities and tokens are judged, use DENY or ALLOW beside it"
	for j, f := range r.GetFrom() {
		s := f.GetSource()
		for name, lists := range map[string][2][]string{
			"principals": {s.GetPrincipals(), s.GetNotPrincipals()}, "requestPrincipals": {s.GetRequestPrincipals(), s.GetNotRequestPrincipals()},
			"namespaces": {s.GetNamespaces(), s.GetNotNamespaces()}, "serviceAccounts": {s.GetServiceAccounts(), s.GetNotServiceAccounts()},
			"trustDomains": {s.GetTrustDomains(), s.GetNotTrustDomains()},
		} {
			if len(lists[0])+len(lists[1]) > 0 {
				p.add(fmt.Sprintf("%s.from[%d].source.%s", at, j, name), why)
			}
		}
	}
	for j, c := range r.GetWhen() {
		switch k := c.GetKey(); {
		case strings.HasPrefix(k, "request.auth."), k == "source.namespace", k == "source.principal", k == "source.serviceAccount", k == "source.trustDomain":
			p.add(fmt.Sprintf("%s.when[%d].key", at, j), "%q "+why, k)
		}
	}
}

// validateStrings wants at least one list of m to have a value, and no value to be empty.
func validateStrings(at string, m proto.Message, p *problems) {
	r := m.ProtoReflect()
	if !r.IsValid() {
		p.add(at, "is missing; name what it matches")
		return
	}
	any := false
	fields := r.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !fd.IsList() || fd.Kind() != protoreflect.StringKind {
			continue
		}
		l := r.Get(fd).List()
		any = any || l.Len() > 0
		for j := range l.Len() {
			if l.Get(j).String() == "" {
				p.add(fmt.Sprintf("%s.%s[%d]", at, fd.JSONName(), j), "is empty; remove it")
			}
		}
	}
	if !any {
		p.add(at, "has no field with a value, so it says nothing; give it one or remove it")
	}
}

func validateSource(at string, s *apisecurity.Source, p *problems) {
	validateBlocks(at+".ipBlocks", s.GetIpBlocks(), p)
	validateBlocks(at+".notIpBlocks", s.GetNotIpBlocks(), p)
	validateBlocks(at+".remoteIpBlocks", s.GetRemoteIpBlocks(), p)
	validateBlocks(at+".notRemoteIpBlocks", s.GetNotRemoteIpBlocks(), p)
	for name, accounts := range map[string][]string{
		"serviceAccounts": s.GetServiceAccounts(), "notServiceAccounts": s.GetNotServiceAccounts(),
	} {
		for i, a := range accounts {
			field := fmt.Sprintf("%s.%s[%d]", at, name, i)
			if strings.Contains(a, "*") {
				p.add(field, "value %q has a wildcard; service accounts are matched exactly", a)
			}
			if strings.Count(a, "/") > 1 {
				p.add(field, "value %q has more than one slash; write account or namespace/account", a)
			}
		}
		if len(accounts) > 0 && (len(s.GetPrincipals()) > 0 || len(s.GetNotPrincipals()) > 0 ||
			len(s.GetNamespaces()) > 0 || len(s.GetNotNamespaces()) > 0) {
			p.add(at+"."+name, "cannot stand beside principals or namespaces; use a source of its own")
		}
	}
}

func validateOperation(at string, o *apisecurity.Operation, p *problems) {
	validatePorts(at+".ports", o.GetPorts(), p)
	validatePorts(at+".notPorts", o.GetNotPorts(), p)
}

func validatePorts(at string, ports []string, p *problems) {
	for i, v := range ports {
		if n, err := strconv.ParseUint(v, 10, 16); err != nil || n == 0 {
			p.add(fmt.Sprintf("%s[%d]", at, i), "value %q is no port; want 1 to 65535", v)
		}
	}
}

func validateBlocks(at string, blocks []string, p *problems) {
	for i, v := range blocks {
		if !validBlock(v) {
			p.add(fmt.Sprintf("%s[%d]", at, i), "value %q is neither an IP address nor a range like 10.0.0.0/8", v)
		}
	}
}

func validBlock(v string) bool {
	if _, err := netip.ParsePrefix(v); err == nil {
		return true
	}
	a, err := netip.ParseAddr(v)
	return err == nil && a.Zone() == ""
}

func validateCondition(at string, c *apisecurity.Condition, p *problems) {
	if c.GetKey() == "" {
		p.add(at+".key", "is empty; name the attribute")
		return
	}
	if len(c.GetValues()) == 0 && len(c.GetNotValues()) == 0 {
		p.add(at, "has neither values nor notValues; give it one")
	}
	for name, values := range map[string][]string{"values": c.GetValues(), "notValues": c.GetNotValues()} {
		field := at + "." + name
		switch c.GetKey() {
		case "source.ip", "destination.ip", "remote.ip":
			validateBlocks(field, values, p)
		case "destination.port":
			validatePorts(field, values, p)
		}
	}
	if !knownAttribute(c.GetKey()) {
		p.add(at+".key", "attribute %q is unknown; correct its name", c.GetKey())
	}
}

func knownAttribute(key string) bool {
	switch key {
	case "source.ip", "source.namespace", "source.principal", "source.serviceAccount", "source.trustDomain", "remote.ip",
		"request.auth.principal", "request.auth.audiences", "request.auth.presenter", "destination.ip",
		"destination.port", "connection.sni":
		return true
	}
	for _, prefix := range []string{"request.headers[", "request.auth.claims[", "experimental.envoy.filters."} {
		rest, ok := strings.CutPrefix(key, prefix)
		if ok && rest != "" && (strings.HasSuffix(rest, "]") || prefix[len(prefix)-1] == '.') {
			return true
		}
	}
	return false
}

func validatePeerAuthentication(spec *apisecurity.PeerAuthentication, p *problems) {
	validateSelector(spec.GetSelector(), p)
	if len(spec.GetPortLevelMtls()) > 0 && len(spec.GetSelector().GetMatchLabels()) == 0 {
		p.add("spec.portLevelMtls", "needs a selector with matchLabels: ports belong to workloads")
	}
	for _, port := range slices.Sorted(maps.Keys(spec.GetPortLevelMtls())) {
		if port == 0 || port > 65535 {
			p.add(fmt.Sprintf("spec.portLevelMtls[%d]", port), "is no port; want 1 to 65535")
		}
	}
}

func validateRequestAuthentication(spec *apisecurity.RequestAuthentication, p *problems) {
	validateTargets(spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs(), p)
	for i, r := range spec.GetJwtRules() {
		at := fmt.Sprintf("spec.jwtRules[%d]", i)
		if r.GetIssuer() == "" && r.GetJwksUri() == "" {
			p.add(at+".issuer", "is empty; name who signs the tokens, or give a jwksUri whose tokens of any issuer are good")
		}
		if r.GetJwks() != "" && r.GetJwksUri() != "" {
			p.add(at+".jwks", "excludes jwksUri; keep one of the two")
		}
		if u := r.GetJwksUri(); u != "" {
			parsed, err := url.Parse(u)
			if err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https" {
				p.add(at+".jwksUri", "value %q is no http or https URL", u)
			}
		}
		for j, h := range r.GetFromHeaders() {
			if h.GetName() == "" {
				p.add(fmt.Sprintf("%s.fromHeaders[%d].name", at, j), "is empty; name the header")
			}
		}
	}
}

func validateTargets(sel *apitype.WorkloadSelector, ref *apitype.PolicyTargetReference,
	refs []*apitype.PolicyTargetReference, p *problems,
) {
	validateSelector(sel, p)
	switch {
	case ref != nil && len(refs) > 0:
		p.add("spec.targetRef", "excludes targetRefs; keep targetRefs")
	case sel != nil && (ref != nil || len(refs) > 0):
		p.add("spec.selector", "excludes targetRefs; keep one of the two")
	}
	if ref != nil {
		validateTarget("spec.targetRef", ref, p)
	}
	for i, r := range refs {
		validateTarget(fmt.Sprintf("spec.targetRefs[%d]", i), r, p)
	}
}

func validateTarget(at string, r *apitype.PolicyTargetReference, p *problems) {
	if r.GetName() == "" {
		p.add(at+".name", "is empty; name the target")
	}
	if r.GetNamespace() != "" {
		p.add(at+".namespace", "is %q; a policy attaches to targets of its own namespace, leave it out", r.GetNamespace())
	}
	switch r.GetGroup() + "/" + r.GetKind() {
	case GroupGateway + "/Gateway", GroupGateway + "/GatewayClass", "/Service", "core/Service",
		GroupNetworking + "/ServiceEntry":
	default:
		p.add(at+".kind", "%q of group %q cannot be a target; want Gateway or GatewayClass of %s, Service, or ServiceEntry of %s",
			r.GetKind(), r.GetGroup(), GroupGateway, GroupNetworking)
	}
}

func validateSelector(sel *apitype.WorkloadSelector, p *problems) {
	for _, k := range slices.Sorted(maps.Keys(sel.GetMatchLabels())) {
		v := sel.GetMatchLabels()[k]
		if k == "" {
			p.add("spec.selector.matchLabels", "has an empty key; name the label")
		}
		if strings.Contains(k, "*") || strings.Contains(v, "*") {
			p.add("spec.selector.matchLabels["+k+"]", "value %q: wildcards are not supported; labels are matched exactly", v)
		}
	}
}
