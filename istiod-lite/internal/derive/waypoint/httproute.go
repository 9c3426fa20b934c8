package waypoint

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// httpRoute translates every match of every rule into one route.
func (d *derivation) httpRoute(r *gatewayv1.HTTPRoute, p Port) []ranked {
	owner := ownerOf("HTTPRoute", r)
	var out []ranked
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for _, m := range matches {
			entry := ranked{owner: r, index: len(out), route: &routev3.Route{Name: routeName(rule.Name, r, i)}}
			if err := gatewayMatch(m, &entry); err != nil {
				// Without its match the rule would catch what it should not; it is left out whole.
				d.reportRoute(owner, gatewayv1.RouteReasonUnsupportedValue, fmt.Sprintf("rules[%d]: %v", i, err))
				continue
			}
			d.httpRule(owner, rule, i, p, entry.route)
			out = append(out, entry)
		}
	}
	return out
}

func gatewayMatch(m gatewayv1.HTTPRouteMatch, out *ranked) error {
	match, err := gatewayPath(m.Path, out)
	if err != nil {
		return err
	}
	if m.Method != nil {
		out.method = true
		match.Headers = append(match.Headers, headerMatch(":method", exact(string(*m.Method)), false))
	}
	seen := map[string]bool{}
	for _, h := range m.Headers {
		name := strings.ToLower(string(h.Name))
		if seen[name] {
			continue
		}
		seen[name] = true
		value, err := gatewayString("headers["+name+"]", h.Type != nil && *h.Type == gatewayv1.HeaderMatchRegularExpression, h.Value)
		if err != nil {
			return err
		}
		match.Headers = append(match.Headers, headerMatch(name, value, false))
	}
	seen = map[string]bool{}
	for _, q := range m.QueryParams {
		if seen[string(q.Name)] {
			continue
		}
		seen[string(q.Name)] = true
		value, err := gatewayString("queryParams["+string(q.Name)+"]",
			q.Type != nil && *q.Type == gatewayv1.QueryParamMatchRegularExpression, q.Value)
		if err != nil {
			return err
		}
		match.QueryParameters = append(match.QueryParameters, queryMatch(string(q.Name), value))
	}
	out.headers, out.queries = len(m.Headers), len(m.QueryParams)
	out.route.Match = match
	return nil
}

func gatewayString(field string, expression bool, value string) (*matcherv3.StringMatcher, error) {
	if expression {
		return regex(value), checkRegex(field, value)
	}
	return exact(value), nil
}

func gatewayPath(p *gatewayv1.HTTPPathMatch, out *ranked) (*routev3.RouteMatch, error) {
	kind, value := gatewayv1.PathMatchPathPrefix, "/"
	if p != nil && p.Type != nil {
		kind = *p.Type
	}
	if p != nil && p.Value != nil {
		value = *p.Value
	}
	out.pathLength = len(value)
	switch kind {
	case gatewayv1.PathMatchExact:
		out.pathKind = 3
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: value}}, nil
	case gatewayv1.PathMatchRegularExpression:
		out.pathKind = 1
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: regexMatcher(value)}},
			checkRegex("path", value)
	case gatewayv1.PathMatchPathPrefix:
		out.pathKind = 2
		return segmentPrefix(value)
	}
	return nil, fmt.Errorf("path: type %q is not known; use Exact, PathPrefix or RegularExpression", kind)
}

// segmentPrefix matches whole path segments: /foo is a prefix of /foo/x and not of /foobar.
func segmentPrefix(value string) (*routev3.RouteMatch, error) {
	value = strings.TrimSuffix(value, "/")
	if value == "" {
		return everything(), nil
	}
	if !strings.HasPrefix(value, "/") || strings.ContainsAny(value, "?#") {
		return nil, fmt.Errorf("path: prefix %q must start with / and hold neither ? nor #", value)
	}
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: value}}, nil
}

