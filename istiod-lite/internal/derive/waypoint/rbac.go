package waypoint

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	templatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// translation turns one rule into a policy of RBAC. What cannot be expressed (an attribute of HTTP on a TCP chain, a
// malformed value) never lets more through: an ALLOW rule with it is
// dropped, in a DENY, AUDIT or refused CUSTOM rule the attribute is ignored, so that more is matched.
type translation struct {
	policy   *securityv1.AuthorizationPolicy
	mesh     Mesh
	allow    bool
	custom   bool // a server is asked before tokens are checked
	http     bool
	problems []string
	dropped  bool // an ALLOW rule that cannot be kept
}

// condition is one attribute's values, positive and negative.
type condition struct {
	name        string
	values      []string
	not         []string
	onlyHTTP    bool
	principal   func(v string) (*rbacv3.Principal, error)
	permission  func(v string) (*rbacv3.Permission, error)
	unsupported string
}

func (t *translation) problem(format string, args ...any) {
	t.problems = append(t.problems, fmt.Sprintf(format, args...))
	if t.allow {
		t.dropped = true
	}
}

// rule is nil for an ALLOW rule that cannot be kept.
func (t *translation) rule(r *securityapi.Rule, http bool) *rbacv3.Policy {
	t.http, t.dropped = http, false
	when := t.when(r.GetWhen())
	var sources []*rbacv3.Principal
	for _, f := range r.GetFrom() {
		if proto.Size(f.GetSource()) == 0 {
			t.problem("from: a source must say something")
		}
		sources = append(sources, t.principals(t.source(f.GetSource())))
	}
	var operations []*rbacv3.Permission
	for _, o := range r.GetTo() {
		if proto.Size(o.GetOperation()) == 0 {
			t.problem("to: an operation must say something")
		}
		operations = append(operations, t.permissions(t.operation(o.GetOperation())))
	}
	out := &rbacv3.Policy{
		Permissions: []*rbacv3.Permission{andPermissions(orPermissions(operations), t.permissions(when))},
		Principals:  []*rbacv3.Principal{andPrincipals(orPrincipals(sources), t.principals(when))},
	}
	if t.dropped {
		return nil
	}
	return out
}

// usable filters the conditions that this chain can judge.
func (t *translation) usable(c condition) bool {
	if len(c.values) == 0 && len(c.not) == 0 {
		return false
	}
	if c.unsupported != "" {
		t.problem("%s: %s", c.name, c.unsupported)
		return false
	}
	if t.custom && (c.name == "requestPrincipals" || strings.HasPrefix(c.name, "when.request.auth.")) {
		t.problem("%s: a CUSTOM policy's provider is asked before tokens are checked, so the attribute is ignored and it is asked more often", c.name)
		return false
	}
	if c.onlyHTTP && !t.http {
		if t.allow {
			t.dropped = true
		}
		return false
	}
	return true
}

func (t *translation) principals(conditions []condition) *rbacv3.Principal {
	var all []*rbacv3.Principal
	for _, c := range conditions {
		// What is neither a principal's nor a permission's attribute can be judged by nobody; it is reported here.
		if c.permission != nil || !t.usable(c) || c.principal == nil {
			continue
		}
		positive, okPositive := convert(t, c, c.values, c.principal)
		negative, okNegative := convert(t, c, c.not, c.principal)
		if len(c.values) > 0 && okPositive {
			all = append(all, orPrincipals(positive))
		}
		if len(c.not) > 0 && okNegative {
			all = append(all, notPrincipal(orPrincipals(negative)))
		}
	}
	return andPrincipals(all...)
}

func (t *translation) permissions(conditions []condition) *rbacv3.Permission {
	var all []*rbacv3.Permission
	for _, c := range conditions {
		if c.permission == nil || !t.usable(c) {
			continue
		}
		positive, okPositive := convert(t, c, c.values, c.permission)
		negative, okNegative := convert(t, c, c.not, c.permission)
		if len(c.values) > 0 && okPositive {
			all = append(all, orPermissions(positive))
		}
		if len(c.not) > 0 && okNegative {
			all = append(all, notPermission(orPermissions(negative)))
		}
	}
	return andPermissions(all...)
}

