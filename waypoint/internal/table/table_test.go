package table

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	networkinputs "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
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

func to(cluster string) *routev3.Route_Route {
	return &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}, Timeout: durationpb.New(0)}}
}

func on(m *routev3.RouteMatch, name string) *routev3.Route {
	return &routev3.Route{Name: name, Match: m, Action: to(name)}
}

func prefixed(p string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p}}
}

func exactly(p string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: p}}
}

func segments(p string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: p}}
}

func regex(p string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: p}}}
}

func folded(m *routev3.RouteMatch) *routev3.RouteMatch {
	m.CaseSensitive = wrapperspb.Bool(false)
	return m
}

func rulesOf(t *testing.T, rs ...*routev3.Route) *Rules {
	t.Helper()
	r, err := CompileRules(&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: rs}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func zero(uint64) uint64 { return 0 }

func TestFirstMatchWins(t *testing.T) {
	half := prefixed("/half")
	half.RuntimeFraction = &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 50}}
	grpc := prefixed("/")
	grpc.Grpc = &routev3.RouteMatch_GrpcRouteMatchOptions{}
	query := prefixed("/q")
	query.QueryParameters = []*routev3.QueryParameterMatcher{{Name: "v", QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}}}
	r := rulesOf(t, on(exactly("/a"), "exact"), on(segments("/seg"), "segments"), on(folded(prefixed("/Fold")), "folded"), on(regex("/r[0-9]+"), "regex"),
		on(half, "half"), on(query, "query"), on(grpc, "grpc"), on(prefixed("/a"), "prefix"), on(prefixed("/a/b"), "never"))
	tests := []struct {
		q    match.Request
		rnd  uint64
		want string
	}{
		{match.Request{Path: "/a"}, 0, "exact"},
		{match.Request{Path: "/ab"}, 0, "prefix"},
		{match.Request{Path: "/a/b"}, 0, "prefix"},
		{match.Request{Path: "/seg"}, 0, "segments"},
		{match.Request{Path: "/seg/x"}, 0, "segments"},
		{match.Request{Path: "/segx"}, 0, ""},
		{match.Request{Path: "/fOLD/x"}, 0, "folded"},
		{match.Request{Path: "/r12"}, 0, "regex"},
		{match.Request{Path: "/r12x"}, 0, ""},
		{match.Request{Path: "/half"}, 499_999, "half"},
		{match.Request{Path: "/half"}, 500_000, ""},
		{match.Request{Path: "/q", Query: "v"}, 0, "query"},
		{match.Request{Path: "/q"}, 0, ""},
		{match.Request{Path: "/ab", GRPC: true}, 0, "grpc"},
	}
	for _, tc := range tests {
		got := ""
		if rt := r.Match(&tc.q, func(uint64) uint64 { return tc.rnd }); rt != nil {
			got = rt.Name
		}
		if got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.q, got, tc.want)
		}
	}
}

