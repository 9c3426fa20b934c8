package table

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// CompileRules compiles a route configuration.
func CompileRules(p *routev3.RouteConfiguration) (*Rules, error) {
	fail := func(err error) (*Rules, error) { return nil, fmt.Errorf("routes %q: %w", p.GetName(), err) }
	if err := strict.Only(p, "name", "virtual_hosts", "response_headers_to_add", "response_headers_to_remove",
		"request_headers_to_add", "request_headers_to_remove", "validate_clusters", "max_direct_response_body_size_bytes",
		"typed_per_filter_config", "metadata", "ignore_port_in_host_matching"); err != nil {
		return fail(err)
	}
	r := &Rules{Name: p.GetName(), ignorePort: p.GetIgnorePortInHostMatching()}
	var err error
	if r.Request, err = compileMutations(p.GetRequestHeadersToAdd(), p.GetRequestHeadersToRemove()); err != nil {
		return fail(err)
	}
	if r.Response, err = compileMutations(p.GetResponseHeadersToAdd(), p.GetResponseHeadersToRemove()); err != nil {
		return fail(err)
	}
	if r.own, err = filters.CompileOverrides(p.GetTypedPerFilterConfig()); err != nil {
		return fail(err)
	}
	r.own.Place(r.Name)
	for _, v := range p.GetVirtualHosts() {
		h, err := r.compileHost(v)
		if err != nil {
			return fail(fmt.Errorf("virtual host %q: %w", v.GetName(), err))
		}
		r.hosts = append(r.hosts, h)
	}
	return r, nil
}

func (r *Rules) compileHost(p *routev3.VirtualHost) (host, error) {
	h := host{name: p.GetName(), attempts: p.GetIncludeRequestAttemptCount()}
	if err := strict.Only(p, "name", "domains", "routes", "request_headers_to_add", "request_headers_to_remove",
		"response_headers_to_add", "response_headers_to_remove", "typed_per_filter_config", "include_request_attempt_count",
		"retry_policy", "metadata", "virtual_clusters", "rate_limits"); err != nil {
		return h, err
	}
	for _, d := range p.GetDomains() {
		h.domains = append(h.domains, strings.ToLower(d))
	}
	if len(h.domains) == 0 {
		return h, fmt.Errorf("no domains")
	}
	var err error
	if h.request, err = compileMutations(p.GetRequestHeadersToAdd(), p.GetRequestHeadersToRemove()); err != nil {
		return h, err
	}
	if h.response, err = compileMutations(p.GetResponseHeadersToAdd(), p.GetResponseHeadersToRemove()); err != nil {
		return h, err
	}
	if h.own, err = filters.CompileOverrides(p.GetTypedPerFilterConfig()); err != nil {
		return h, err
	}
	retry, err := compileRetry(p.GetRetryPolicy())
	if err != nil {
		return h, fmt.Errorf("retry_policy: %w", err)
	}
	limits, err := filters.CompileLimits(p.GetRateLimits())
	if err != nil {
		return h, err
	}
	h.own.Place(r.Name + "|" + h.name)
	for i, rp := range p.GetRoutes() {
		rt, err := compileRoute(rp, retry)
		if err != nil {
			return h, fmt.Errorf("route %d %q: %w", i, rp.GetName(), err)
		}
		rt.Request = append(rt.Request, h.request, r.Request)
		rt.Response = append(rt.Response, h.response, r.Response)
		rt.Overrides = append([]filters.Overrides{r.own, h.own}, rt.Overrides...)
		rt.Attempts = h.attempts
		rt.Limits.Host = limits
		rt.placeLimits(fmt.Sprintf("%s|%s|%d", r.Name, h.name, i))
		h.routes = append(h.routes, rt)
	}
	return h, nil
}

// placeLimits names the buckets of what the route and its clusters bring along.
func (rt *Route) placeLimits(where string) {
	rt.Overrides[len(rt.Overrides)-1].Place(where)
	if f, ok := rt.Action.(*Forward); ok {
		for i := range f.Clusters {
			f.Clusters[i].Overrides.Place(fmt.Sprintf("%s|%d", where, i))
		}
	}
}

