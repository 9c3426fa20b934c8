package waypoint

import (
	"fmt"
	"regexp"
	"strconv"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	networkingapi "istio.io/api/networking/v1alpha3"
)

func quoted(v string) string { return strconv.Quote(v) }

// maxRegex bounds a user's expression.
const maxRegex = 1024

// checkRegex refuses what a reader would refuse together with the whole route configuration.
func checkRegex(field, expr string) error {
	if len(expr) > maxRegex {
		return fmt.Errorf("%s: the expression has %d bytes; shorten it to %d", field, len(expr), maxRegex)
	}
	if _, err := regexp.Compile(expr); err != nil {
		return fmt.Errorf("%s: %q is not an RE2 expression: %w", field, expr, err)
	}
	return nil
}

// istioString translates a StringMatch; nil means that the value only has to be there.
func istioString(field string, m *networkingapi.StringMatch) (*matcherv3.StringMatcher, error) {
	switch v := m.GetMatchType().(type) {
	case *networkingapi.StringMatch_Exact:
		if v.Exact == "" {
			return nil, nil
		}
		return exact(v.Exact), nil
	case *networkingapi.StringMatch_Prefix:
		if v.Prefix == "" {
			return nil, nil
		}
		return prefixed(v.Prefix), nil
	case *networkingapi.StringMatch_Regex:
		if v.Regex == "*" || v.Regex == "" {
			return nil, nil
		}
		return regex(v.Regex), checkRegex(field, v.Regex)
	}
	return nil, nil
}

func headerMatch(name string, m *matcherv3.StringMatcher, inverted bool) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: name, InvertMatch: inverted}
	if m == nil {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		return h
	}
	h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: m}
	// "Without x: 1" holds for a request that has no x at all.
	h.TreatMissingHeaderAsEmpty = inverted
	return h
}

func queryMatch(name string, m *matcherv3.StringMatcher) *routev3.QueryParameterMatcher {
	if m == nil {
		return &routev3.QueryParameterMatcher{
			Name:                         name,
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true},
		}
	}
	return &routev3.QueryParameterMatcher{
		Name:                         name,
		QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: m},
	}
}

func everything() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// catchesAll says that no request passes the match, so that routes behind it are dead.
func catchesAll(m *routev3.RouteMatch) bool {
	if len(m.GetHeaders()) > 0 || len(m.GetQueryParameters()) > 0 || len(m.GetDynamicMetadata()) > 0 {
		return false
	}
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		return p.Prefix == "/" || p.Prefix == ""
	case *routev3.RouteMatch_SafeRegex:
		return p.SafeRegex.GetRegex() == ".*"
	}
	return false
}
