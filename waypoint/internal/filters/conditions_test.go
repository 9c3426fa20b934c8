package filters

import (
	"net/http"
	"net/netip"
	"testing"

	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestEdgesOfConditions: where a condition that is a little wider would let somebody in.
func TestEdgesOfConditions(t *testing.T) {
	ports := func(lo, hi int32) []*perm {
		return []*perm{{Rule: &rbacconfig.Permission_DestinationPortRange{DestinationPortRange: &typev3.Int32Range{Start: lo, End: hi}}}}
	}
	named := func(m *matcherv3.StringMatcher) []*prin {
		return []*prin{{Identifier: &rbacconfig.Principal_Authenticated_{Authenticated: &rbacconfig.Principal_Authenticated{PrincipalName: m}}}}
	}
	for _, tc := range []struct {
		name string
		what []*perm
		by   []*prin
		want bool
	}{
		{"range starts at the port", ports(80, 90), anybody(), true},
		{"range ends before its end", ports(70, 80), anybody(), false},
		{"range starts above", ports(81, 90), anybody(), false},
		{"authenticated by name", anything(), named(exactly("spiffe://td/ns/shop/sa/client")), true},
		{"authenticated by another name", anything(), named(exactly("spiffe://td/ns/shop/sa/other")), false},
		{"a range written as mapped addresses", anything(), []*prin{from("::ffff:10.1.0.0", 16)}, true},
	} {
		if got := filter(t, rbacconfig.RBAC_ALLOW, tc.what, tc.by).Judge(get()).Allowed; got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
	nobody := get()
	nobody.Principal = ""
	if filter(t, rbacconfig.RBAC_ALLOW, anything(), named(startsWith(""))).Judge(nobody).Allowed {
		t.Error("a name that fits everything fits a client without one")
	}
	lost := get()
	lost.Source = netip.AddrPort{}
	if filter(t, rbacconfig.RBAC_ALLOW, anything(), []*prin{from("0.0.0.0", 0)}).Judge(lost).Allowed {
		t.Error("an unknown address is in a range")
	}
	if _, err := permission(onPort(65536 + 80)); err == nil {
		t.Error("port 65616 was taken, perhaps for 80")
	}
}

// TestCORSHeaders: what a browser is told, and that no more than a preflight is answered here.
func TestCORSHeaders(t *testing.T) {
	policy := func(forward bool) *CORS {
		c, err := compileCORS(&corsv3.CorsPolicy{
			AllowOriginStringMatch: []*matcherv3.StringMatcher{exactly("https://a")}, AllowMethods: "GET", AllowHeaders: "x-in", MaxAge: "10",
			ExposeHeaders: "x-out", AllowCredentials: wrapperspb.Bool(true), ForwardNotMatchingPreflights: wrapperspb.Bool(forward),
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ask := func(c *CORS, method, origin string, preflight bool) CORSPlan {
		q := get()
		q.Method, q.Header = method, http.Header{}
		if origin != "" {
			q.Header.Set("Origin", origin)
		}
		if preflight {
			q.Header.Set("Access-Control-Request-Method", "GET")
		}
		return c.Plan(q, nil)
	}
	const prefix = "Access-Control-"
	for _, tc := range []struct {
		name    string
		plan    CORSPlan
		answer  bool
		headers map[string]string
	}{
		{"preflight", ask(policy(false), "OPTIONS", "https://a", true), true, map[string]string{
			"Allow-Origin": "https://a", "Allow-Credentials": "true", "Allow-Methods": "GET", "Allow-Headers": "x-in", "Max-Age": "10",
		}},
		{"request", ask(policy(false), "GET", "https://a", false), false, map[string]string{
			"Allow-Origin": "https://a", "Allow-Credentials": "true", "Expose-Headers": "x-out",
		}},
		{"OPTIONS that is no preflight", ask(policy(false), "OPTIONS", "https://b", false), false, nil},
		{"a preflight's header on a GET", ask(policy(false), "GET", "https://b", true), false, nil},
		{"another origin's preflight, forwarded", ask(policy(true), "OPTIONS", "https://b", true), false, nil},
		{"no origin", ask(policy(false), "OPTIONS", "", true), false, nil},
	} {
		if tc.plan.Answer != tc.answer || len(tc.plan.Response) != len(tc.headers) {
			t.Errorf("%s: %+v", tc.name, tc.plan)
		}
		for name, want := range tc.headers {
			if got := tc.plan.Response.Get(prefix + name); got != want {
				t.Errorf("%s: %s%s is %q, want %q", tc.name, prefix, name, got, want)
			}
		}
	}
}
