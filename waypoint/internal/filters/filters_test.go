package filters

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	bufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

type (
	perm = rbacconfig.Permission
	prin = rbacconfig.Principal
)

func anything() []*perm { return []*perm{{Rule: &rbacconfig.Permission_Any{Any: true}}} }
func anybody() []*prin  { return []*prin{{Identifier: &rbacconfig.Principal_Any{Any: true}}} }

func exactly(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func startsWith(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s}}
}

func who(m *matcherv3.StringMatcher) *prin {
	return &prin{Identifier: &rbacconfig.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
		Key: match.StatePeerPrincipal, Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: m},
	}}}
}

func notWho(p *prin) *prin  { return &prin{Identifier: &rbacconfig.Principal_NotId{NotId: p}} }
func notWhat(p *perm) *perm { return &perm{Rule: &rbacconfig.Permission_NotRule{NotRule: p}} }

func onPath(m *matcherv3.StringMatcher) *perm {
	return &perm{Rule: &rbacconfig.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: m}}}}
}

func onHeader(name string, m *matcherv3.StringMatcher) *perm {
	return &perm{Rule: &rbacconfig.Permission_Header{Header: &routev3.HeaderMatcher{
		Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m},
	}}}
}

func onPort(n uint32) *perm {
	return &perm{Rule: &rbacconfig.Permission_DestinationPort{DestinationPort: n}}
}

func allPerms(ps ...*perm) *perm {
	return &perm{Rule: &rbacconfig.Permission_AndRules{AndRules: &rbacconfig.Permission_Set{Rules: ps}}}
}

func anyPrin(ps ...*prin) *prin {
	return &prin{Identifier: &rbacconfig.Principal_OrIds{OrIds: &rbacconfig.Principal_Set{Ids: ps}}}
}

func from(cidr string, bits uint32) *prin {
	return &prin{Identifier: &rbacconfig.Principal_DirectRemoteIp{DirectRemoteIp: &corev3.CidrRange{AddressPrefix: cidr, PrefixLen: wrapperspb.UInt32(bits)}}}
}

func templated(s string) *perm {
	a, _ := anypb.New(&uritemplatev3.UriTemplateMatchConfig{PathTemplate: s})
	return &perm{Rule: &rbacconfig.Permission_UriTemplate{UriTemplate: &corev3.TypedExtensionConfig{Name: "t", TypedConfig: a}}}
}