func TestVirtualHosts(t *testing.T) {
	v := func(name string, domains ...string) *routev3.VirtualHost {
		return &routev3.VirtualHost{Name: name, Domains: domains, Routes: []*routev3.Route{on(prefixed("/"), name)}}
	}
	r, err := CompileRules(&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{
		v("any", "*"), v("suffix", "*.a.com"), v("longer", "*.b.a.com"), v("prefix", "www.*"), v("exact", "X.a.com", "x.a.com:80"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for h, want := range map[string]string{
		"x.a.com": "exact", "X.A.COM": "exact", "x.a.com:80": "exact", "y.a.com": "suffix", "y.b.a.com": "longer", "www.org": "prefix", "a.com": "any", "": "any",
	} {
		if got := r.Match(&match.Request{Authority: h, Path: "/"}, zero).Name; got != want {
			t.Errorf("%q: got %s, want %s", h, got, want)
		}
	}
}

func TestWeightsShareOut(t *testing.T) {
	f := &Forward{Clusters: []Weighted{{Cluster: "a", Weight: 3}, {Cluster: "none", Weight: 0}, {Cluster: "b", Weight: 7}}, Total: 10}
	got := map[string]int{}
	for i := range uint64(10) {
		got[f.Pick(func(n uint64) uint64 {
			if n != 10 {
				t.Fatalf("asked for one of %d", n)
			}
			return i
		}).Cluster]++
	}
	if got["a"] != 3 || got["b"] != 7 || len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

func TestRewrite(t *testing.T) {
	with := func(m *routev3.RouteMatch, f func(*routev3.RouteAction)) *Route {
		r := on(m, "x")
		f(r.GetRoute())
		return rulesOf(t, r).hosts[0].routes[0]
	}
	re := func(p, s string) func(*routev3.RouteAction) {
		return func(a *routev3.RouteAction) {
			a.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: &matcherv3.RegexMatcher{Regex: p}, Substitution: s}
		}
	}
	pre := func(p string) func(*routev3.RouteAction) { return func(a *routev3.RouteAction) { a.PrefixRewrite = p } }
	tests := []struct {
		r        *Route
		in, want string
	}{
		{with(prefixed("/api/"), pre("/")), "/api/x", "/x"},
		{with(segments("/api"), pre("/v2")), "/api/x", "/v2/x"},
		{with(exactly("/api"), pre("/v2")), "/api", "/v2"},
		{with(prefixed("/"), re("^/([^/]+)/(.*)$", `/\2/\1`)), "/a/b", "/b/a"},
		{with(prefixed("/"), re("a", "$1")), "/aa", "/$1$1"},
		{with(prefixed("/"), func(*routev3.RouteAction) {}), "/a", "/a"},
	}
	for _, tc := range tests {
		if got := tc.r.Path(tc.in); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.in, got, tc.want)
		}
	}
}

func TestLocation(t *testing.T) {
	at := func(m *routev3.RouteMatch, d *routev3.RedirectAction) *Route {
		return rulesOf(t, &routev3.Route{Match: m, Action: &routev3.Route_Redirect{Redirect: d}}).hosts[0].routes[0]
	}
	q := &match.Request{Scheme: "http", Authority: "web:8080", Path: "/a/b", Query: "x=1"}
	tests := []struct {
		r    *Route
		q    *match.Request
		want string
	}{
		{at(prefixed("/"), &routev3.RedirectAction{HostRedirect: "other"}), q, "http://other/a/b?x=1"},
		{at(prefixed("/"), &routev3.RedirectAction{SchemeRewriteSpecifier: &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: "https"}, PortRedirect: 443}), q, "https://web/a/b?x=1"},
		{at(prefixed("/"), &routev3.RedirectAction{PortRedirect: 9}), q, "http://web:9/a/b?x=1"},
		{at(prefixed("/a"), &routev3.RedirectAction{PathRewriteSpecifier: &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: "/z"}}), q, "http://web:8080/z/b?x=1"},
		{at(prefixed("/"), &routev3.RedirectAction{PathRewriteSpecifier: &routev3.RedirectAction_PathRedirect{PathRedirect: "/p?y"}}), q, "http://web:8080/p?y"},
		{at(prefixed("/"), &routev3.RedirectAction{StripQuery: true}), q, "http://web:8080/a/b"},
		{at(prefixed("/"), &routev3.RedirectAction{PortRedirect: 9}), &match.Request{Scheme: "http", Authority: "[::1]:80", Path: "/"}, "http://[::1]:9/"},
	}
	for _, tc := range tests {
		if got := tc.r.Location(tc.q); got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
}

type fixed map[string]string

func (f fixed) Operator(name, arg string) string { return f[name+"/"+arg] }

func TestMutations(t *testing.T) {
	put := func(k, v string, a corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
		return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, Value: v}, AppendAction: a}
	}
	m, err := compileMutations([]*corev3.HeaderValueOption{
		put("x-set", "new", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD), put("x-add", "2", corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD),
		put("x-if", "no", corev3.HeaderValueOption_ADD_IF_ABSENT), put("x-only", "no", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS),
		put("x-who", "from %DOWNSTREAM_REMOTE_ADDRESS%", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD),
		put(":authority", "h", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD),
	}, []string{"x-gone"})
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{"X-Set": {"a", "b"}, "X-Add": {"1"}, "X-If": {"there"}, "X-Gone": {"1"}}
	if a := m.Apply(h, fixed{"DOWNSTREAM_REMOTE_ADDRESS/": "1.2.3.4:5"}); a != "h" {
		t.Errorf("authority %q", a)
	}
	want := http.Header{"X-Set": {"new"}, "X-Add": {"1", "2"}, "X-If": {"there"}, "X-Who": {"from 1.2.3.4:5"}}
	if len(h) != len(want) {
		t.Errorf("got %v", h)
	}
	for k, v := range want {
		if strings.Join(h[k], ",") != strings.Join(v, ",") {
			t.Errorf("%s: got %v, want %v", k, h[k], v)
		}
	}
}

