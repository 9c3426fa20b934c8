package waypoint

import (
	"fmt"
	"regexp"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// grpcRoute translates every match of every rule into one route; a method is a path.
func (d *derivation) grpcRoute(r *gatewayv1.GRPCRoute, p Port) []ranked {
	owner := ownerOf("GRPCRoute", r)
	var out []ranked
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.GRPCRouteMatch{{}}
		}
		for _, m := range matches {
			entry := ranked{owner: r, index: len(out), route: &routev3.Route{Name: routeName(rule.Name, r, i)}}
			if err := grpcMatch(m, &entry); err != nil {
				d.reportRoute(owner, gatewayv1.RouteReasonUnsupportedValue, fmt.Sprintf("rules[%d]: %v", i, err))
				continue
			}
			d.grpcRule(owner, rule, i, p, entry.route)
			out = append(out, entry)
		}
	}
	return out
}

func grpcMatch(m gatewayv1.GRPCRouteMatch, out *ranked) error {
	match, err := grpcMethod(m.Method, out)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, h := range m.Headers {
		name := strings.ToLower(string(h.Name))
		if seen[name] {
			continue
		}
		seen[name] = true
		value, err := gatewayString("headers["+name+"]",
			h.Type != nil && *h.Type == gatewayv1.GRPCHeaderMatchRegularExpression, h.Value)
		if err != nil {
			return err
		}
		match.Headers = append(match.Headers, headerMatch(name, value, false))
	}
	out.headers = len(m.Headers)
	out.route.Match = match
	return nil
}

func grpcMethod(m *gatewayv1.GRPCMethodMatch, out *ranked) (*routev3.RouteMatch, error) {
	var service, method string
	if m != nil && m.Service != nil {
		service = *m.Service
	}
	if m != nil && m.Method != nil {
		method = *m.Method
	}
	if service == "" && method == "" {
		return everything(), nil
	}
	out.pathLength = len(service) + len(method)
	expression := m.Type != nil && *m.Type == gatewayv1.GRPCMethodMatchRegularExpression
	switch {
	case !expression && service != "" && method != "":
		out.pathKind = 3
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/" + service + "/" + method}}, nil
	case !expression && service != "":
		out.pathKind = 2
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/" + service + "/"}}, nil
	case !expression:
		method = regexp.QuoteMeta(method)
	}
	out.pathKind = 1
	part := func(v string) string {
		if v == "" {
			return "[^/]+"
		}
		return v
	}
	expr := "/" + part(service) + "/" + part(method)
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: regexMatcher(expr)}},
		checkRegex("method", expr)
}

func (d *derivation) grpcRule(owner routeOwner, rule *gatewayv1.GRPCRouteRule, index int, p Port, r *routev3.Route) {
	f := forward{retry: defaultRetry(true)}
	for j, filter := range rule.Filters {
		problem := ""
		switch filter.Type {
		case gatewayv1.GRPCRouteFilterRequestHeaderModifier:
			f.headers.request = f.headers.request.join(gatewayHeaders(filter.RequestHeaderModifier))
		case gatewayv1.GRPCRouteFilterResponseHeaderModifier:
			f.headers.response = f.headers.response.join(gatewayHeaders(filter.ResponseHeaderModifier))
		case gatewayv1.GRPCRouteFilterRequestMirror:
			f.mirrors = append(f.mirrors, d.gatewayMirror(owner, filter.RequestMirror, p)...)
		default:
			problem = "filter type " + quoted(string(filter.Type)) + " is not supported"
		}
		if problem == "" {
			problem = f.headers.problem()
		}
		if problem != "" {
			d.reportRoute(owner, "InvalidFilter", fmt.Sprintf("rules[%d].filters[%d]: %s", index, j, problem))
			respond(r, 500, "")
			return
		}
	}
	for j, ref := range rule.BackendRefs {
		b := d.gatewayBackend(owner, ref.BackendRef, p.Number, true)
		if problem := grpcBackendHeaders(ref.Filters, &b.headers); problem != "" {
			d.reportRoute(owner, "InvalidFilter", fmt.Sprintf("rules[%d].backendRefs[%d]: %s", index, j, problem))
			b = backend{cluster: UnknownService, weight: b.weight}
		}
		f.backends = append(f.backends, b)
	}
	f.send(r)
	d.consistentHash(r, positive(f.backends))
}

func grpcBackendHeaders(filters []gatewayv1.GRPCRouteFilter, out *headerChanges) string {
	for _, filter := range filters {
		switch filter.Type {
		case gatewayv1.GRPCRouteFilterRequestHeaderModifier:
			out.request = out.request.join(gatewayHeaders(filter.RequestHeaderModifier))
		case gatewayv1.GRPCRouteFilterResponseHeaderModifier:
			out.response = out.response.join(gatewayHeaders(filter.ResponseHeaderModifier))
		default:
			return "a backend's filter of type " + quoted(string(filter.Type)) + " is not supported"
		}
	}
	return out.problem()
}