func compileRoute(p *routev3.Route, inherited *Retry) (*Route, error) {
	if err := strict.Only(p, "name", "match", "route", "redirect", "direct_response", "metadata", "decorator",
		"typed_per_filter_config", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add",
		"response_headers_to_remove", "stat_prefix"); err != nil {
		return nil, err
	}
	rt := &Route{Name: p.GetName(), Decorator: p.GetDecorator().GetOperation(), Metadata: p.GetMetadata().GetFilterMetadata()}
	var err error
	if rt.when, err = compileCondition(p.GetMatch()); err != nil {
		return nil, fmt.Errorf("match: %w", err)
	}
	req, err := compileMutations(p.GetRequestHeadersToAdd(), p.GetRequestHeadersToRemove())
	if err != nil {
		return nil, err
	}
	resp, err := compileMutations(p.GetResponseHeadersToAdd(), p.GetResponseHeadersToRemove())
	if err != nil {
		return nil, err
	}
	rt.Request, rt.Response = []Mutations{req}, []Mutations{resp}
	own, err := filters.CompileOverrides(p.GetTypedPerFilterConfig())
	if err != nil {
		return nil, err
	}
	rt.Overrides = []filters.Overrides{own}
	switch a := p.GetAction().(type) {
	case *routev3.Route_Route:
		if rt.Limits.Route, err = filters.CompileLimits(a.Route.GetRateLimits()); err != nil {
			return nil, err
		}
		rt.Limits.IncludeHost = a.Route.GetIncludeVhRateLimits().GetValue() //nolint:staticcheck // control planes may still send the older field
		rt.Action, err = compileForward(a.Route, inherited)
	case *routev3.Route_Redirect:
		rt.Action, err = compileRedirect(a.Redirect)
	case *routev3.Route_DirectResponse:
		rt.Action, err = compileDirect(a.DirectResponse)
	default:
		err = fmt.Errorf("action %T: %w", a, strict.ErrUnsupported)
	}
	return rt, err
}

func compileCondition(p *routev3.RouteMatch) (condition, error) {
	c := condition{share: match.Always}
	if p == nil {
		return c, fmt.Errorf("is missing")
	}
	if err := strict.Only(p, "prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive", "runtime_fraction",
		"headers", "query_parameters", "grpc", "dynamic_metadata"); err != nil {
		return c, err
	}
	c.fold = p.GetCaseSensitive() != nil && !p.GetCaseSensitive().GetValue()
	switch s := p.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		c.kind, c.path = pathPrefix, s.Prefix
	case *routev3.RouteMatch_Path:
		c.kind, c.path = pathExact, s.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		c.kind, c.path = pathSegments, s.PathSeparatedPrefix
		if strings.ContainsAny(c.path, "?#") || strings.HasSuffix(c.path, "/") || !strings.HasPrefix(c.path, "/") {
			return c, fmt.Errorf("path_separated_prefix %q has to begin and must not end with a slash", c.path)
		}
	case *routev3.RouteMatch_SafeRegex:
		re, err := compilePattern(s.SafeRegex)
		if err != nil {
			return c, err
		}
		c.kind, c.re = pathRegex, re
	default:
		return c, fmt.Errorf("path specifier %T: %w", s, strict.ErrUnsupported)
	}
	if c.fold {
		c.path = strings.ToLower(c.path)
	}
	var err error
	if c.headers, err = match.CompileHeaders(p.GetHeaders()); err != nil {
		return c, err
	}
	for _, qp := range p.GetQueryParameters() {
		m, err := match.CompileQuery(qp)
		if err != nil {
			return c, err
		}
		c.query = append(c.query, m)
	}
	for _, m := range p.GetDynamicMetadata() {
		is, err := filters.CompileMetadata(m)
		if err != nil {
			return c, fmt.Errorf("dynamic_metadata: %w", err)
		}
		c.found = append(c.found, is)
	}
	c.grpc = p.GetGrpc() != nil
	if p.GetRuntimeFraction() != nil {
		c.share, err = match.CompileRuntime(p.GetRuntimeFraction())
	}
	return c, err
}

func compilePattern(p *matcherv3.RegexMatcher) (*regexp.Regexp, error) {
	if err := strict.Only(p, "google_re2", "regex"); err != nil {
		return nil, err
	}
	return match.Regex(p.GetRegex())
}

// compileSubstitution compiles a regex that may match anywhere, with a replacement in RE2's syntax (\1).
func compileSubstitution(p *matcherv3.RegexMatchAndSubstitute) (*regexp.Regexp, string, error) {
	if err := strict.Only(p.GetPattern(), "google_re2", "regex"); err != nil {
		return nil, "", err
	}
	re, err := regexp.Compile(p.GetPattern().GetRegex())
	if err != nil {
		return nil, "", fmt.Errorf("regex %q: %w", p.GetPattern().GetRegex(), err)
	}
	var b strings.Builder
	s := p.GetSubstitution()
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '$':
			b.WriteString("$$")
		case s[i] == '\\' && i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9':
			if int(s[i+1]-'0') > re.NumSubexp() {
				return nil, "", fmt.Errorf("substitution %q refers to group %c, which the regex does not have", s, s[i+1])
			}
			b.WriteString("${" + s[i+1:i+2] + "}")
			i++
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '\\':
			b.WriteByte('\\')
			i++
		case s[i] == '\\':
			return nil, "", fmt.Errorf("substitution %q has a lone backslash", s)
		default:
			b.WriteByte(s[i])
		}
	}
	return re, b.String(), nil
}