func TestFormats(t *testing.T) {
	f, err := CompileFormat(`%REQ(X-A?:PATH)% 100%% %RESPONSE_CODE% %REQ(X-LONG):3%`)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Render(fixed{"REQ/:PATH": "/p", "RESPONSE_CODE/": "200", "REQ/X-LONG": "abcdef"}, "-"); got != "/p 100% 200 abc" {
		t.Errorf("got %q", got)
	}
	line, err := structpb.NewStruct(map[string]any{
		"code": "%RESPONSE_CODE%", "a": `"%REQ(X)%"`, "none": "%REQ(Y)%", "in": map[string]any{"x": "%REQ(X)%", "y": "%REQ(Y)%"}, "n": 7, "mix": "a%REQ(Y)%",
	})
	if err != nil {
		t.Fatal(err)
	}
	for omit, want := range map[bool]string{
		false: `{"a":"\"x\"","code":200,"in":{"x":"x","y":null},"mix":"a-","n":7,"none":null}` + "\n",
		true:  `{"a":"\"x\"","code":200,"in":{"x":"x"},"mix":"a-","n":7}` + "\n",
	} {
		j, err := compileJSON(line, maxDepth)
		if err != nil {
			t.Fatal(err)
		}
		j.omit = omit
		if got := j.Render(fixed{"RESPONSE_CODE/": "200", "REQ/X": "x"}, "-"); got != want {
			t.Errorf("omit %t: got %s", omit, got)
		}
	}
	for _, bad := range []any{[]any{"x"}, nil, "%NOPE%"} {
		line, err := structpb.NewStruct(map[string]any{"k": bad})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := compileJSON(line, maxDepth); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
	for _, bad := range []string{"%", "%REQ(", "%REQ(X)", "%NOPE%", "%REQ(X):0%", "a%b"} {
		if _, err := CompileFormat(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if _, err := CompileFormat(DefaultLog); err != nil {
		t.Error(err)
	}
}

func TestRetryPolicies(t *testing.T) {
	r, err := compileRetry(&routev3.RetryPolicy{RetryOn: "connect-failure,refused-stream,unavailable,cancelled,503", RetriableStatusCodes: []uint32{418}})
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range map[int]bool{503: true, 418: true, 500: false, 200: false} {
		if r.Status(code) != want {
			t.Errorf("status %d: %v", code, !want)
		}
	}
	if !r.GRPC(14) || !r.GRPC(1) || r.GRPC(13) || r.Retries != 1 || r.Max != 10*r.Base {
		t.Errorf("got %+v", r)
	}
	for _, bad := range []*routev3.RetryPolicy{
		{RetryOn: "whenever"},
		{RetryOn: "5xx", PerTryIdleTimeout: durationpb.New(1)},
		{RetryOn: "5xx", RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{Name: "other"}}},
	} {
		if _, err := compileRetry(bad); !errors.Is(err, strict.ErrUnsupported) {
			t.Errorf("%v: got %v", bad, err)
		}
	}
}

func TestUnknownConfigIsRefused(t *testing.T) {
	bad := map[string]*routev3.Route{
		"no match":          {Action: to("a")},
		"no action":         {Match: prefixed("/")},
		"connect":           {Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{}}, Action: to("a")},
		"internal redirect": {Match: prefixed("/"), Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "a"}, InternalRedirectPolicy: &routev3.InternalRedirectPolicy{}}}},
		"rate limits":       {Match: prefixed("/"), Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "a"}, RateLimits: []*routev3.RateLimit{{}}}}},
		"cluster by header": {Match: prefixed("/"), Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_ClusterHeader{ClusterHeader: "x"}}}},
		"no weights":        {Match: prefixed("/"), Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{}}}}},
		"metadata match":    {Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}, DynamicMetadata: []*matcherv3.MetadataMatcher{{}}}, Action: to("a")},
		"bad regex":         {Match: regex("("), Action: to("a")},
		"status":            {Match: prefixed("/"), Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 99}}},
		"unknown filter":    {Match: prefixed("/"), Action: to("a"), TypedPerFilterConfig: map[string]*anypb.Any{"x": {TypeUrl: "type.googleapis.com/x.Y"}}},
		"pseudo header":     {Match: prefixed("/"), Action: to("a"), RequestHeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: ":path", Value: "/"}}}},
	}
	for name, r := range bad {
		if _, err := CompileRules(&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*routev3.Route{r}}}}); err == nil {
			t.Errorf("%s was accepted", name)
		} else if !strings.Contains(err.Error(), `routes "r"`) {
			t.Errorf("%s: %v does not name the object", name, err)
		}
	}
}

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func leafOf(t *testing.T, name string) *xdsmatcher.Matcher_OnMatch {
	return &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Action{Action: &xdscore.TypedExtensionConfig{Name: name, TypedConfig: pack(t, wrapperspb.String(name))}}}
}

