package waypoint

import (
	"fmt"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// claimCondition compares with a claim of the verified token. Without one, only a negated comparison is true.
func claimCondition(m *matcherv3.ValueMatcher, path ...string) *rbacv3.Principal {
	out := &matcherv3.MetadataMatcher{Filter: jwtFilter, Value: m}
	for _, name := range append([]string{jwtPayload}, path...) {
		out.Path = append(out.Path, &matcherv3.MetadataMatcher_PathSegment{
			Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: name},
		})
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_SourcedMetadata{
		SourcedMetadata: &rbacv3.SourcedMetadata{MetadataMatcher: out},
	}}
}

func textMatch(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}}
}

// claimMatch is true for a claim that is such a text, or a list with such a text.
func claimMatch(path ...string) func(v string) (*rbacv3.Principal, error) {
	return func(v string) (*rbacv3.Principal, error) {
		one := textMatch(wildcard(v))
		list := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
			MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: one},
		}}}
		either := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{
			OrMatch: &matcherv3.OrMatcher{ValueMatchers: []*matcherv3.ValueMatcher{one, list}},
		}}
		return claimCondition(either, path...), nil
	}
}

// requestPrincipal reads "<issuer>/<subject>", split at the last slash, with a star at either end.
func requestPrincipal(v string) (*rbacv3.Principal, error) {
	anything := regex(".+")
	issuer, subject, both := strings.CutLast(v, "/")
	iss, sub := exact(issuer), exact(subject)
	switch {
	case v == "*":
		iss, sub = anything, anything
	case strings.HasPrefix(v, "*") && !both:
		iss, sub = anything, suffixed(v[1:])
	case issuer == "*":
		iss = anything
	case strings.HasPrefix(v, "*"):
		iss = suffixed(issuer[1:])
	case strings.HasSuffix(v, "*") && !both:
		iss, sub = prefixed(strings.TrimSuffix(v, "*")), anything
	case subject == "*":
		sub = anything
	case strings.HasSuffix(v, "*"):
		sub = prefixed(strings.TrimSuffix(subject, "*"))
	}
	return andPrincipals(claimCondition(textMatch(iss), "iss"), claimCondition(textMatch(sub), "sub")), nil
}

// claimPath reads "[a][b]…": the names of nested claims.
func claimPath(key string) ([]string, error) {
	var out []string
	for rest := key; rest != ""; {
		name, after, ok := strings.Cut(strings.TrimPrefix(rest, "["), "]")
		if !ok || rest[0] != '[' || strings.Contains(name, "[") {
			// A name may have brackets of its own if it is the only one.
			if strings.HasPrefix(key, "[") && strings.HasSuffix(key, "]") && len(key) > 2 {
				return []string{key[1 : len(key)-1]}, nil
			}
			return nil, fmt.Errorf("%q is not [<claim>] or [<claim>][<claim>]", key)
		}
		if name == "" {
			return nil, fmt.Errorf("%q names a claim without a name", key)
		}
		out, rest = append(out, name), after
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q names no claim", key)
	}
	return out, nil
}

// tokenKey completes a condition on an attribute of the verified token.
func tokenKey(c *condition, key string) {
	c.onlyHTTP = true
	claims, isClaim := strings.CutPrefix(key, "claims")
	switch {
	case key == "principal":
		c.principal = requestPrincipal
	case key == "audiences":
		c.principal = claimMatch("aud")
	case key == "presenter":
		c.principal = claimMatch("azp")
	case isClaim:
		path, err := claimPath(claims)
		if err != nil {
			c.unsupported = err.Error()
			return
		}
		c.principal = claimMatch(path...)
	default:
		c.unsupported = "this key is not known"
	}
}