func compileDirect(p *routev3.DirectResponseAction) (Action, error) {
	if err := strict.Only(p, "status", "body"); err != nil {
		return nil, err
	}
	if p.GetStatus() < 200 || p.GetStatus() > 599 {
		return nil, fmt.Errorf("direct_response.status %d is not in 200..599", p.GetStatus())
	}
	d := &Direct{Status: int(p.GetStatus())}
	switch b := p.GetBody().GetSpecifier().(type) {
	case nil:
	case *corev3.DataSource_InlineString:
		d.Body = b.InlineString
	case *corev3.DataSource_InlineBytes:
		d.Body = string(b.InlineBytes)
	default:
		return nil, fmt.Errorf("direct_response.body %T: %w", b, strict.ErrUnsupported)
	}
	return d, nil
}

func compileRedirect(p *routev3.RedirectAction) (Action, error) {
	if err := strict.Only(p, "https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect",
		"prefix_rewrite", "regex_rewrite", "response_code", "strip_query"); err != nil {
		return nil, err
	}
	d := &Redirect{HTTPS: p.GetHttpsRedirect(), Scheme: p.GetSchemeRedirect(), Host: p.GetHostRedirect(), Port: p.GetPortRedirect(), StripQuery: p.GetStripQuery()}
	var err error
	switch s := p.GetPathRewriteSpecifier().(type) {
	case *routev3.RedirectAction_PathRedirect:
		d.Path = s.PathRedirect
	case *routev3.RedirectAction_PrefixRewrite:
		d.Prefix, d.HasPrefix = s.PrefixRewrite, true
	case *routev3.RedirectAction_RegexRewrite:
		d.Regex, d.Substitute, err = compileSubstitution(s.RegexRewrite)
	}
	switch p.GetResponseCode() {
	case routev3.RedirectAction_MOVED_PERMANENTLY:
		d.Status = http.StatusMovedPermanently
	case routev3.RedirectAction_FOUND:
		d.Status = http.StatusFound
	case routev3.RedirectAction_SEE_OTHER:
		d.Status = http.StatusSeeOther
	case routev3.RedirectAction_TEMPORARY_REDIRECT:
		d.Status = http.StatusTemporaryRedirect
	case routev3.RedirectAction_PERMANENT_REDIRECT:
		d.Status = http.StatusPermanentRedirect
	default:
		return nil, fmt.Errorf("redirect.response_code %v: %w", p.GetResponseCode(), strict.ErrUnsupported)
	}
	return d, err
}

func compileMutations(add []*corev3.HeaderValueOption, remove []string) (Mutations, error) {
	var m Mutations
	for _, n := range remove {
		if strings.HasPrefix(n, ":") || strings.EqualFold(n, "host") {
			return m, fmt.Errorf("header %q cannot be removed", n)
		}
		m.Remove = append(m.Remove, http.CanonicalHeaderKey(n))
	}
	for _, o := range add {
		p, err := compilePut(o)
		if err != nil {
			return m, fmt.Errorf("header %q: %w", o.GetHeader().GetKey(), err)
		}
		m.Put = append(m.Put, p)
	}
	return m, nil
}

func compilePut(o *corev3.HeaderValueOption) (Put, error) {
	if err := strict.Only(o, "header", "append", "append_action", "keep_empty_value"); err != nil {
		return Put{}, err
	}
	if err := strict.Only(o.GetHeader(), "key", "value", "raw_value"); err != nil {
		return Put{}, err
	}
	name, value := o.GetHeader().GetKey(), o.GetHeader().GetValue()
	if raw := o.GetHeader().GetRawValue(); len(raw) > 0 {
		value = string(raw)
	}
	p := Put{Name: http.CanonicalHeaderKey(name), KeepEmpty: o.GetKeepEmptyValue()}
	switch {
	case name == "":
		return p, fmt.Errorf("name is empty")
	case strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host"):
		p.Name = ":authority"
	case strings.HasPrefix(name, ":"):
		return p, fmt.Errorf("pseudo header: %w", strict.ErrUnsupported)
	}
	switch o.GetAppendAction() {
	case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		if a := o.GetAppend(); a != nil && !a.GetValue() { //nolint:staticcheck // the older way to say overwrite
			p.Mode = PutOverwrite
		}
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		p.Mode = PutIfAbsent
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		p.Mode = PutOverwrite
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		p.Mode = PutIfPresent
	default:
		return p, fmt.Errorf("append_action %v: %w", o.GetAppendAction(), strict.ErrUnsupported)
	}
	var err error
	p.Value, err = CompileFormat(value)
	return p, err
}

// positive returns the duration when it is set and not zero.
func positive(d interface{ AsDuration() time.Duration }, set bool) time.Duration {
	if !set {
		return 0
	}
	return max(d.AsDuration(), 0)
}