func filter(t *testing.T, action rbacconfig.RBAC_Action, what []*perm, by []*prin) *RBAC {
	t.Helper()
	r, err := compileRBAC(&rbacv3.RBAC{Rules: &rbacconfig.RBAC{Action: action, Policies: map[string]*rbacconfig.Policy{"p": {Permissions: what, Principals: by}}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func get() *match.Request {
	return &match.Request{
		Method: "GET", Path: "/a/b", Authority: "Web:80", Port: 80, Principal: "spiffe://td/ns/shop/sa/client",
		Source: netip.MustParseAddrPort("10.1.2.3:4"), Destination: netip.MustParseAddrPort("10.96.0.1:80"), Header: http.Header{"X-A": {"1"}},
	}
}

// TestRBAC goes through authz-l7's rule fields: each condition, and how conditions combine.
func TestRBAC(t *testing.T) {
	client := who(exactly("spiffe://td/ns/shop/sa/client"))
	tests := []struct {
		name string
		what []*perm
		by   []*prin
		want bool // does the policy match
	}{
		{"anything by anybody", anything(), anybody(), true},
		{"method", []*perm{onHeader(":method", exactly("GET"))}, anybody(), true},
		{"other method", []*perm{onHeader(":method", exactly("POST"))}, anybody(), false},
		{"one of several", []*perm{onHeader(":method", exactly("POST")), onPath(startsWith("/a"))}, anybody(), true},
		{"all of several", []*perm{allPerms(onHeader(":method", exactly("POST")), onPath(startsWith("/a")))}, anybody(), false},
		{"path exact", []*perm{onPath(exactly("/a/b"))}, anybody(), true},
		{"path is case sensitive", []*perm{onPath(exactly("/A/b"))}, anybody(), false},
		{"not path", []*perm{notWhat(onPath(exactly("/a/b")))}, anybody(), false},
		{"host with port, folded", []*perm{onHeader(":authority", &matcherv3.StringMatcher{IgnoreCase: true, MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "web:80"}})}, anybody(), true},
		{"port", []*perm{onPort(80)}, anybody(), true},
		{"other port", []*perm{onPort(81)}, anybody(), false},
		{"header", []*perm{onHeader("x-a", exactly("1"))}, anybody(), true},
		{"segment template", []*perm{templated("/a/*")}, anybody(), true},
		{"segment template is one segment", []*perm{templated("/*")}, anybody(), false},
		{"deep template", []*perm{templated("/**")}, anybody(), true},
		{"principal", anything(), []*prin{client}, true},
		{"principal prefix", anything(), []*prin{who(startsWith("spiffe://td/ns/shop/"))}, true},
		{"other principal", anything(), []*prin{who(exactly("spiffe://td/ns/shop/sa/other"))}, false},
		{"not principal", anything(), []*prin{notWho(client)}, false},
		{"one of principals", anything(), []*prin{anyPrin(who(exactly("x")), client)}, true},
		{"source address", anything(), []*prin{from("10.1.0.0", 16)}, true},
		{"other source address", anything(), []*prin{from("10.2.0.0", 16)}, false},
		{"both sides have to match", []*perm{onPort(80)}, []*prin{from("10.2.0.0", 16)}, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if got := filter(t, rbacconfig.RBAC_ALLOW, tc.what, tc.by).Judge(get()).Allowed; got != tc.want {
				t.Errorf("ALLOW says %v", got)
			}
			if got := filter(t, rbacconfig.RBAC_DENY, tc.what, tc.by).Judge(get()).Allowed; got == tc.want {
				t.Errorf("DENY says %v", got)
			}
			if v := filter(t, rbacconfig.RBAC_LOG, tc.what, tc.by).Judge(get()); !v.Allowed {
				t.Error("LOG denies")
			}
		})
	}
}

func TestRBACNamesThePolicy(t *testing.T) {
	v := filter(t, rbacconfig.RBAC_DENY, anything(), anybody()).Judge(get())
	if v.Detail() != "rbac_access_denied_matched_policy[p]" {
		t.Errorf("got %s", v.Detail())
	}
	empty, err := compileRBAC(&rbacv3.RBAC{Rules: &rbacconfig.RBAC{Action: rbacconfig.RBAC_ALLOW}})
	if err != nil {
		t.Fatal(err)
	}
	if v := empty.Judge(get()); v.Allowed || v.Detail() != "rbac_access_denied_matched_policy[none]" {
		t.Errorf("ALLOW without policies: %+v", v)
	}
}

func TestRBACWithoutIdentity(t *testing.T) {
	q := get()
	q.Principal = ""
	anyone := who(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: ".*"}}})
	known := &prin{Identifier: &rbacconfig.Principal_Authenticated_{Authenticated: &rbacconfig.Principal_Authenticated{}}}
	for name, p := range map[string]*prin{"any principal": anyone, "authenticated": known} {
		if filter(t, rbacconfig.RBAC_ALLOW, anything(), []*prin{p}).Judge(q).Allowed {
			t.Errorf("%s matched a client without identity", name)
		}
		if !filter(t, rbacconfig.RBAC_ALLOW, anything(), []*prin{notWho(p)}).Judge(q).Allowed {
			t.Errorf("not %s did not match a client without identity", name)
		}
	}
}