// httpRule gives the route its action. A filter that is not understood makes the rule answer 500: a rule without its
// filter is another rule.
func (d *derivation) httpRule(owner routeOwner, rule *gatewayv1.HTTPRouteRule, index int, p Port, r *routev3.Route) {
	var f forward
	var redirect *gatewayv1.HTTPRequestRedirectFilter
	var rewrite *gatewayv1.HTTPURLRewriteFilter
	for j, filter := range rule.Filters {
		problem := ""
		switch filter.Type {
		case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
			f.headers.request = f.headers.request.join(gatewayHeaders(filter.RequestHeaderModifier))
		case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
			f.headers.response = f.headers.response.join(gatewayHeaders(filter.ResponseHeaderModifier))
		case gatewayv1.HTTPRouteFilterRequestRedirect:
			redirect = filter.RequestRedirect
		case gatewayv1.HTTPRouteFilterURLRewrite:
			rewrite = filter.URLRewrite
		case gatewayv1.HTTPRouteFilterRequestMirror:
			f.mirrors = append(f.mirrors, d.gatewayMirror(owner, filter.RequestMirror, p)...)
		case gatewayv1.HTTPRouteFilterCORS:
			r.TypedPerFilterConfig = map[string]*anypb.Any{corsFilter: pack(gatewayCORS(filter.CORS))}
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
	if redirect != nil {
		gatewayRedirect(redirect, p, r)
		f.headers.onRoute(r)
		return
	}
	for j, ref := range rule.BackendRefs {
		b := d.gatewayBackend(owner, ref.BackendRef, p.Number, true)
		for _, filter := range ref.Filters {
			if problem := backendFilter(filter, &b.headers); problem != "" {
				d.reportRoute(owner, "InvalidFilter", fmt.Sprintf("rules[%d].backendRefs[%d]: %s", index, j, problem))
				b = backend{cluster: UnknownService, weight: b.weight}
				break
			}
		}
		f.backends = append(f.backends, b)
	}
	f.timeout, f.retry = gatewayTimeouts(rule)
	f.send(r)
	if rewrite != nil && r.GetRoute() != nil {
		gatewayRewrite(rewrite, r)
	}
	d.consistentHash(r, positive(f.backends))
}

func backendFilter(filter gatewayv1.HTTPRouteFilter, out *headerChanges) string {
	switch filter.Type {
	case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
		out.request = out.request.join(gatewayHeaders(filter.RequestHeaderModifier))
	case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
		out.response = out.response.join(gatewayHeaders(filter.ResponseHeaderModifier))
	default:
		return "a backend's filter of type " + quoted(string(filter.Type)) + " is not supported"
	}
	return out.problem()
}

func (d *derivation) gatewayMirror(owner routeOwner, m *gatewayv1.HTTPRequestMirrorFilter, p Port) []*routev3.RouteAction_RequestMirrorPolicy {
	if m == nil {
		return nil
	}
	b := d.gatewayBackend(owner, gatewayv1.BackendRef{BackendObjectReference: m.BackendRef}, p.Number, true)
	millionths := uint32(million)
	switch {
	case m.Percent != nil:
		millionths = uint32(max(*m.Percent, 0)) * (million / 100)
	case m.Fraction != nil:
		denominator := int64(100)
		if m.Fraction.Denominator != nil && *m.Fraction.Denominator > 0 {
			denominator = int64(*m.Fraction.Denominator)
		}
		millionths = uint32(min(int64(max(m.Fraction.Numerator, 0))*million/denominator, million))
	}
	return mirror(b.cluster, millionths)
}

// gatewayTimeouts reads timeouts and retries. Without retry a backend timeout is the request's.
func gatewayTimeouts(rule *gatewayv1.HTTPRouteRule) (timeout time.Duration, retry *routev3.RetryPolicy) {
	retry = defaultRetry(true)
	var each time.Duration
	if t := rule.Timeouts; t != nil {
		timeout, each = gatewayDuration(t.Request), gatewayDuration(t.BackendRequest)
	}
	if rule.Retry == nil {
		if each > 0 && (timeout == 0 || each < timeout) {
			timeout = each
		}
		return timeout, retry
	}
	attempts := uint32(2)
	if rule.Retry.Attempts != nil {
		attempts = uint32(max(*rule.Retry.Attempts, 0))
	}
	if attempts == 0 {
		return timeout, nil
	}
	retry = retryPolicy(attempts, "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", true)
	for _, code := range rule.Retry.Codes {
		retry.RetriableStatusCodes = append(retry.RetriableStatusCodes, uint32(code))
	}
	if each > 0 {
		retry.PerTryTimeout = durationpb.New(each)
	}
	if b := gatewayDuration(rule.Retry.Backoff); b > 0 {
		retry.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(b)}
	}
	return timeout, retry
}

func gatewayRewrite(w *gatewayv1.HTTPURLRewriteFilter, r *routev3.Route) {
	a := r.GetRoute()
	if w.Hostname != nil {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: string(*w.Hostname)}
	}
	if w.Path == nil {
		return
	}
	switch {
	case w.Path.ReplaceFullPath != nil:
		a.RegexRewrite = substitute("/.*", *w.Path.ReplaceFullPath)
	case w.Path.ReplacePrefixMatch != nil:
		a.PrefixRewrite, a.RegexRewrite = prefixRewrite(r.GetMatch(), *w.Path.ReplacePrefixMatch)
	}
}