func mapOf(t *testing.T, in proto.Message, m map[string]*xdsmatcher.Matcher_OnMatch, otherwise *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher {
	return &xdsmatcher.Matcher{OnNoMatch: otherwise, MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
		Input:    &xdscore.TypedExtensionConfig{Name: "i", TypedConfig: pack(t, in)},
		TreeType: &xdsmatcher.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &xdsmatcher.Matcher_MatcherTree_MatchMap{Map: m}},
	}}}
}

func under(m *xdsmatcher.Matcher) *xdsmatcher.Matcher_OnMatch {
	return &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Matcher{Matcher: m}}
}

func byIP(t *testing.T, rows ...*xdsmatcher.IPMatcher_IPRangeMatcher) *xdsmatcher.Matcher {
	return &xdsmatcher.Matcher{MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
		Input:    &xdscore.TypedExtensionConfig{Name: "i", TypedConfig: pack(t, &networkinputs.DestinationIPInput{})},
		TreeType: &xdsmatcher.Matcher_MatcherTree_CustomMatch{CustomMatch: &xdscore.TypedExtensionConfig{Name: "ip", TypedConfig: pack(t, &xdsmatcher.IPMatcher{RangeMatchers: rows})}},
	}}}
}

func tcpListener(t *testing.T, m *xdsmatcher.Matcher, names ...string) *listenerv3.Listener {
	l := &listenerv3.Listener{Name: "main_internal", FilterChainMatcher: m}
	for _, n := range names {
		l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Name: n, Filters: []*listenerv3.Filter{{
			Name: "tcp", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, &tcpproxyv3.TcpProxy{StatPrefix: "x", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: n}})},
		}}})
	}
	return l
}

func TestUnknownDestinationHasNoChain(t *testing.T) {
	port := &networkinputs.DestinationPortInput{}
	alpn := under(mapOf(t, &networkinputs.ApplicationProtocolInput{}, map[string]*xdsmatcher.Matcher_OnMatch{"'http/1.1'": leafOf(t, "h"), "'h2c'": leafOf(t, "h")}, leafOf(t, "t")))
	m := byIP(t,
		&xdsmatcher.IPMatcher_IPRangeMatcher{Ranges: []*xdscore.CidrRange{{AddressPrefix: "10.0.0.0", PrefixLen: wrapperspb.UInt32(24)}}, OnMatch: under(mapOf(t, port, map[string]*xdsmatcher.Matcher_OnMatch{"80": leafOf(t, "a"), "81": alpn}, nil))},
		&xdsmatcher.IPMatcher_IPRangeMatcher{Ranges: []*xdscore.CidrRange{{AddressPrefix: "fd00::", PrefixLen: wrapperspb.UInt32(64)}}, OnMatch: leafOf(t, "six")},
	)
	in, err := CompileInternal(tcpListener(t, m, "a", "h", "t", "six"))
	if err != nil {
		t.Fatal(err)
	}
	tab := &Table{Internal: in}
	tests := []struct {
		dst  string
		p    Protocol
		want string
		look bool
	}{
		{"10.0.0.9:80", Unseen, "a", false},
		{"10.0.0.9:81", Unseen, "", true},
		{"10.0.0.9:81", HTTP1, "h", false},
		{"10.0.0.9:81", HTTP2, "h", false},
		{"10.0.0.9:81", Opaque, "t", false},
		{"10.0.0.9:82", Unseen, "", false},
		{"10.0.1.9:80", Unseen, "", false},
		{"[fd00::7]:1", Unseen, "six", false},
		{"[::ffff:10.0.0.9]:80", Unseen, "a", false},
	}
	for _, tc := range tests {
		c, look := tab.Find(Conn{Destination: netip.MustParseAddrPort(tc.dst), Protocol: tc.p})
		got := ""
		if c != nil {
			got = c.Name
		}
		if got != tc.want || look != tc.look {
			t.Errorf("%s %d: got %q %v, want %q %v", tc.dst, tc.p, got, look, tc.want, tc.look)
		}
	}
	if c, look := tab.Find(Conn{Authority: "web:80"}); c != nil || look {
		t.Error("a host name found a chain that only an address has")
	}
	if c, look := (&Table{}).Find(Conn{Destination: netip.MustParseAddrPort("10.0.0.9:80")}); c != nil || look {
		t.Error("an empty table found a chain")
	}
}

