package waypoint

import (
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	celexpr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"

	"github.com/marrowmesh/marrow/api/policy"
)

// Keys of descriptors' entries. A rate limit service sees them.
const (
	entryPolicy   = "policy"
	entryRoute    = "route"
	entryRequest  = "request"
	entrySource   = "source"
	entryIdentity = "identity"
	entryHeader   = "header"
	entryClaim    = "claim"
	entryAddress  = "remote_address"
	entryAbsent   = "absent"
	fitting       = "match"
	noClaim       = "(none)"
)

// rateLimits say what a rule counts. Every condition is an action that takes the descriptor away when it does not hold. A header as
// key gives two: one for requests that have it, and one for all others together, so that leaving it out escapes no limit.
func (d *derivation) rateLimits(r limitRule, global bool) []*routev3.RateLimit {
	base := []*routev3.RateLimit_Action{genericKey(entryPolicy, r.id)}
	if r.route != "" {
		base = append(base, metadataKey(entryRoute, "", routev3.RateLimit_Action_MetaData_ROUTE_ENTRY, routeSpace, r.route))
	}
	if m := r.rule.Match; m != nil {
		if hs := requestMatch(m); len(hs) > 0 {
			base = append(base, headerMatchKey(entryRequest, fitting, hs))
		}
		if c := sourceMatch(m, d.in.Mesh); c != nil {
			base = append(base, expression(entrySource, index(mapping(constant(true), constant(fitting)), c)))
		}
	}
	var keys [][]*routev3.RateLimit_Action
	key := r.rule.Key
	if key == nil {
		key = &policy.RateLimitKey{Type: policy.KeyNone}
	}
	switch key.Type {
	case policy.KeyIdentity:
		if d.in.Edge != nil {
			keys = append(keys, nil) // nobody who comes in has an identity: they share what one would have
			break
		}
		keys = append(keys, []*routev3.RateLimit_Action{expression(entryIdentity, peerPrincipal())})
	case policy.KeySourceIP:
		keys = append(keys, []*routev3.RateLimit_Action{{ActionSpecifier: &routev3.RateLimit_Action_RemoteAddress_{RemoteAddress: &routev3.RateLimit_Action_RemoteAddress{}}}})
	case policy.KeyHeader:
		absent := &routev3.HeaderMatcher{Name: key.Header, InvertMatch: true, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
		keys = append(keys,
			[]*routev3.RateLimit_Action{{ActionSpecifier: &routev3.RateLimit_Action_RequestHeaders_{
				RequestHeaders: &routev3.RateLimit_Action_RequestHeaders{HeaderName: key.Header, DescriptorKey: entryHeader},
			}}},
			[]*routev3.RateLimit_Action{headerMatchKey(entryHeader+"_"+entryAbsent, entryAbsent, []*routev3.HeaderMatcher{absent})})
	case policy.KeyClaim:
		path := append([]string{"payload"}, strings.Split(key.Claim, ".")...)
		keys = append(keys, []*routev3.RateLimit_Action{metadataKey(entryClaim, noClaim, routev3.RateLimit_Action_MetaData_DYNAMIC, jwtFilter, path...)})
	case policy.KeyNone:
		keys = append(keys, nil)
	}
	out := make([]*routev3.RateLimit, 0, len(keys))
	for _, k := range keys {
		l := &routev3.RateLimit{Actions: append(append([]*routev3.RateLimit_Action{}, base...), k...)}
		if global {
			l.Limit = &routev3.RateLimit_Override{OverrideSpecifier: &routev3.RateLimit_Override_DynamicMetadata_{
				DynamicMetadata: &routev3.RateLimit_Override_DynamicMetadata{MetadataKey: metadataPath(quotaSpace, r.id)},
			}}
		}
		out = append(out, l)
	}
	return out
}

// descriptorOf is the configured descriptor that fits what the actions of l give: fixed values, and none for what is told apart.
func descriptorOf(l *routev3.RateLimit) []*commonv3.RateLimitDescriptor_Entry {
	var out []*commonv3.RateLimitDescriptor_Entry
	add := func(key, value string) {
		out = append(out, &commonv3.RateLimitDescriptor_Entry{Key: key, Value: value})
	}
	for _, a := range l.GetActions() {
		switch s := a.GetActionSpecifier().(type) {
		case *routev3.RateLimit_Action_GenericKey_:
			add(s.GenericKey.GetDescriptorKey(), s.GenericKey.GetDescriptorValue())
		case *routev3.RateLimit_Action_HeaderValueMatch_:
			add(s.HeaderValueMatch.GetDescriptorKey(), s.HeaderValueMatch.GetDescriptorValue())
		case *routev3.RateLimit_Action_RequestHeaders_:
			add(entryHeader, "")
		case *routev3.RateLimit_Action_RemoteAddress_:
			add(entryAddress, "")
		case *routev3.RateLimit_Action_Metadata:
			value := ""
			if s.Metadata.GetDescriptorKey() == entryRoute {
				value = "yes"
			}
			add(s.Metadata.GetDescriptorKey(), value)
		case *routev3.RateLimit_Action_Extension:
			if s.Extension.GetName() == expressionName(entrySource) {
				add(entrySource, fitting)
			} else {
				add(entryIdentity, "")
			}
		}
	}
	return out
}

func genericKey(key, value string) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{
		GenericKey: &routev3.RateLimit_Action_GenericKey{DescriptorKey: key, DescriptorValue: value},
	}}
}

