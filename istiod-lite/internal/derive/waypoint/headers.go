package waypoint

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networkingapi "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// headerChange is what a route or backend does to the headers of one direction.
type headerChange struct {
	add    []*corev3.HeaderValueOption
	remove []string
	host   string // a new :authority; only for requests
}

type headerChanges struct{ request, response headerChange }

func (c *headerChange) set(name, value string, how corev3.HeaderValueOption_HeaderAppendAction) {
	if name == ":authority" || name == "host" {
		c.host = value
		return
	}
	c.add = append(c.add, &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: how,
	})
}

// istioHeaders reads a VirtualService's header operations; values may hold known substitution commands.
func istioHeaders(h *networkingapi.Headers) headerChanges {
	return headerChanges{request: istioChange(h.GetRequest()), response: istioChange(h.GetResponse())}
}

func istioChange(o *networkingapi.Headers_HeaderOperations) headerChange {
	var c headerChange
	for _, name := range slices.Sorted(maps.Keys(o.GetSet())) {
		c.set(strings.ToLower(name), commandsOrLiteral(o.GetSet()[name]), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	}
	for _, name := range slices.Sorted(maps.Keys(o.GetAdd())) {
		c.set(strings.ToLower(name), commandsOrLiteral(o.GetAdd()[name]), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	}
	for _, name := range o.GetRemove() {
		c.remove = append(c.remove, strings.ToLower(name))
	}
	return c
}

// gatewayHeaders reads a header modifier; values are literal. The first entry of a name counts.
func gatewayHeaders(f *gatewayv1.HTTPHeaderFilter) headerChange {
	var c headerChange
	if f == nil {
		return c
	}
	put := func(list []gatewayv1.HTTPHeader, how corev3.HeaderValueOption_HeaderAppendAction) {
		seen := map[string]bool{}
		for _, h := range list {
			name := strings.ToLower(string(h.Name))
			if !seen[name] {
				seen[name] = true
				c.set(name, literal(h.Value), how)
			}
		}
	}
	put(f.Set, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	put(f.Add, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	for _, name := range f.Remove {
		c.remove = append(c.remove, strings.ToLower(name))
	}
	return c
}

// join lets later changes come after earlier ones.
func (c headerChange) join(o headerChange) headerChange {
	out := headerChange{add: slices.Concat(c.add, o.add), remove: slices.Concat(c.remove, o.remove), host: c.host}
	if o.host != "" {
		out.host = o.host
	}
	return out
}

func (c headerChanges) join(o headerChanges) headerChanges {
	return headerChanges{request: c.request.join(o.request), response: c.response.join(o.response)}
}

func (c headerChanges) onRoute(r *routev3.Route) {
	r.RequestHeadersToAdd, r.RequestHeadersToRemove = c.request.add, c.request.remove
	r.ResponseHeadersToAdd, r.ResponseHeadersToRemove = c.response.add, c.response.remove
	if a := r.GetRoute(); a != nil && c.request.host != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: unescape(c.request.host)}
	}
}

func (c headerChanges) onBackend(w *routev3.WeightedCluster_ClusterWeight) {
	w.RequestHeadersToAdd, w.RequestHeadersToRemove = c.request.add, c.request.remove
	w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = c.response.add, c.response.remove
	if c.request.host != "" {
		w.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{
			HostRewriteLiteral: unescape(c.request.host),
		}
	}
}

// literal protects percent signs, which would start a substitution command.
func literal(v string) string  { return strings.ReplaceAll(v, "%", "%%") }
func unescape(v string) string { return strings.ReplaceAll(v, "%%", "%") }

// commandsOrLiteral keeps substitution commands that every reader knows; one unknown command makes Envoy refuse the
// whole route configuration, so a value with one is taken as it stands.
func commandsOrLiteral(v string) string {
	if !strings.Contains(v, "%") {
		return v
	}
	known := regexp.MustCompile(`%%|%(?:DOWNSTREAM_REMOTE_ADDRESS|DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT|` +
		`DOWNSTREAM_LOCAL_ADDRESS|DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT|DOWNSTREAM_LOCAL_PORT|PROTOCOL|` +
		`UPSTREAM_REMOTE_ADDRESS|START_TIME|RESPONSE_FLAGS|HOSTNAME|REQ\([A-Za-z0-9:?_-]+\))%`)
	if strings.Contains(known.ReplaceAllString(v, ""), "%") {
		return literal(v)
	}
	return v
}

// headerProblem says what is wrong with a header name or value, or nothing. One such header would make Envoy refuse
// the whole route configuration.
func headerProblem(name, value string) string {
	if name != ":authority" && (name == "" || strings.ContainsFunc(name, notToken)) {
		return "header name " + quoted(name) + " is not allowed"
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "the value of header " + quoted(name) + " holds a control character"
	}
	return ""
}

// notToken finds what may not stand in a header name (RFC 9110, 5.6.2).
func notToken(r rune) bool {
	letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// problem reports the first header that cannot be changed.
func (c headerChange) problem() string {
	for _, h := range c.add {
		if p := headerProblem(h.GetHeader().GetKey(), h.GetHeader().GetValue()); p != "" {
			return p
		}
	}
	for _, name := range c.remove {
		if p := headerProblem(name, ""); p != "" || name == ":authority" || name == "host" {
			return "header " + quoted(name) + " cannot be removed"
		}
	}
	if c.host != "" {
		return headerProblem("host", c.host)
	}
	return ""
}

func (c headerChanges) problem() string {
	if p := c.request.problem(); p != "" {
		return p
	}
	if c.response.host != "" {
		return "a response has no host header"
	}
	return c.response.problem()
}