// convert translates values; one that is malformed makes the whole list unusable.
func convert[P any](t *translation, c condition, values []string, one func(string) (*P, error)) ([]*P, bool) {
	var out []*P
	ok := true
	for _, v := range values {
		p, err := one(v)
		if v == "" {
			err = errors.New("an empty value")
		}
		if err != nil {
			t.problem("%s: %v", c.name, err)
			ok = false
			continue
		}
		out = append(out, p)
	}
	return out, ok
}

func (t *translation) source(s *securityapi.Source) []condition {
	return []condition{
		{name: "principals", values: s.GetPrincipals(), not: s.GetNotPrincipals(), principal: t.principalMatch},
		{name: "namespaces", values: s.GetNamespaces(), not: s.GetNotNamespaces(), principal: namespaceMatch},
		{name: "serviceAccounts", values: s.GetServiceAccounts(), not: s.GetNotServiceAccounts(), principal: t.accountMatch},
		{name: "trustDomains", values: s.GetTrustDomains(), not: s.GetNotTrustDomains(), principal: trustDomainMatch},
		{name: "ipBlocks", values: s.GetIpBlocks(), not: s.GetNotIpBlocks(), principal: directIP},
		{name: "remoteIpBlocks", values: s.GetRemoteIpBlocks(), not: s.GetNotRemoteIpBlocks(), principal: remoteIP},
		{
			name: "requestPrincipals", values: s.GetRequestPrincipals(), not: s.GetNotRequestPrincipals(), onlyHTTP: true,
			principal: requestPrincipal,
		},
	}
}

func (t *translation) operation(o *securityapi.Operation) []condition {
	return []condition{
		{name: "hosts", values: o.GetHosts(), onlyHTTP: true, permission: hostMatch(!t.allow)},
		{name: "notHosts", not: o.GetNotHosts(), onlyHTTP: true, permission: hostMatch(t.allow)},
		{name: "ports", values: o.GetPorts(), not: o.GetNotPorts(), permission: portMatch},
		{name: "methods", values: o.GetMethods(), not: o.GetNotMethods(), onlyHTTP: true, permission: methodMatch},
		{name: "paths", values: o.GetPaths(), not: o.GetNotPaths(), onlyHTTP: true, permission: pathMatch},
	}
}

func (t *translation) when(list []*securityapi.Condition) []condition {
	var out []condition
	for _, w := range list {
		c := condition{name: "when." + w.GetKey(), values: w.GetValues(), not: w.GetNotValues()}
		if len(c.values) == 0 && len(c.not) == 0 {
			t.problem("%s: neither values nor notValues", c.name)
			continue
		}
		header, isHeader := strings.CutPrefix(w.GetKey(), "request.headers[")
		switch {
		case isHeader && strings.HasSuffix(header, "]"):
			name := strings.TrimSuffix(header, "]")
			c.onlyHTTP = true
			c.principal = func(v string) (*rbacv3.Principal, error) { return headerPrincipal(name, v) }
		case w.GetKey() == "source.ip":
			c.principal = directIP
		case w.GetKey() == "remote.ip":
			c.principal = remoteIP
		case w.GetKey() == "source.namespace":
			c.principal = namespaceMatch
		case w.GetKey() == "source.principal":
			c.principal = t.principalMatch
		case w.GetKey() == "source.serviceAccount":
			c.principal = t.accountMatch
		case w.GetKey() == "source.trustDomain":
			c.principal = trustDomainMatch
		case w.GetKey() == "destination.ip":
			c.permission = destinationIP
		case w.GetKey() == "destination.port":
			c.permission = portMatch
		case w.GetKey() == "connection.sni":
			c.permission = serverNameMatch
		case strings.HasPrefix(w.GetKey(), "request.auth."):
			tokenKey(&c, strings.TrimPrefix(w.GetKey(), "request.auth."))
		default:
			c.unsupported = "this key is not known"
		}
		out = append(out, c)
	}
	return out
}

