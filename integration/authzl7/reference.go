package authzl7

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// Request is what a policy may look at.
type Request struct {
	TCP       bool              `json:"tcp,omitempty"`
	Principal string            `json:"principal,omitempty"` // "cluster.local/ns/a/sa/b"; empty = nobody
	Source    netip.AddrPort    `json:"source"`
	To        netip.AddrPort    `json:"to"`
	Host      string            `json:"host,omitempty"`
	Method    string            `json:"method,omitempty"`
	Path      string            `json:"path,omitempty"`
	Header    map[string]string `json:"header,omitempty"` // names in canonical form
}

// Where the judged service is.
const (
	RootNamespace = "istio-system"
	Namespace     = "shop"
	Gateway       = "waypoint"
	Service       = "web"
)

// Allows is what the policies say of a request to the service.
func Allows(policies []*securityv1.AuthorizationPolicy, q Request) bool {
	var deny, allow []*securityv1.AuthorizationPolicy
	for _, p := range policies {
		if !applies(p) || p.Annotations["istio.io/dry-run"] == "true" {
			continue
		}
		switch p.Spec.GetAction() {
		case securityapi.AuthorizationPolicy_ALLOW:
			allow = append(allow, p)
		case securityapi.AuthorizationPolicy_DENY, securityapi.AuthorizationPolicy_CUSTOM:
			deny = append(deny, p) // no provider is known in this mesh, so what a CUSTOM policy matches is refused
		default: // AUDIT refuses nothing
		}
	}
	switch {
	case slices.ContainsFunc(deny, func(p *securityv1.AuthorizationPolicy) bool { return matches(p, q) }):
		return false
	case len(allow) == 0:
		return true
	}
	return slices.ContainsFunc(allow, func(p *securityv1.AuthorizationPolicy) bool { return matches(p, q) })
}

// applies says whether a policy means the service's chains at its waypoint.
func applies(p *securityv1.AuthorizationPolicy) bool {
	for _, r := range p.Spec.GetTargetRefs() {
		switch r.GetGroup() + "/" + r.GetKind() {
		case "gateway.networking.k8s.io/Gateway":
			if p.Namespace == Namespace && r.GetName() == Gateway {
				return true
			}
		case "gateway.networking.k8s.io/GatewayClass":
			if p.Namespace == RootNamespace && r.GetName() == "istio-waypoint" {
				return true
			}
		case "/Service", "core/Service":
			if p.Namespace == Namespace && r.GetName() == Service {
				return true
			}
		}
	}
	return false
}

func matches(p *securityv1.AuthorizationPolicy, q Request) bool {
	for _, r := range p.Spec.GetRules() {
		j := judgement{q: q, namespace: p.Namespace, allow: p.Spec.GetAction() == securityapi.AuthorizationPolicy_ALLOW}
		if j.rule(r) && !j.unknowable {
			return true
		}
	}
	return false
}

// judgement is of one rule. A rule that lets through and looks at what bytes do not have is unknowable for an opaque connection; in a rule
// that refuses, such an attribute is ignored.
type judgement struct {
	q          Request
	namespace  string
	allow      bool
	unknowable bool
}

func (j *judgement) rule(r *securityapi.Rule) bool {
	from, to, when := len(r.GetFrom()) == 0, len(r.GetTo()) == 0, true
	for _, f := range r.GetFrom() {
		from = j.source(f.GetSource()) || from
	}
	for _, t := range r.GetTo() {
		to = j.operation(t.GetOperation()) || to
	}
	for _, w := range r.GetWhen() {
		when = j.when(w) && when
	}
	return from && to && when
}

// holds: any of the values if there are some, none of the others.
func holds(values, not []string, match func(string) bool) bool {
	return (len(values) == 0 || slices.ContainsFunc(values, match)) && !slices.ContainsFunc(not, match)
}

// onRequest is holds for an attribute that only requests have.
func (j *judgement) onRequest(values, not []string, match func(string) bool) bool {
	if j.q.TCP && len(values)+len(not) > 0 {
		j.unknowable = j.unknowable || j.allow
		return true
	}
	return holds(values, not, match)
}

func (j *judgement) source(s *securityapi.Source) bool {
	all := []bool{
		holds(s.GetPrincipals(), s.GetNotPrincipals(), j.principal),
		holds(s.GetNamespaces(), s.GetNotNamespaces(), j.ofNamespace),
		holds(s.GetServiceAccounts(), s.GetNotServiceAccounts(), j.account),
		holds(s.GetTrustDomains(), s.GetNotTrustDomains(), j.trustDomain),
		holds(s.GetIpBlocks(), s.GetNotIpBlocks(), j.fromIP),
		holds(s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks(), j.fromIP),
	}
	return !slices.Contains(all, false)
}

