package waypoint

import (
	"fmt"
	"slices"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// claimCondition compares with a claim of the verified token. Without one, only a negated comparison is true.
func claimCondition(m *matcherv3.ValueMatcher, path ...string) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_SourcedMetadata{
		SourcedMetadata: &rbacv3.SourcedMetadata{MetadataMatcher: claimMatcher(m, path...)},
	}}
}

func claimMatcher(m *matcherv3.ValueMatcher, path ...string) *matcherv3.MetadataMatcher {
	out := &matcherv3.MetadataMatcher{Filter: jwtFilter, Value: m}
	for _, name := range append([]string{jwtPayload}, path...) {
		out.Path = append(out.Path, &matcherv3.MetadataMatcher_PathSegment{
			Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: name},
		})
	}
	return out
}

func textMatch(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}}
}

// claimMatch is true for a claim that is such a text, or a list with such a text.
func claimMatch(path ...string) func(v string) (*rbacv3.Principal, error) {
	return func(v string) (*rbacv3.Principal, error) {
		return claimCondition(textOrListed(wildcard(v)), path...), nil
	}
}

func textOrListed(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	one := textMatch(m)
	list := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
		MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: one},
	}}}
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{
		OrMatch: &matcherv3.OrMatcher{ValueMatchers: []*matcherv3.ValueMatcher{one, list}},
	}}
}

// claimHeader begins the names of headers that mean a claim of the verified token: "@request.auth.claims.a.b" or
// "@request.auth.claims[a][b]".
const claimHeader = "@request.auth.claims"

// addClaimMatch makes a route depend on a claim. Who brings no token that counts has no claims.
func addClaimMatch(out *routev3.RouteMatch, claims string, m *networkingapi.StringMatch, without bool) error {
	field := "headers[" + claimHeader + claims + "]"
	var path []string
	if dotted, ok := strings.CutPrefix(claims, "."); ok {
		path = strings.Split(dotted, ".")
	} else {
		var err error
		if path, err = claimPath(claims); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
	}
	if slices.Contains(path, "") {
		return fmt.Errorf("%s: names a claim without a name", field)
	}
	text, err := istioString(field, m)
	if err != nil {
		return err
	}
	value := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
	if text != nil {
		value = textOrListed(text)
	}
	c := claimMatcher(value, path...)
	c.Invert = without
	out.DynamicMetadata = append(out.DynamicMetadata, c)
	return nil
}

// claimsChoose says that some route of the gateway depends on a claim, so that it has to be chosen again once there are any.
func (d *derivation) claimsChoose() bool {
	if d.in.Edge == nil {
		return false
	}
	asks := func(headers map[string]*networkingapi.StringMatch) bool {
		for name := range headers {
			if strings.HasPrefix(name, claimHeader) {
				return true
			}
		}
		return false
	}
	return slices.ContainsFunc(d.in.VirtualServices, func(v *networkingv1.VirtualService) bool {
		return slices.ContainsFunc(v.Spec.GetHttp(), func(r *networkingapi.HTTPRoute) bool {
			return slices.ContainsFunc(r.GetMatch(), func(m *networkingapi.HTTPMatchRequest) bool {
				return asks(m.GetHeaders()) || asks(m.GetWithoutHeaders())
			})
		})
	})
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