// identityMatch compares with the identity that the tunnel's client proved.
func identityMatch(m *matcherv3.StringMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
		Key: PrincipalKey, Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: m},
	}}}
}

// wildcard reads "x", "x*", "*x" and "*".
func wildcard(v string) *matcherv3.StringMatcher {
	switch {
	case v == "*":
		return regex(".+")
	case strings.HasPrefix(v, "*"):
		return suffixed(v[1:])
	case strings.HasSuffix(v, "*"):
		return prefixed(strings.TrimSuffix(v, "*"))
	}
	return exact(v)
}

func (t *translation) principalMatch(v string) (*rbacv3.Principal, error) {
	const scheme = "spiffe://"
	switch {
	case v == "*":
		return identityMatch(regex(".+")), nil
	case strings.HasPrefix(v, "*"):
		return identityMatch(regex(scheme + ".*" + regexp.QuoteMeta(v[1:]))), nil
	case strings.HasSuffix(v, "*"):
		return identityMatch(prefixed(scheme + strings.TrimSuffix(v, "*"))), nil
	}
	rest, local := strings.CutPrefix(v, "cluster.local/")
	if local && t.mesh.TrustDomain != "cluster.local" && strings.Count(rest, "/") == 3 {
		// The default domain's name means this mesh, so that policies can be moved between meshes.
		return orPrincipals([]*rbacv3.Principal{
			identityMatch(exact(scheme + v)), identityMatch(exact(scheme + t.mesh.TrustDomain + "/" + rest)),
		}), nil
	}
	return identityMatch(exact(scheme + v)), nil
}

// anywhere quotes v except for its stars.
func anywhere(v string) string { return strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, `.*`) }

func namespaceMatch(v string) (*rbacv3.Principal, error) {
	return identityMatch(regex(".*/ns/" + anywhere(v) + "/.*")), nil
}

func (t *translation) accountMatch(v string) (*rbacv3.Principal, error) {
	namespace, account, both := strings.Cut(v, "/")
	if !both {
		namespace, account = t.policy.Namespace, v
	}
	if namespace == "" || account == "" || strings.ContainsAny(v, "*") || strings.Contains(account, "/") {
		return nil, fmt.Errorf("%q is not <namespace>/<service account> or <service account>", v)
	}
	return identityMatch(regex("spiffe://.+/ns/" + regexp.QuoteMeta(namespace) + "/(.+/|)sa/" + regexp.QuoteMeta(account) + "(/.+)?")), nil
}

func trustDomainMatch(v string) (*rbacv3.Principal, error) {
	switch {
	case v == "" || strings.Contains(v, "/"):
		return nil, fmt.Errorf("%q is not a trust domain", v)
	case v == "*":
		return identityMatch(prefixed("spiffe://")), nil
	case strings.HasPrefix(v, "*"):
		return identityMatch(regex("spiffe://[^/]*" + regexp.QuoteMeta(v[1:]) + "/.*")), nil
	case strings.HasSuffix(v, "*"):
		return identityMatch(prefixed("spiffe://" + strings.TrimSuffix(v, "*"))), nil
	}
	return identityMatch(prefixed("spiffe://" + v + "/")), nil
}

func cidr(v string) (*corev3.CidrRange, error) {
	prefix, err := netip.ParsePrefix(v)
	if err != nil {
		addr, addrErr := netip.ParseAddr(v)
		if addrErr != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%q is neither an address nor a range such as 10.0.0.0/8", v)
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	return &corev3.CidrRange{AddressPrefix: prefix.Addr().String(), PrefixLen: uintValue(uint32(prefix.Bits()))}, nil
}

func directIP(v string) (*rbacv3.Principal, error) {
	r, err := cidr(v)
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: r}}, err
}

func remoteIP(v string) (*rbacv3.Principal, error) {
	r, err := cidr(v)
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: r}}, err
}

