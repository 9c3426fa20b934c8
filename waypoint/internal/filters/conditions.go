package filters

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// permission compiles what a rule allows or denies.
func permission(p *rbacconfig.Permission) (condition, error) {
	switch r := p.GetRule().(type) {
	case *rbacconfig.Permission_Any:
		return constant(r.Any), nil
	case *rbacconfig.Permission_AndRules:
		return list(r.AndRules.GetRules(), permission, allOf)
	case *rbacconfig.Permission_OrRules:
		return list(r.OrRules.GetRules(), permission, anyOf)
	case *rbacconfig.Permission_NotRule:
		c, err := permission(r.NotRule)
		return negate(c, err)
	case *rbacconfig.Permission_Header:
		return header(r.Header)
	case *rbacconfig.Permission_UrlPath:
		return path(r.UrlPath)
	case *rbacconfig.Permission_UriTemplate:
		return template(r.UriTemplate)
	case *rbacconfig.Permission_DestinationIp:
		return cidr(r.DestinationIp, func(q *match.Request) netip.Addr { return q.Destination.Addr() })
	case *rbacconfig.Permission_DestinationPort:
		if r.DestinationPort > 65535 {
			return nil, fmt.Errorf("destination_port %d is no port", r.DestinationPort)
		}
		return func(q *match.Request) bool { return uint32(q.Port) == r.DestinationPort }, nil
	case *rbacconfig.Permission_DestinationPortRange:
		lo, hi := r.DestinationPortRange.GetStart(), r.DestinationPortRange.GetEnd()
		return func(q *match.Request) bool { return int32(q.Port) >= lo && int32(q.Port) < hi }, nil
	case *rbacconfig.Permission_RequestedServerName:
		s, err := match.CompileString(r.RequestedServerName)
		return func(q *match.Request) bool { return s.Match(q.ServerName) }, err
	case *rbacconfig.Permission_Metadata:
		return metadata(r.Metadata) //nolint:staticcheck // control planes may still send the old form
	case *rbacconfig.Permission_SourcedMetadata:
		return sourced(r.SourcedMetadata)
	}
	return nil, fmt.Errorf("permission %T: %w", p.GetRule(), strict.ErrUnsupported)
}

// principal compiles who is allowed or denied.
func principal(p *rbacconfig.Principal) (condition, error) {
	switch i := p.GetIdentifier().(type) {
	case *rbacconfig.Principal_Any:
		return constant(i.Any), nil
	case *rbacconfig.Principal_AndIds:
		return list(i.AndIds.GetIds(), principal, allOf)
	case *rbacconfig.Principal_OrIds:
		return list(i.OrIds.GetIds(), principal, anyOf)
	case *rbacconfig.Principal_NotId:
		c, err := principal(i.NotId)
		return negate(c, err)
	case *rbacconfig.Principal_Authenticated_:
		return authenticated(i.Authenticated)
	case *rbacconfig.Principal_FilterState:
		return filterState(i.FilterState)
	case *rbacconfig.Principal_SourceIp:
		return cidr(i.SourceIp, func(q *match.Request) netip.Addr { return q.Source.Addr() }) //nolint:staticcheck // control planes may still send the old form
	case *rbacconfig.Principal_DirectRemoteIp:
		return cidr(i.DirectRemoteIp, sourceIP)
	case *rbacconfig.Principal_RemoteIp:
		// No hop in front of a waypoint is trusted to name another address in X-Forwarded-For, so the remote address is the peer's; at
		// the border it is what trusted hops say.
		return cidr(i.RemoteIp, (*match.Request).Client)
	case *rbacconfig.Principal_Header:
		return header(i.Header)
	case *rbacconfig.Principal_UrlPath:
		return path(i.UrlPath)
	case *rbacconfig.Principal_Metadata:
		return metadata(i.Metadata) //nolint:staticcheck // control planes may still send the old form
	case *rbacconfig.Principal_SourcedMetadata:
		return sourced(i.SourcedMetadata)
	}
	return nil, fmt.Errorf("principal %T: %w", p.GetIdentifier(), strict.ErrUnsupported)
}

func sourceIP(q *match.Request) netip.Addr { return q.Packets().Addr() }

func negate(c condition, err error) (condition, error) {
	if err != nil {
		return nil, err
	}
	return not(c), nil
}

func header(p *routev3.HeaderMatcher) (condition, error) {
	h, err := match.CompileHeader(p)
	if err != nil {
		return nil, err
	}
	return h.Match, nil
}