func TestEveryActionHasAChain(t *testing.T) {
	if _, err := CompileInternal(tcpListener(t, mapOf(t, &networkinputs.DestinationPortInput{}, map[string]*xdsmatcher.Matcher_OnMatch{"80": leafOf(t, "missing")}, nil), "a")); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v", err)
	}
	if _, err := CompileInternal(tcpListener(t, nil, "a", "a")); err == nil {
		t.Error("two chains of one name were accepted")
	}
}

func TestClassicMatch(t *testing.T) {
	l := tcpListener(t, nil, "web", "rest")
	l.FilterChains[0].FilterChainMatch = &listenerv3.FilterChainMatch{
		PrefixRanges: []*corev3.CidrRange{{AddressPrefix: "10.0.0.1", PrefixLen: wrapperspb.UInt32(32)}}, DestinationPort: wrapperspb.UInt32(80),
	}
	in, err := CompileInternal(l)
	if err != nil {
		t.Fatal(err)
	}
	for dst, want := range map[string]string{"10.0.0.1:80": "web", "10.0.0.2:80": "rest"} {
		if c, _ := (&Table{Internal: in}).Find(Conn{Destination: netip.MustParseAddrPort(dst)}); c == nil || c.Name != want {
			t.Errorf("%s: got %+v", dst, c)
		}
	}
}

func TestTerminateNeedsMutualTLS(t *testing.T) {
	if _, err := CompileTerminate(&listenerv3.Listener{Name: "connect_terminate", FilterChains: []*listenerv3.FilterChain{{}}}); err == nil {
		t.Error("a listener without TLS was accepted")
	}
}

func FuzzCompileRoutes(f *testing.F) {
	seed, _ := proto.Marshal(&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*routev3.Route{
		on(prefixed("/a"), "a"), on(regex("/x.*"), "b"), {Match: segments("/s"), Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{PortRedirect: 1}}},
	}}}})
	f.Add(seed)
	f.Fuzz(func(_ *testing.T, raw []byte) {
		p := &routev3.RouteConfiguration{}
		if proto.Unmarshal(raw, p) != nil {
			return
		}
		r, err := CompileRules(p)
		if err != nil {
			return
		}
		q := &match.Request{Method: "GET", Path: "/a/b", Authority: "web:80", Scheme: "http", Header: http.Header{}}
		if rt := r.Match(q, zero); rt != nil {
			_, _ = rt.Path(q.Path), rt.Location(q)
			if fw, ok := rt.Action.(*Forward); ok {
				fw.Pick(zero)
			}
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	r, err := CompileRules(&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*routev3.Route{
		on(exactly("/one"), "a"), on(segments("/two"), "b"), on(prefixed("/"), "c"),
	}}}})
	if err != nil {
		b.Fatal(err)
	}
	q := &match.Request{Method: "GET", Path: "/three/x", Authority: "web", Header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		r.Match(q, zero)
	}
}