func destinationIP(v string) (*rbacv3.Permission, error) {
	r, err := cidr(v)
	return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: r}}, err
}

func headerValue(name, v string, anyCase bool) *routev3.HeaderMatcher {
	if v == "*" {
		return headerMatch(name, nil, false)
	}
	m := wildcard(v)
	m.IgnoreCase = anyCase
	return headerMatch(name, m, false)
}

func headerPrincipal(name, v string) (*rbacv3.Principal, error) {
	if problem := headerProblem(strings.TrimPrefix(name, ":"), ""); problem != "" {
		return nil, fmt.Errorf("%s", problem)
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: headerValue(strings.ToLower(name), v, false)}}, nil
}

func headerPermission(name, v string, anyCase bool) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: headerValue(name, v, anyCase)}}
}

func methodMatch(v string) (*rbacv3.Permission, error) {
	return headerPermission(":method", v, false), nil
}

func portMatch(v string) (*rbacv3.Permission, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%q is not a port", v)
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(n)}}, nil
}

// serverNameMatch compares with the server that a TLS client asks for. Proxies know it in lower case.
func serverNameMatch(v string) (*rbacv3.Permission, error) {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: wildcard(strings.ToLower(v))}}, nil
}

// pathMatch reads a path with stars at its ends or a template with {*} and {**}.
func pathMatch(v string) (*rbacv3.Permission, error) {
	if !strings.ContainsAny(v, "{}") {
		return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{
			Rule: &matcherv3.PathMatcher_Path{Path: wildcard(v)},
		}}}, nil
	}
	if err := checkTemplate(v); err != nil {
		return nil, err
	}
	template := strings.NewReplacer("{**}", "**", "{*}", "*").Replace(v)
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UriTemplate{UriTemplate: extension(
		"envoy.path.match.uri_template.uri_template_matcher",
		&templatev3.UriTemplateMatchConfig{PathTemplate: template},
	)}}, nil
}

// checkTemplate knows what Envoy accepts; {**} must be the last operator.
func checkTemplate(v string) error {
	if !strings.HasPrefix(v, "/") {
		return fmt.Errorf("path template %q must start with /", v)
	}
	literalSegment := regexp.MustCompile(`^[A-Za-z0-9\-._~%!$&'()+,;:@=]*$`)
	rest := false
	for segment := range strings.SplitSeq(v[1:], "/") {
		switch {
		case segment == "{*}" || segment == "{**}":
			if rest {
				return fmt.Errorf("path template %q: nothing with a star may follow {**}", v)
			}
			rest = segment == "{**}"
		case !literalSegment.MatchString(segment):
			return fmt.Errorf("path template %q: segment %q is neither {*}, {**} nor literal", v, segment)
		}
	}
	return nil
}

func anyPrincipal() *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
}

func notPrincipal(p *rbacv3.Principal) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: p}}
}

// orPrincipals of nothing is anybody: a rule without sources.
func orPrincipals(list []*rbacv3.Principal) *rbacv3.Principal {
	switch len(list) {
	case 0:
		return anyPrincipal()
	case 1:
		return list[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: list}}}
}

func andPrincipals(list ...*rbacv3.Principal) *rbacv3.Principal {
	list = slices.DeleteFunc(list, func(p *rbacv3.Principal) bool { return p.GetAny() })
	switch len(list) {
	case 0:
		return anyPrincipal()
	case 1:
		return list[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: list}}}
}

func anyPermission() *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
}

func notPermission(p *rbacv3.Permission) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: p}}
}

func orPermissions(list []*rbacv3.Permission) *rbacv3.Permission {
	switch len(list) {
	case 0:
		return anyPermission()
	case 1:
		return list[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: list}}}
}

func andPermissions(list ...*rbacv3.Permission) *rbacv3.Permission {
	list = slices.DeleteFunc(list, func(p *rbacv3.Permission) bool { return p.GetAny() })
	switch len(list) {
	case 0:
		return anyPermission()
	case 1:
		return list[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: list}}}
}