func (j *judgement) operation(o *securityapi.Operation) bool {
	all := []bool{
		j.onRequest(o.GetHosts(), nil, func(v string) bool { return j.host(v, !j.allow) }),
		j.onRequest(nil, o.GetNotHosts(), func(v string) bool { return j.host(v, j.allow) }),
		holds(o.GetPorts(), o.GetNotPorts(), j.port),
		j.onRequest(o.GetMethods(), o.GetNotMethods(), func(v string) bool { return text(v, j.q.Method) }),
		j.onRequest(o.GetPaths(), o.GetNotPaths(), j.path),
	}
	return !slices.Contains(all, false)
}

func (j *judgement) when(c *securityapi.Condition) bool {
	values, not := c.GetValues(), c.GetNotValues()
	if name, ok := strings.CutPrefix(c.GetKey(), "request.headers["); ok {
		name = strings.TrimSuffix(name, "]")
		return j.onRequest(values, not, func(v string) bool { return j.header(name, v) })
	}
	match := map[string]func(string) bool{
		"source.ip": j.fromIP, "remote.ip": j.fromIP, "source.namespace": j.ofNamespace, "source.principal": j.principal,
		"source.serviceAccount": j.account, "source.trustDomain": j.trustDomain, "destination.ip": j.toIP, "destination.port": j.port,
	}[c.GetKey()]
	return holds(values, not, match)
}

// text reads "x", "x*", "*x" and "*"; a star elsewhere is a star.
func text(pattern, value string) bool {
	switch {
	case pattern == "*":
		return value != ""
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(value, pattern[1:])
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(value, pattern[:len(pattern)-1])
	}
	return value == pattern
}

func (j *judgement) principal(v string) bool { return j.q.Principal != "" && text(v, j.q.Principal) }

func (j *judgement) ofNamespace(v string) bool {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, ".*")
	return j.q.Principal != "" && regexp.MustCompile(`^(?:.*/ns/`+pattern+`/.*)$`).MatchString("spiffe://"+j.q.Principal)
}

func (j *judgement) account(v string) bool {
	namespace, account, both := strings.Cut(v, "/")
	if !both {
		namespace, account = j.namespace, v
	}
	part := strings.Split(j.q.Principal, "/")
	return len(part) == 5 && part[2] == namespace && part[4] == account
}

func (j *judgement) trustDomain(v string) bool {
	domain, _, ok := strings.Cut(j.q.Principal, "/")
	return ok && text(v, domain)
}

func within(block string, ip netip.Addr) bool {
	if a, err := netip.ParseAddr(block); err == nil {
		return a == ip
	}
	return netip.MustParsePrefix(block).Contains(ip)
}

func (j *judgement) fromIP(v string) bool { return within(v, j.q.Source.Addr()) }
func (j *judgement) toIP(v string) bool   { return within(v, j.q.To.Addr()) }

func (j *judgement) port(v string) bool { return v == strconv.Itoa(int(j.q.To.Port())) }

func (j *judgement) header(name, v string) bool {
	value, there := j.q.Header[name]
	if v == "*" {
		return there
	}
	return there && text(v, value)
}

func (j *judgement) host(v string, refuses bool) bool {
	v, host := strings.ToLower(v), strings.ToLower(j.q.Host)
	if text(v, host) {
		return true
	}
	if !refuses || strings.Contains(v, ":") {
		return false
	}
	name, _, _ := strings.Cut(host, ":")
	name = strings.TrimRight(name, ".")
	if strings.HasSuffix(v, "*") && !strings.HasPrefix(v, "*") {
		return false
	}
	return text(v, name)
}

func (j *judgement) path(v string) bool {
	if strings.ContainsAny(v, "{}") {
		return template(v, j.q.Path)
	}
	return text(v, j.q.Path)
}

// template matches "{*}", one segment, and "{**}", anything; by trying every length.
func template(pattern, path string) bool {
	literal, rest, more := strings.Cut(pattern, "{")
	if !strings.HasPrefix(path, literal) {
		return false
	}
	path = path[len(literal):]
	if !more {
		return path == ""
	}
	stars, rest, _ := strings.Cut(rest, "}")
	for n := range len(path) + 1 {
		taken := path[:n]
		if stars == "*" && (taken == "" || strings.Contains(taken, "/")) {
			continue
		}
		if template(rest, path[n:]) {
			return true
		}
	}
	return false
}