func path(p *matcherv3.PathMatcher) (condition, error) {
	s, err := match.CompileString(p.GetPath())
	if err != nil {
		return nil, fmt.Errorf("url_path: %w", err)
	}
	return func(q *match.Request) bool { return s.Match(q.Path) }, nil
}

// authenticated is true for a client that proved an identity on the HBONE connection, and whose name fits if one is asked for.
func authenticated(p *rbacconfig.Principal_Authenticated) (condition, error) {
	if p.GetPrincipalName() == nil {
		return func(q *match.Request) bool { return q.Principal != "" }, nil
	}
	s, err := match.CompileString(p.GetPrincipalName())
	if err != nil {
		return nil, err
	}
	return func(q *match.Request) bool { return q.Principal != "" && s.Match(q.Principal) }, nil
}

func filterState(p *matcherv3.FilterStateMatcher) (condition, error) {
	if err := strict.Only(p, "key", "string_match"); err != nil {
		return nil, err
	}
	if !match.KnownState(p.GetKey()) {
		return nil, fmt.Errorf("filter state %q: %w", p.GetKey(), strict.ErrUnsupported)
	}
	s, err := match.CompileString(p.GetStringMatch())
	if err != nil {
		return nil, fmt.Errorf("filter state %q: %w", p.GetKey(), err)
	}
	key := p.GetKey()
	return func(q *match.Request) bool {
		v, ok := q.State(key)
		return ok && s.Match(v)
	}, nil
}

func cidr(p *corev3.CidrRange, of func(*match.Request) netip.Addr) (condition, error) {
	a, err := netip.ParseAddr(p.GetAddressPrefix())
	if err != nil {
		return nil, fmt.Errorf("CIDR range %q: %w", p.GetAddressPrefix(), err)
	}
	a = a.Unmap()
	n, err := a.Prefix(int(p.GetPrefixLen().GetValue()))
	if err != nil {
		return nil, fmt.Errorf("CIDR range %s/%d: %w", a, p.GetPrefixLen().GetValue(), err)
	}
	return func(q *match.Request) bool {
		ip := of(q)
		return ip.IsValid() && n.Contains(ip.Unmap())
	}, nil
}

func template(p *corev3.TypedExtensionConfig) (condition, error) {
	m := &uritemplatev3.UriTemplateMatchConfig{}
	if err := strict.Unpack(p.GetTypedConfig(), m, "path_template"); err != nil {
		return nil, err
	}
	re, err := compileTemplate(m.GetPathTemplate())
	if err != nil {
		return nil, err
	}
	return func(q *match.Request) bool { return re.MatchString(q.Path) }, nil
}

// compileTemplate turns Envoy's path template into an expression: "*" is one segment, "**" any number of them and only at the last
// operator's place, "{name}" and "{name=glob}" are the same with a name that plays no part here.
func compileTemplate(t string) (*regexp.Regexp, error) {
	// Any character may stand in a segment: one that a template does not know would be a way around a refusal.
	const segment, many = `[^/]+`, `(?s:.*)`
	if !strings.HasPrefix(t, "/") {
		return nil, fmt.Errorf("path template %q does not begin with a slash", t)
	}
	var b strings.Builder
	ended := false
	for rest := t; rest != ""; {
		op := ""
		switch {
		case strings.HasPrefix(rest, "**"):
			op, rest = "**", rest[2:]
		case rest[0] == '*':
			op, rest = "*", rest[1:]
		case rest[0] == '{':
			inner, after, ok := strings.Cut(rest[1:], "}")
			if !ok {
				return nil, fmt.Errorf("path template %q has an open brace", t)
			}
			_, op, ok = strings.Cut(inner, "=")
			if !ok {
				op = "*"
			}
			rest = after
		case rest[0] == '}':
			return nil, fmt.Errorf("path template %q has a closing brace without an open one", t)
		default:
			i := strings.IndexAny(rest, "*{}")
			if i < 0 {
				i = len(rest)
			}
			b.WriteString(regexp.QuoteMeta(rest[:i]))
			rest = rest[i:]
			continue
		}
		switch {
		case ended:
			return nil, fmt.Errorf("path template %q has an operator after **", t)
		case op == "*":
			b.WriteString(segment)
		case op == "**":
			b.WriteString(many)
			ended = true
		default:
			return nil, fmt.Errorf("path template %q: variable pattern %q: %w", t, op, strict.ErrUnsupported)
		}
	}
	return match.Regex(b.String())
}
