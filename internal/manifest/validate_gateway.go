package manifest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// oneOf checks a value that the API server would compare with a list. The empty value is the default.
func oneOf[S ~string](at string, v *S, p *problems, allowed ...S) {
	if v == nil || *v == "" || slices.Contains(allowed, *v) {
		return
	}
	p.add(at, "value %s is unknown; want one of %v", *v, allowed)
}

func validateGateway(g *gatewayv1.Gateway, p *problems) {
	if g.Spec.GatewayClassName == "" {
		p.add("spec.gatewayClassName", "is empty; name the class")
	}
	if len(g.Spec.Listeners) == 0 {
		p.add("spec.listeners", "is empty; give it one")
	}
	seen := map[gatewayv1.SectionName]bool{}
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		at := fmt.Sprintf("spec.listeners[%d]", i)
		switch {
		case l.Name == "":
			p.add(at+".name", "is empty; name the listener")
		case seen[l.Name]:
			p.add(at+".name", "value %q is used by another listener; names are unique", l.Name)
		}
		seen[l.Name] = true
		validatePortNumber(at+".port", int64(l.Port), p)
		if l.Protocol == "" {
			p.add(at+".protocol", "is empty; a waypoint's is HBONE")
		}
		if l.AllowedRoutes == nil || l.AllowedRoutes.Namespaces == nil {
			continue
		}
		ns := l.AllowedRoutes.Namespaces
		oneOf(at+".allowedRoutes.namespaces.from", ns.From, p, gatewayv1.NamespacesFromAll, gatewayv1.NamespacesFromSame,
			gatewayv1.NamespacesFromSelector, gatewayv1.NamespacesFromNone)
		if _, err := metav1.LabelSelectorAsSelector(ns.Selector); err != nil {
			p.add(at+".allowedRoutes.namespaces.selector", "cannot be used: %v", err)
		}
	}
}

func validatePortNumber(at string, n int64, p *problems) {
	if n < 1 || n > 65535 {
		p.add(at, "value %d is no port; want 1 to 65535", n)
	}
}

func validateHTTPRoute(r *gatewayv1.HTTPRoute, p *problems) {
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		at := fmt.Sprintf("spec.rules[%d]", i)
		for j := range rule.Matches {
			validateHTTPRouteMatch(fmt.Sprintf("%s.matches[%d]", at, j), &rule.Matches[j], p)
		}
		for j := range rule.Filters {
			validateFilter(fmt.Sprintf("%s.filters[%d]", at, j), &rule.Filters[j], p)
		}
		for j := range rule.BackendRefs {
			b := &rule.BackendRefs[j]
			to := fmt.Sprintf("%s.backendRefs[%d]", at, j)
			validateBackend(to, b.BackendRef, p)
			for k := range b.Filters {
				validateFilter(fmt.Sprintf("%s.filters[%d]", to, k), &b.Filters[k], p)
			}
		}
		if t := rule.Timeouts; t != nil {
			validateGatewayDuration(at+".timeouts.request", t.Request, p)
			validateGatewayDuration(at+".timeouts.backendRequest", t.BackendRequest, p)
		}
	}
}

func validateGatewayDuration(at string, d *gatewayv1.Duration, p *problems) {
	if d == nil {
		return
	}
	v, err := time.ParseDuration(string(*d))
	if err != nil || v < 0 || strings.ContainsAny(string(*d), ".-+") {
		p.add(at, "value %q is no duration like 1h, 30s or 500ms", *d)
	}
}

func validateHTTPRouteMatch(at string, m *gatewayv1.HTTPRouteMatch, p *problems) {
	if path := m.Path; path != nil {
		oneOf(at+".path.type", path.Type, p, gatewayv1.PathMatchExact, gatewayv1.PathMatchPathPrefix, gatewayv1.PathMatchRegularExpression)
		if path.Value != nil {
			validatePath(at+".path.value", *path.Value, path.Type != nil && *path.Type == gatewayv1.PathMatchRegularExpression, p)
		}
	}
	for i, h := range m.Headers {
		field := fmt.Sprintf("%s.headers[%d]", at, i)
		oneOf(field+".type", h.Type, p, gatewayv1.HeaderMatchExact, gatewayv1.HeaderMatchRegularExpression)
		validateNamed(field, string(h.Name), h.Value, h.Type != nil && *h.Type == gatewayv1.HeaderMatchRegularExpression, p)
	}
	for i, q := range m.QueryParams {
		field := fmt.Sprintf("%s.queryParams[%d]", at, i)
		oneOf(field+".type", q.Type, p, gatewayv1.QueryParamMatchExact, gatewayv1.QueryParamMatchRegularExpression)
		validateNamed(field, string(q.Name), q.Value, q.Type != nil && *q.Type == gatewayv1.QueryParamMatchRegularExpression, p)
	}
	oneOf(at+".method", m.Method, p, gatewayv1.HTTPMethodGet, gatewayv1.HTTPMethodHead, gatewayv1.HTTPMethodPost,
		gatewayv1.HTTPMethodPut, gatewayv1.HTTPMethodDelete, gatewayv1.HTTPMethodConnect, gatewayv1.HTTPMethodOptions,
		gatewayv1.HTTPMethodTrace, gatewayv1.HTTPMethodPatch)
}