// prefixRewrite replaces the matched segments so that no double slash and no missing one arises.
func prefixRewrite(m *routev3.RouteMatch, replacement string) (string, *matcherv3.RegexMatchAndSubstitute) {
	replacement = strings.TrimSuffix(replacement, "/")
	prefix := m.GetPathSeparatedPrefix()
	switch {
	case prefix == "": // the match is "/"
		return replacement + "/", nil
	case replacement == "": // /foo and /foo/x become / and /x
		rewrite := substitute("^"+regexp.QuoteMeta(prefix)+"(/?)(.*)", "")
		rewrite.Substitution = `/\2`
		return "", rewrite
	}
	return replacement, nil
}

// substitute replaces what the expression finds in the path by a text in which nothing is special.
func substitute(expr, replacement string) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{
		Pattern:      regexMatcher(expr),
		Substitution: strings.ReplaceAll(replacement, `\`, `\\`),
	}
}

func gatewayRedirect(f *gatewayv1.HTTPRequestRedirectFilter, p Port, r *routev3.Route) {
	a := &routev3.RedirectAction{ResponseCode: redirectCode(302)}
	if f.StatusCode != nil {
		a.ResponseCode = redirectCode(uint32(*f.StatusCode))
	}
	if f.Hostname != nil {
		a.HostRedirect = string(*f.Hostname)
	}
	scheme := ""
	if f.Scheme != nil {
		scheme = *f.Scheme
		a.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: scheme}
	}
	switch {
	case f.Port != nil:
		a.PortRedirect = p.redirected(scheme, uint32(*f.Port))
	case scheme == "": // the API wants the listener's
		a.PortRedirect = p.redirected(scheme, p.Number)
	}
	if f.Path != nil {
		switch {
		case f.Path.ReplaceFullPath != nil:
			a.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: *f.Path.ReplaceFullPath}
		case f.Path.ReplacePrefixMatch != nil:
			prefix, rewrite := prefixRewrite(r.GetMatch(), *f.Path.ReplacePrefixMatch)
			if rewrite != nil {
				a.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: rewrite}
			} else {
				a.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: prefix}
			}
		}
	}
	r.Action = &routev3.Route_Redirect{Redirect: a}
}

// redirected is the port that a redirect of a request at p has to name: none if it is the default of the scheme, the
// redirect's or that of the request.
func (p Port) redirected(scheme string, port uint32) uint32 {
	if scheme == "" {
		scheme = "http"
		if p.Encrypted {
			scheme = "https"
		}
	}
	if scheme == "http" && port == 80 || scheme == "https" && port == 443 {
		return 0
	}
	return port
}

func redirectCode(status uint32) routev3.RedirectAction_RedirectResponseCode {
	switch status {
	case 302:
		return routev3.RedirectAction_FOUND
	case 303:
		return routev3.RedirectAction_SEE_OTHER
	case 307:
		return routev3.RedirectAction_TEMPORARY_REDIRECT
	case 308:
		return routev3.RedirectAction_PERMANENT_REDIRECT
	}
	return routev3.RedirectAction_MOVED_PERMANENTLY
}

// gatewayCORS translates the filter; preflights of unlisted origins are answered and not forwarded.
func gatewayCORS(f *gatewayv1.HTTPCORSFilter) proto.Message {
	out := &corsv3.CorsPolicy{ForwardNotMatchingPreflights: boolValue(false)}
	if f == nil {
		return out
	}
	for _, o := range f.AllowOrigins {
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, originMatch(string(o)))
	}
	out.AllowMethods = joined(f.AllowMethods)
	out.AllowHeaders = joined(f.AllowHeaders)
	out.ExposeHeaders = joined(f.ExposeHeaders)
	if f.MaxAge > 0 {
		out.MaxAge = decimal(uint32(f.MaxAge))
	}
	out.AllowCredentials = boolValue(f.AllowCredentials != nil && *f.AllowCredentials)
	return out
}

func originMatch(origin string) *matcherv3.StringMatcher {
	switch {
	case origin == "*":
		return regex(`[A-Za-z][A-Za-z0-9+.-]*://[^/]+`)
	case strings.Contains(origin, "*"):
		return regex(strings.ReplaceAll(regexp.QuoteMeta(origin), `\*`, `.*`))
	}
	return exact(origin)
}

func joined[T ~string](list []T) string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		out = append(out, string(v))
	}
	return strings.Join(out, ",")
}
