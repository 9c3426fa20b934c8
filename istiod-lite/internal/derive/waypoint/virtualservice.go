package waypoint

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

const meshGateway = "mesh"

// virtualServices are those that speak about the service: visible, for the mesh, from the owner's or the waypoint's
// namespace. The oldest comes first.
func (d *derivation) virtualServices(s *Service) []*networkingv1.VirtualService {
	var out []*networkingv1.VirtualService
	for _, v := range d.in.VirtualServices {
		if v.Namespace != s.Namespace && v.Namespace != d.in.Gateway.Namespace {
			continue
		}
		if g := v.Spec.GetGateways(); len(g) > 0 && !slices.Contains(g, meshGateway) {
			continue
		}
		if !exported(v.Spec.GetExportTo(), v.Namespace, d.in.Gateway.Namespace) && v.Namespace != d.in.Gateway.Namespace {
			continue
		}
		if slices.ContainsFunc(v.Spec.GetHosts(), func(h string) bool {
			return hostMatches(qualify(h, v.Namespace, d.in.Mesh), s.Hostname)
		}) {
			out = append(out, v)
		}
	}
	return out
}

// istioRoutes are the routes that VirtualServices give to a service port.
func (d *derivation) istioRoutes(s *Service, p Port) []*routev3.Route {
	var out []*routev3.Route
	for _, v := range d.virtualServices(s) {
		for i, rule := range d.httpRules(v) {
			out = append(out, d.reportedRule(v, rule, i, p)...)
		}
	}
	return out
}

// istioRule gives one route for each match that can hold here. A rule that cannot be expressed answers 503 for what it
// matches; a match that cannot be expressed is left out and reported.
func (d *derivation) istioRule(v *networkingv1.VirtualService, rule *networkingapi.HTTPRoute, p Port) ([]*routev3.Route, error) {
	matches := rule.GetMatch()
	if len(matches) == 0 {
		matches = []*networkingapi.HTTPMatchRequest{{}}
	}
	var out []*routev3.Route
	var problem error
	for i, m := range matches {
		if !d.matchHolds(v, m, p) {
			continue
		}
		match, err := d.istioMatch(m)
		if err != nil {
			problem = fmt.Errorf("match[%d]: %w", i, err)
			continue
		}
		r := &routev3.Route{Name: matchName(rule, m), Match: match, StatPrefix: m.GetStatPrefix()}
		if err := d.istioAction(v, rule, p, r); err != nil {
			problem = err
			r.TypedPerFilterConfig = nil
			respond(r, 503, "")
		}
		out = append(out, r)
	}
	return out, problem
}

func matchName(rule *networkingapi.HTTPRoute, m *networkingapi.HTTPMatchRequest) string {
	if m.GetName() == "" {
		return rule.GetName()
	}
	return strings.TrimPrefix(rule.GetName()+"."+m.GetName(), ".")
}

// matchHolds decides the conditions that are known before any request.
func (d *derivation) matchHolds(v *networkingv1.VirtualService, m *networkingapi.HTTPMatchRequest, p Port) bool {
	switch {
	case !d.fromHere(m.GetSourceLabels()): // a waypoint is not the client's proxy and has not its labels
		return false
	case m.GetPort() != 0 && m.GetPort() != p.Number:
		return false
	case len(m.GetGateways()) > 0 && !d.countsAs(m.GetGateways(), v.Namespace):
		return false
	}
	return m.GetSourceNamespace() == "" || m.GetSourceNamespace() == d.in.Gateway.Namespace
}

func (d *derivation) istioMatch(m *networkingapi.HTTPMatchRequest) (*routev3.RouteMatch, error) {
	out := everything()
	if m.GetIgnoreUriCase() {
		out.CaseSensitive = boolValue(false)
	}
	switch u := m.GetUri().GetMatchType().(type) {
	case *networkingapi.StringMatch_Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: u.Exact}
	case *networkingapi.StringMatch_Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: u.Prefix}
	case *networkingapi.StringMatch_Regex:
		if err := checkRegex("uri", u.Regex); err != nil {
			return nil, err
		}
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: regexMatcher(u.Regex)}
	}
	pseudo := []struct {
		name  string
		match *networkingapi.StringMatch
	}{{":method", m.GetMethod()}, {":authority", m.GetAuthority()}, {":scheme", m.GetScheme()}}
	for _, h := range pseudo {
		if h.match == nil {
			continue
		}
		value, err := istioString(h.name, h.match)
		if err != nil {
			return nil, err
		}
		out.Headers = append(out.Headers, headerMatch(h.name, value, false))
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetHeaders())) {
		if err := d.addHeaderMatch(out, name, m.GetHeaders()[name], false); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetWithoutHeaders())) {
		if err := d.addHeaderMatch(out, name, m.GetWithoutHeaders()[name], true); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetQueryParams())) {
		value, err := istioString("queryParams["+name+"]", m.GetQueryParams()[name])
		if err != nil {
			return nil, err
		}
		out.QueryParameters = append(out.QueryParameters, queryMatch(name, value))
	}
	return out, nil
}

func (d *derivation) addHeaderMatch(out *routev3.RouteMatch, name string, m *networkingapi.StringMatch, without bool) error {
	if claims, ok := strings.CutPrefix(name, claimHeader); ok {
		if d.in.Edge == nil {
			return fmt.Errorf("headers[%s]: claims can be matched only at a gateway that checks tokens", name)
		}
		return addClaimMatch(out, claims, m, without)
	}
	if p := headerProblem(strings.TrimPrefix(name, ":"), ""); p != "" {
		return fmt.Errorf("headers: %s", p)
	}
	value, err := istioString("headers["+name+"]", m)
	if err != nil {
		return err
	}
	out.Headers = append(out.Headers, headerMatch(strings.ToLower(name), value, without))
	return nil
}

// istioBackends resolves the rule's destinations; those with weight 0 vanish unless they are alone.
func (d *derivation) istioBackends(v *networkingv1.VirtualService, rule *networkingapi.HTTPRoute, p Port) []backend {
	var out []backend
	for _, dest := range rule.GetRoute() {
		if len(rule.GetRoute()) > 1 && dest.GetWeight() <= 0 {
			continue
		}
		b := d.istioBackend(v, dest.GetDestination(), p, true)
		b.weight, b.headers = uint32(max(dest.GetWeight(), 1)), istioHeaders(dest.GetHeaders())
		out = append(out, b)
	}
	return out
}

func (d *derivation) istioBackend(v *networkingv1.VirtualService, dest *networkingapi.Destination, p Port, http bool) backend {
	host := qualify(dest.GetHost(), v.Namespace, d.in.Mesh)
	b := d.backendFor(host, dest.GetSubset(), dest.GetPort().GetNumber(), p.Number, http)
	switch {
	case b.service == nil:
		d.report("VirtualService", v.Namespace, v.Name, reasonNotFound,
			"destination "+host+" (port "+decimal(dest.GetPort().GetNumber())+") does not exist; its requests get 503")
	case dest.GetSubset() != "" && d.rules.forService(b.service).subset(dest.GetSubset()) == nil:
		d.report("VirtualService", v.Namespace, v.Name, reasonNotFound,
			"subset "+dest.GetSubset()+" of "+host+" is declared by no DestinationRule; its requests get 503")
	}
	return b
}