func headerMatchKey(key, value string, hs []*routev3.HeaderMatcher) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_HeaderValueMatch_{
		HeaderValueMatch: &routev3.RateLimit_Action_HeaderValueMatch{DescriptorKey: key, DescriptorValue: value, Headers: hs},
	}}
}

func metadataKey(key, otherwise string, source routev3.RateLimit_Action_MetaData_Source, space string, path ...string) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Metadata{Metadata: &routev3.RateLimit_Action_MetaData{
		DescriptorKey: key, DefaultValue: otherwise, Source: source, MetadataKey: metadataPath(space, path...),
	}}}
}

func metadataPath(space string, path ...string) *metadatav3.MetadataKey {
	out := &metadatav3.MetadataKey{Key: space}
	for _, p := range path {
		out.Path = append(out.Path, &metadatav3.MetadataKey_PathSegment{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: p}})
	}
	return out
}

// requestMatch are the conditions on what the client sends.
func requestMatch(m *policy.RateLimitMatch) []*routev3.HeaderMatcher {
	var out []*routev3.HeaderMatcher
	if len(m.Paths) > 0 {
		out = append(out, headerMatch(":path", regex(alternatives(m.Paths, "[^?]*")+`(?:\?.*)?`), false))
	}
	if len(m.Methods) > 0 {
		out = append(out, headerMatch(":method", regex(alternatives(m.Methods, "")), false))
	}
	if len(m.Hosts) > 0 {
		out = append(out, headerMatch(":authority", regex("(?i)"+alternatives(m.Hosts, ".*")+`(?::[0-9]+)?`), false))
	}
	for _, h := range m.Headers {
		if h.Value == nil {
			out = append(out, &routev3.HeaderMatcher{Name: h.Name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}})
			continue
		}
		out = append(out, headerMatch(h.Name, starred(*h.Value), false))
	}
	return out
}

// alternatives is an expression for one of values, in which a star at an end stands for any.
func alternatives(values []string, any string) string {
	parts := make([]string, 0, len(values))
	for _, v := range values {
		parts = append(parts, strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, any))
	}
	return "(?:" + strings.Join(parts, "|") + ")"
}

func starred(v string) *matcherv3.StringMatcher {
	switch {
	case v == "*":
		return regex(".*")
	case strings.HasPrefix(v, "*"):
		return suffixed(v[1:])
	case strings.HasSuffix(v, "*"):
		return prefixed(v[:len(v)-1])
	}
	return exact(v)
}