// TestRBACMetadata: what no filter found out is never true, whatever is asked of it; what one did is compared by its kind.
func TestRBACMetadata(t *testing.T) {
	claims, err := structpb.NewStruct(map[string]any{
		"payload": map[string]any{"iss": "i", "groups": []any{"a", "b"}, "admin": true, "age": 7, "none": nil, "org": map[string]any{"name": "x"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	is := func(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
		return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}}
	}
	has := func(m *matcherv3.ValueMatcher) *matcherv3.ValueMatcher {
		return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: m}}}}
	}
	present := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
	for _, tc := range []struct {
		name  string
		path  []string
		value *matcherv3.ValueMatcher
		want  bool
	}{
		{"text", []string{"iss"}, is(exactly("i")), true},
		{"other text", []string{"iss"}, is(exactly("j")), false},
		{"nested", []string{"org", "name"}, is(exactly("x")), true},
		{"through a text", []string{"iss", "name"}, present, false},
		{"no such claim", []string{"sub"}, is(startsWith("")), false},
		{"list", []string{"groups"}, has(is(exactly("b"))), true},
		{"list without it", []string{"groups"}, has(is(exactly("c"))), false},
		{"list is no text", []string{"groups"}, is(startsWith("")), false},
		{"text is no list", []string{"iss"}, has(is(exactly("i"))), false},
		{"either", []string{"iss"}, &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: &matcherv3.OrMatcher{
			ValueMatchers: []*matcherv3.ValueMatcher{has(is(exactly("i"))), is(exactly("i"))},
		}}}, true},
		{"truth", []string{"admin"}, &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_BoolMatch{BoolMatch: true}}, true},
		{"number", []string{"age"}, &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_DoubleMatch{DoubleMatch: &matcherv3.DoubleMatcher{
			MatchPattern: &matcherv3.DoubleMatcher_Exact{Exact: 7},
		}}}, true},
		{"number below the range's end", []string{"age"}, &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_DoubleMatch{DoubleMatch: &matcherv3.DoubleMatcher{
			MatchPattern: &matcherv3.DoubleMatcher_Range{Range: &typev3.DoubleRange{Start: 1, End: 7}},
		}}}, false},
		{"null", []string{"none"}, &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_NullMatch_{NullMatch: &matcherv3.ValueMatcher_NullMatch{}}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &matcherv3.MetadataMatcher{Filter: JWTFilter, Value: tc.value}
			for _, p := range append([]string{"payload"}, tc.path...) {
				m.Path = append(m.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: p}})
			}
			judge := func(invert bool, q *match.Request) bool {
				m.Invert = invert
				p := &prin{Identifier: &rbacconfig.Principal_SourcedMetadata{SourcedMetadata: &rbacconfig.SourcedMetadata{MetadataMatcher: m}}}
				return filter(t, rbacconfig.RBAC_ALLOW, anything(), []*prin{p}).Judge(q).Allowed
			}
			known := get()
			known.Metadata = map[string]*structpb.Struct{JWTFilter: claims}
			if got := judge(false, known); got != tc.want {
				t.Errorf("with a token: %v", got)
			}
			if got := judge(true, known); got == tc.want {
				t.Errorf("inverted, with a token: %v", got)
			}
			if judge(false, get()) {
				t.Error("a token that nobody verified was believed")
			}
			if !judge(true, get()) {
				t.Error("inverted, without a token: no match")
			}
		})
	}
}

func TestShadowRulesOnlyReport(t *testing.T) {
	r, err := compileRBAC(&rbacv3.RBAC{ShadowRules: &rbacconfig.RBAC{Action: rbacconfig.RBAC_DENY, Policies: map[string]*rbacconfig.Policy{"d": {Permissions: anything(), Principals: anybody()}}}})
	if err != nil {
		t.Fatal(err)
	}
	if v := r.Judge(get()); !v.Allowed || !v.Tried || v.Would || v.Shadow != "d" {
		t.Errorf("got %+v", v)
	}
}