func validatePath(at, v string, regex bool, p *problems) {
	switch {
	case regex:
		if _, err := regexp.Compile(v); err != nil {
			p.add(at, "value %q is no RE2 expression: %v", v, err)
		}
	case !strings.HasPrefix(v, "/"):
		p.add(at, "value %q does not begin with a slash", v)
	case strings.Contains(v, "//") || strings.Contains(v, "/./") || strings.Contains(v, "/../") || strings.Contains(v, "#"):
		p.add(at, "value %q is no normal path: //, /./, /../ and # never match", v)
	}
}

func validateNamed(at, name, value string, regex bool, p *problems) {
	if name == "" {
		p.add(at+".name", "is empty; name what is matched")
	}
	if regex {
		validateRegex(at+".value", value, p)
	}
}

func validateFilter(at string, f *gatewayv1.HTTPRouteFilter, p *problems) {
	parts := map[gatewayv1.HTTPRouteFilterType]bool{
		gatewayv1.HTTPRouteFilterRequestHeaderModifier:  f.RequestHeaderModifier != nil,
		gatewayv1.HTTPRouteFilterResponseHeaderModifier: f.ResponseHeaderModifier != nil,
		gatewayv1.HTTPRouteFilterRequestRedirect:        f.RequestRedirect != nil,
		gatewayv1.HTTPRouteFilterURLRewrite:             f.URLRewrite != nil,
		gatewayv1.HTTPRouteFilterRequestMirror:          f.RequestMirror != nil,
		gatewayv1.HTTPRouteFilterCORS:                   f.CORS != nil,
		gatewayv1.HTTPRouteFilterExternalAuth:           f.ExternalAuth != nil,
		gatewayv1.HTTPRouteFilterExtensionRef:           f.ExtensionRef != nil,
	}
	has, known := parts[f.Type]
	switch {
	case !known:
		p.add(at+".type", "value %q is unknown; want a filter type of the Gateway API", f.Type)
	case !has:
		p.add(at, "is of type %s but does not have its field", f.Type)
	}
	for kind, there := range parts {
		if there && kind != f.Type {
			p.add(at, "is of type %s but has the field of %s; use a filter each", f.Type, kind)
		}
	}
}

func validateBackend(at string, b gatewayv1.BackendRef, p *problems) {
	if b.Name == "" {
		p.add(at+".name", "is empty; name the backend")
	}
	service := (b.Group == nil || *b.Group == "") && (b.Kind == nil || *b.Kind == "Service")
	if service && b.Port == nil {
		p.add(at+".port", "is missing; a Service needs one")
	}
	if b.Port != nil {
		validatePortNumber(at+".port", int64(*b.Port), p)
	}
	if b.Weight != nil && (*b.Weight < 0 || *b.Weight > 1_000_000) {
		p.add(at+".weight", "value %d is out of range; want 0 to 1000000", *b.Weight)
	}
}

func validateGRPCRoute(r *gatewayv1.GRPCRoute, p *problems) {
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		at := fmt.Sprintf("spec.rules[%d]", i)
		for j, m := range rule.Matches {
			field := fmt.Sprintf("%s.matches[%d]", at, j)
			if m.Method != nil {
				oneOf(field+".method.type", m.Method.Type, p, gatewayv1.GRPCMethodMatchExact, gatewayv1.GRPCMethodMatchRegularExpression)
			}
			for k, h := range m.Headers {
				to := fmt.Sprintf("%s.headers[%d]", field, k)
				oneOf(to+".type", h.Type, p, gatewayv1.GRPCHeaderMatchExact, gatewayv1.GRPCHeaderMatchRegularExpression)
				validateNamed(to, string(h.Name), h.Value, h.Type != nil && *h.Type == gatewayv1.GRPCHeaderMatchRegularExpression, p)
			}
		}
		for j := range rule.BackendRefs {
			validateBackend(fmt.Sprintf("%s.backendRefs[%d]", at, j), rule.BackendRefs[j].BackendRef, p)
		}
	}
}