// sourceMatch is the condition on who asks; nil when there is none. The identity is bytes in CEL, whose beginning is told by its place
// in the order of bytes.
func sourceMatch(m *policy.RateLimitMatch, mesh Mesh) *celexpr.Expr {
	var principals, namespaces *celexpr.Expr
	for _, p := range m.SourcePrincipals {
		one := callExpr("_==_", peerPrincipal(), constantBytes("spiffe://"+p))
		if prefix, star := strings.CutSuffix(p, "*"); star {
			one = identityBegins("spiffe://" + prefix)
		}
		principals = either(principals, one)
	}
	for _, n := range m.SourceNamespaces {
		namespaces = either(namespaces, identityBegins("spiffe://"+mesh.TrustDomain+"/ns/"+n+"/sa/"))
	}
	switch {
	case principals == nil:
		return namespaces
	case namespaces == nil:
		return principals
	}
	return callExpr("_&&_", principals, namespaces)
}

func identityBegins(prefix string) *celexpr.Expr {
	after := []byte(prefix)
	after[len(after)-1]++ // prefixes are ASCII
	return callExpr("_&&_", callExpr("_>=_", peerPrincipal(), constantBytes(prefix)), callExpr("_<_", peerPrincipal(), constantBytes(string(after))))
}

func either(a, b *celexpr.Expr) *celexpr.Expr {
	if a == nil {
		return b
	}
	return callExpr("_||_", a, b)
}

func expressionName(key string) string { return "envoy.rate_limit_descriptors.expr." + key }

func expression(key string, e *celexpr.Expr) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Extension{Extension: &corev3.TypedExtensionConfig{
		Name:        expressionName(key),
		TypedConfig: pack(&exprv3.Descriptor{DescriptorKey: key, ExprSpecifier: &exprv3.Descriptor_Parsed{Parsed: numbered(e)}}),
	}}}
}

// numbered gives every node of e the id that a parsed expression has.
func numbered(e *celexpr.Expr) *celexpr.Expr {
	next := int64(0)
	var visit func(*celexpr.Expr)
	visit = func(e *celexpr.Expr) {
		if e == nil {
			return
		}
		next++
		e.Id = next
		visit(e.GetCallExpr().GetTarget())
		for _, a := range e.GetCallExpr().GetArgs() {
			visit(a)
		}
		for _, s := range e.GetStructExpr().GetEntries() {
			next++
			s.Id = next
			visit(s.GetMapKey())
			visit(s.GetValue())
		}
	}
	visit(e)
	return e
}

// peerPrincipal is the client's identity, an error where there is none.
func peerPrincipal() *celexpr.Expr {
	return index(&celexpr.Expr{ExprKind: &celexpr.Expr_IdentExpr{IdentExpr: &celexpr.Expr_Ident{Name: "filter_state"}}}, constant(PrincipalKey))
}

func callExpr(function string, args ...*celexpr.Expr) *celexpr.Expr {
	return &celexpr.Expr{ExprKind: &celexpr.Expr_CallExpr{CallExpr: &celexpr.Expr_Call{Function: function, Args: args}}}
}

func index(of, key *celexpr.Expr) *celexpr.Expr { return callExpr("_[_]", of, key) }

func mapping(key, value *celexpr.Expr) *celexpr.Expr {
	return &celexpr.Expr{ExprKind: &celexpr.Expr_StructExpr{StructExpr: &celexpr.Expr_CreateStruct{Entries: []*celexpr.Expr_CreateStruct_Entry{{
		KeyKind: &celexpr.Expr_CreateStruct_Entry_MapKey{MapKey: key}, Value: value,
	}}}}}
}

func constant[T bool | string](v T) *celexpr.Expr {
	c := &celexpr.Constant{}
	switch v := any(v).(type) {
	case bool:
		c.ConstantKind = &celexpr.Constant_BoolValue{BoolValue: v}
	case string:
		c.ConstantKind = &celexpr.Constant_StringValue{StringValue: v}
	}
	return &celexpr.Expr{ExprKind: &celexpr.Expr_ConstExpr{ConstExpr: c}}
}

func constantBytes(v string) *celexpr.Expr {
	return &celexpr.Expr{ExprKind: &celexpr.Expr_ConstExpr{ConstExpr: &celexpr.Constant{ConstantKind: &celexpr.Constant_BytesValue{BytesValue: []byte(v)}}}}
}