func TestRBACRefusesWhatItCannotEvaluate(t *testing.T) {
	bad := map[string]*rbacconfig.Policy{
		"no permissions": {Principals: anybody()},
		"no principals":  {Permissions: anything()},
		"empty set":      {Permissions: []*perm{allPerms()}, Principals: anybody()},
		"unknown state": {Permissions: anything(), Principals: []*prin{{Identifier: &rbacconfig.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
			Key: "other", Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: exactly("x")},
		}}}}},
		"bad range":    {Permissions: anything(), Principals: []*prin{from("10.0.0.0", 99)}},
		"bad template": {Permissions: []*perm{templated("/**/*")}, Principals: anybody()},
		"nothing":      {Permissions: []*perm{{}}, Principals: anybody()},
		"matcher":      {Permissions: []*perm{{Rule: &rbacconfig.Permission_Matcher{Matcher: &corev3.TypedExtensionConfig{Name: "x"}}}}, Principals: anybody()},
	}
	for name, p := range bad {
		if _, err := compileRBAC(&rbacv3.RBAC{Rules: &rbacconfig.RBAC{Policies: map[string]*rbacconfig.Policy{"p": p}}}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestTemplates(t *testing.T) {
	tests := []struct {
		template, path string
		want           bool
	}{
		{"/foo/*", "/foo/bar", true},
		{"/foo/*", "/foo/bar/baz", false},
		{"/foo/*", "/foo/", false},
		{"/foo/**/", "/foo/bar/", true},
		{"/foo/**/", "/foo//", true},
		{"/foo/**/", "/foo/bar", false},
		{"/foo/{x}/y", "/foo/1/y", true},
		{"/foo/{x=**}", "/foo/1/2", true},
		{"/f.o/*", "/fxo/a", false},
	}
	for _, tc := range tests {
		re, err := compileTemplate(tc.template)
		if err != nil {
			t.Fatal(err)
		}
		if got := re.MatchString(tc.path); got != tc.want {
			t.Errorf("%s on %s: %v", tc.template, tc.path, got)
		}
	}
	for _, bad := range []string{"", "foo", "/{a", "/a}", "/**/*", "/{a=b}"} {
		if _, err := compileTemplate(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func named(t *testing.T, m proto.Message) *hcmv3.HttpFilter {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return &hcmv3.HttpFilter{Name: "f", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: a}}
}

func TestUnknownFilterIsRefused(t *testing.T) {
	f := named(t, &bufferv3.Buffer{})
	for _, optional := range []bool{false, true} {
		f.IsOptional = optional
		if _, err := CompileHTTP(f); !errors.Is(err, strict.ErrUnsupported) || !strings.Contains(err.Error(), "buffer") {
			t.Errorf("optional %v: got %v, want a refusal that names it", optional, err)
		}
	}
	if _, err := CompileHTTP(&hcmv3.HttpFilter{Name: "f"}); err == nil {
		t.Error("a filter without configuration was accepted")
	}
	if _, err := CompileOverrides(map[string]*anypb.Any{"f": f.GetTypedConfig()}); err == nil {
		t.Error("an unknown override was accepted")
	}
	if _, err := CompileHTTP(named(t, &faultv3.HTTPFault{MaxActiveFaults: wrapperspb.UInt32(1)})); !errors.Is(err, strict.ErrUnsupported) {
		t.Errorf("an unknown field of a known filter: %v", err)
	}
}

func TestFaultShares(t *testing.T) {
	f, err := compileFault(&faultv3.HTTPFault{
		Delay: &commonfault.FaultDelay{Percentage: &typev3.FractionalPercent{Numerator: 50}, FaultDelaySecifier: &commonfault.FaultDelay_FixedDelay{FixedDelay: durationpb.New(time.Second)}},
		Abort: &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_GrpcStatus{GrpcStatus: 14}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if p := f.Plan(get(), func(uint64) uint64 { return 0 }); p.Delay != time.Second || p.Abort != nil {
		t.Errorf("got %+v; an abort without a percentage befalls nobody", p)
	}
	if p := f.Plan(get(), func(uint64) uint64 { return 500_000 }); p.Delay != 0 {
		t.Errorf("got %+v, want the other half", p)
	}
}

func TestCORS(t *testing.T) {
	c, err := compileCORS(&corsv3.CorsPolicy{
		AllowOriginStringMatch: []*matcherv3.StringMatcher{exactly("https://a")}, AllowMethods: "GET", AllowHeaders: "x", MaxAge: "10",
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, origin string, preflight bool) CORSPlan {
		q := get()
		q.Method, q.Header = method, http.Header{"Origin": {origin}}
		if preflight {
			q.Header.Set("Access-Control-Request-Method", "GET")
		}
		return c.Plan(q, nil)
	}
	if p := ask("OPTIONS", "https://a", true); !p.Answer || p.Response.Get("Access-Control-Allow-Methods") != "GET" {
		t.Errorf("preflight: %+v", p)
	}
	if p := ask("OPTIONS", "https://b", true); !p.Answer || p.Response != nil {
		t.Errorf("preflight of another origin: %+v", p)
	}
	if p := ask("GET", "https://a", false); p.Answer || p.Response.Get("Access-Control-Allow-Origin") != "https://a" {
		t.Errorf("request: %+v", p)
	}
	if p := ask("GET", "https://b", false); p.Answer || p.Response != nil {
		t.Errorf("request of another origin: %+v", p)
	}
}

func FuzzRBAC(f *testing.F) {
	seed, _ := proto.Marshal(&rbacv3.RBAC{Rules: &rbacconfig.RBAC{Policies: map[string]*rbacconfig.Policy{"p": {
		Permissions: []*perm{onPort(80), templated("/a/*")}, Principals: []*prin{from("10.0.0.0", 8)},
	}}}})
	f.Add(seed)
	f.Fuzz(func(_ *testing.T, raw []byte) {
		p := &rbacv3.RBAC{}
		if proto.Unmarshal(raw, p) != nil {
			return
		}
		if r, err := compileRBAC(p); err == nil {
			r.Judge(get())
		}
	})
}
