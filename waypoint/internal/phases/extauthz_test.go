package phases_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkauthz "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// judge is an authorization server that says what the request asks it to say.
type judge struct {
	authv3.UnimplementedAuthorizationServer
	mu    sync.Mutex
	asked []*authv3.CheckRequest
}

func (j *judge) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	j.mu.Lock()
	j.asked = append(j.asked, r)
	j.mu.Unlock()
	option := func(k, v string) *corev3.HeaderValueOption {
		return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, Value: v}}
	}
	switch r.GetAttributes().GetRequest().GetHttp().GetHeaders()["x-say"] {
	case "deny":
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: 401}, Body: "who are you", Headers: []*corev3.HeaderValueOption{option("www-authenticate", "Basic")},
		}}}, nil
	case "plain":
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}}, nil
	case "fail":
		return nil, fmt.Errorf("no")
	case "wait":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.GetAttributes().GetRequest().GetHttp() == nil && strings.Contains(r.GetAttributes().GetSource().GetPrincipal(), "stranger") {
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}}, nil
	}
	return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers:         []*corev3.HeaderValueOption{option("x-user", "anna"), option("x-to", "v2")},
		HeadersToRemove: []string{"x-secret"}, ResponseHeadersToAdd: []*corev3.HeaderValueOption{option("x-seen", "1")},
		QueryParametersToRemove: []string{"token"},
	}}}, nil
}

func (j *judge) take() []*authv3.CheckRequest {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := j.asked
	j.asked = nil
	return out
}

func (w *world) judge(addr string) *judge {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	j, s, done := &judge{}, grpc.NewServer(), make(chan struct{})
	authv3.RegisterAuthorizationServer(s, j)
	go func() { defer close(done); _ = s.Serve(l) }()
	w.t.Cleanup(func() { s.Stop(); <-done })
	w.podTCP(addr, l.Addr().String(), "spiffe://td/ns/shop/sa/app")
	return j
}

const customKey = "istio_ext_authz_p_shadow_effective_policy_id"

func enabledBy(filter string) *matcherv3.MetadataMatcher {
	return &matcherv3.MetadataMatcher{
		Filter: filter, Path: []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: customKey}}},
		Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "istio-ext-authz"},
		}}},
	}
}

func envoyGRPC(limit time.Duration) *corev3.GrpcService {
	return &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
		EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "authz", Authority: "authz.example"},
	}, Timeout: durationpb.New(limit)}
}

func customRules() *rbacconfig.RBAC {
	return &rbacconfig.RBAC{Action: rbacconfig.RBAC_DENY, Policies: map[string]*rbacconfig.Policy{"istio-ext-authz-p-ns[shop]-policy[c]-rule[0]": {
		Permissions: []*rbacconfig.Permission{{Rule: &rbacconfig.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{
			Path: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "/ask"}},
		}}}}},
		Principals: []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_Any{Any: true}}},
	}}}
}

// custom is a world whose requests below /ask are judged by a server.
func custom(t *testing.T, change func(*extauthzv3.ExtAuthz)) (*world, *judge) {
	w := newWorld(t)
	j := w.judge("10.0.0.9:9000")
	w.pod("10.0.0.1:8080", echo())
	w.pod("10.0.0.2:8080", named("v2"))
	ext := &extauthzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3, FilterEnabledMetadata: enabledBy("envoy.filters.http.rbac"),
		Services: &extauthzv3.ExtAuthz_GrpcService{GrpcService: envoyGRPC(300 * time.Millisecond)},
	}
	if change != nil {
		change(ext)
	}
	hcm := manager(t)
	hcm.HttpFilters = append([]*hcmv3.HttpFilter{
		httpFilter(t, "custom.rbac", &rbacv3.RBAC{Rules: &rbacconfig.RBAC{Action: rbacconfig.RBAC_ALLOW}}), httpFilter(t, "custom.ask", ext),
	}, hcm.GetHttpFilters()...)
	per := open(t)
	per["custom.rbac"] = pack(t, &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{ShadowRules: customRules(), ShadowRulesStatPrefix: "istio_ext_authz_p_"}})
	w.mustApply(cluster(t, "v1"), cluster(t, "v2"), cluster(t, "authz", func(c *clusterv3.Cluster) {
		c.Http2ProtocolOptions, c.TypedExtensionProtocolOptions = &corev3.Http2ProtocolOptions{}, nil //nolint:staticcheck // shorter
	}), endpoints("v1", "10.0.0.1:8080"), endpoints("v2", "10.0.0.2:8080"), endpoints("authz", "10.0.0.9:9000"),
		terminate(t), internal(t, hcm), routes(t, per, withHeader(to("/", "v2"), "x-to", "v2"), to("/", "v1")))
	return w, j
}

// echo answers with what it got.
func echo() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		named("v1").ServeHTTP(w, r)
		_, _ = fmt.Fprintf(w, ", body of %d", len(body))
	})
}

// TestCustomAuthorization: a server is asked about the requests that the policy names, before anything reaches the application, and
// what it says is done.
func TestCustomAuthorization(t *testing.T) {
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			w, j := custom(t, nil)
			c := w.client(shopper, vip+":80", two)
			if resp, _ := do(t, c, "GET", "/other", header("X-Say", "deny")); resp.StatusCode != 200 || len(j.take()) != 0 {
				t.Errorf("a request without policy: %d", resp.StatusCode)
			}
			resp, _ := do(t, c, "GET", "/ask?a=1&token=2", header("X-Secret", "s"), header("X-User", "forged"))
			for k, want := range map[string]string{"Saw-X-User": "anna", "Saw-X-Secret": "", "X-Seen": "1", "Saw-Path": "/ask?a=1", "X-App": "v1"} {
				if got := resp.Header.Get(k); got != want {
					t.Errorf("%s is %q, want %q", k, got, want)
				}
			}
			asked := j.take()
			if len(asked) != 1 {
				t.Fatalf("asked %d times", len(asked))
			}
			a := asked[0].GetAttributes()
			if h := a.GetRequest().GetHttp(); h.GetPath() != "/ask?a=1&token=2" || h.GetMethod() != "GET" || h.GetHeaders()["x-secret"] != "s" {
				t.Errorf("the server was told %v", h)
			}
			if a.GetSource().GetPrincipal() != shopper || a.GetDestination().GetAddress().GetSocketAddress().GetAddress() != vip {
				t.Errorf("the server was told of %v and %v", a.GetSource(), a.GetDestination())
			}
			resp, body := do(t, c, "GET", "/ask", header("X-Say", "deny"))
			if resp.StatusCode != 401 || body != "who are you" || resp.Header.Get("Www-Authenticate") != "Basic" || resp.Header.Get("X-App") != "" {
				t.Errorf("denied: %d %q %v", resp.StatusCode, body, resp.Header)
			}
			for _, say := range []string{"plain", "fail", "wait"} {
				if resp, body := do(t, c, "GET", "/ask", header("X-Say", say)); resp.StatusCode != 403 || body != "" {
					t.Errorf("%s: %d %q", say, resp.StatusCode, body)
				}
			}
			w.stop()
			log := w.log.all()
			for _, want := range []string{"GET /ask 401 UAEX ext_authz_denied", "GET /ask 403 UAEX ext_authz_denied", "GET /ask 403 UAEX ext_authz_error"} {
				if !slices.ContainsFunc(log, func(l string) bool { return strings.HasPrefix(l, want) }) {
					t.Errorf("no line %q in %q", want, log)
				}
			}
		})
	}
}

// TestCustomFailure: without an answer the request is refused, with the status asked for, unless the provider fails open.
func TestCustomFailure(t *testing.T) {
	w, _ := custom(t, func(e *extauthzv3.ExtAuthz) { e.StatusOnError = &typev3.HttpStatus{Code: 503} })
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/ask", header("X-Say", "wait")); resp.StatusCode != 503 || resp.Header.Get("X-App") != "" {
		t.Errorf("status %d", resp.StatusCode)
	}
	w, _ = custom(t, func(e *extauthzv3.ExtAuthz) { e.FailureModeAllow, e.FailureModeAllowHeaderAdd = true, true })
	c := w.client(shopper, vip+":80", false)
	if resp, _ := do(t, c, "GET", "/ask", header("X-Say", "fail")); resp.Header.Get("Saw-X-Envoy-Auth-Failure-Mode-Allowed") != "true" {
		t.Errorf("status %d %v", resp.StatusCode, resp.Header)
	}
	if resp, _ := do(t, c, "GET", "/ask", header("X-Say", "deny")); resp.StatusCode != 401 {
		t.Errorf("a denial is no failure: %d", resp.StatusCode)
	}
	w.mustApply(endpoints("authz"))
	if resp, _ := do(t, c, "GET", "/ask"); resp.Header.Get("X-App") != "v1" {
		t.Errorf("no endpoint: %d", resp.StatusCode)
	}
}

// TestCustomBody: the server sees the beginning of the body, the application all of it.
func TestCustomBody(t *testing.T) {
	post := func(n int) func(*http.Request) {
		return func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat("x", n))), -1
		}
	}
	w, j := custom(t, func(e *extauthzv3.ExtAuthz) {
		e.WithRequestBody = &extauthzv3.BufferSettings{MaxRequestBytes: 10, AllowPartialMessage: true}
	})
	c := w.client(shopper, vip+":80", false)
	for _, n := range []int{0, 3, 10, 11, 100_000} {
		_, body := do(t, c, "POST", "/ask", post(n))
		if want := fmt.Sprintf("body of %d", n); !strings.HasSuffix(body, want) {
			t.Errorf("the application saw %q, want %s", body, want)
		}
		h := j.take()[0].GetAttributes().GetRequest().GetHttp()
		if len(h.GetBody()) != min(n, 10) || h.GetHeaders()["x-envoy-auth-partial-body"] != fmt.Sprint(n > 10) {
			t.Errorf("%d: the server saw %q, %v", n, h.GetBody(), h.GetHeaders()["x-envoy-auth-partial-body"])
		}
	}
	w, j = custom(t, func(e *extauthzv3.ExtAuthz) {
		e.WithRequestBody = &extauthzv3.BufferSettings{MaxRequestBytes: 10, PackAsBytes: true}
	})
	c = w.client(shopper, vip+":80", false)
	for _, n := range []int{10, 11} {
		resp, _ := do(t, c, "POST", "/ask", post(n))
		if want := map[int]int{10: 200, 11: 413}[n]; resp.StatusCode != want {
			t.Errorf("%d bytes: %d, want %d", n, resp.StatusCode, want)
		}
	}
	if asked := j.take(); len(asked) != 1 || len(asked[0].GetAttributes().GetRequest().GetHttp().GetRawBody()) != 10 {
		t.Errorf("asked %v", asked)
	}
}

// TestCustomRoute: the route is chosen again after what the server changed, if the filter says so.
func TestCustomRoute(t *testing.T) {
	w, _ := custom(t, func(e *extauthzv3.ExtAuthz) { e.ClearRouteCache = true })
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/ask"); resp.Header.Get("X-App") != "v2" {
		t.Errorf("got %s", resp.Header.Get("X-App"))
	}
}

// TestCustomLost: a route configuration that lost its policies is closed.
func TestCustomLost(t *testing.T) {
	w, _ := custom(t, nil)
	w.mustApply(routes(t, map[string]*anypb.Any{
		"marrow.rbac.deny": pack(t, &rbacv3.RBACPerRoute{}), "marrow.rbac.allow": pack(t, &rbacv3.RBACPerRoute{}),
	}, to("/", "v1")))
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/other"); resp.StatusCode != 403 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// TestCustomOpaque: the server is asked about connections that nobody reads, too.
func TestCustomOpaque(t *testing.T) {
	w, j := custom(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.Close()
		}
	})
	defer func() { _ = l.Close(); wg.Wait() }()
	w.podTCP("10.0.0.3:8080", l.Addr().String(), "spiffe://td/ns/shop/sa/app")
	lis := internal(t, manager(t))
	rules := customRules()
	for _, p := range rules.GetPolicies() {
		p.Permissions = []*rbacconfig.Permission{{Rule: &rbacconfig.Permission_Any{Any: true}}}
	}
	chain := lis.GetFilterChains()[1]
	chain.Filters = append([]*listenerv3.Filter{
		networkFilter(t, "custom.rbac", &networkrbac.RBAC{StatPrefix: "tcp.", ShadowRules: rules, ShadowRulesStatPrefix: "istio_ext_authz_p_"}),
		networkFilter(t, "custom.ask", &networkauthz.ExtAuthz{
			StatPrefix: "tcp.", TransportApiVersion: corev3.ApiVersion_V3, GrpcService: envoyGRPC(time.Second), FilterEnabledMetadata: enabledBy("envoy.filters.network.rbac"),
		}),
	}, chain.GetFilters()...)
	w.mustApply(cluster(t, "tcp"), endpoints("tcp", "10.0.0.3:8080"), lis)
	read := func(id string) string {
		s, _, err := w.tunnel(id).Connect(t.Context(), tcpVIP+":80", nil)
		if err != nil {
			return "refused"
		}
		defer func() { _ = s.Close() }()
		b, _ := io.ReadAll(s)
		return string(b)
	}
	if got := read(shopper); got != "hello" {
		t.Errorf("allowed: %q", got)
	}
	if got := read("spiffe://td/ns/shop/sa/stranger"); got != "refused" {
		t.Errorf("denied: %q", got)
	}
	if n := len(j.take()); n != 2 {
		t.Errorf("asked %d times", n)
	}
	w.mustApply(endpoints("authz"))
	if got := read(shopper); got != "refused" {
		t.Errorf("no server: %q", got)
	}
}

// withHeader narrows a route to requests with a header.
func withHeader(r *routev3.Route, name, value string) *routev3.Route {
	r.Match.Headers = []*routev3.HeaderMatcher{{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}},
	}}}
	return r
}

// TestAuditAndDryRun: policies that refuse nothing are counted, and nothing else happens.
func TestAuditAndDryRun(t *testing.T) {
	any := &rbacconfig.Policy{
		Permissions: []*rbacconfig.Permission{{Rule: &rbacconfig.Permission_Any{Any: true}}},
		Principals:  []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_Any{Any: true}}},
	}
	rules := func(a rbacconfig.RBAC_Action, name string) *rbacconfig.RBAC {
		return &rbacconfig.RBAC{Action: a, Policies: map[string]*rbacconfig.Policy{name: any}}
	}
	w := newWorld(t)
	w.pod("10.0.0.1:8080", named("v1"))
	hcm := manager(t)
	hcm.HttpFilters = append([]*hcmv3.HttpFilter{httpFilter(t, "audit", &rbacv3.RBAC{Rules: rules(rbacconfig.RBAC_LOG, "watch")})}, hcm.GetHttpFilters()...)
	per := open(t)
	per["marrow.rbac.deny"] = pack(t, &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{ShadowRules: rules(rbacconfig.RBAC_DENY, "try"), ShadowRulesStatPrefix: "istio_dry_run_deny_"}})
	w.mustApply(cluster(t, "v1"), endpoints("v1", "10.0.0.1:8080"), terminate(t), internal(t, hcm), routes(t, per, to("/", "v1")))
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/"); resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
	found, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range found {
		for _, m := range f.GetMetric() {
			if strings.HasPrefix(f.GetName(), "marrow_authorization_") {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				got[name] = m.GetCounter().GetValue()
			}
		}
	}
	if len(got) != 2 || got["marrow_authorization_audited_total watch"] != 1 || got["marrow_authorization_dry_run_total try denied"] != 1 {
		t.Errorf("%v", got)
	}
}

// TestForgedHeaders: what only proxies may say, a client does not; with the filter that says who the client is, the application learns it
// from the proxy. X-Forwarded-For goes on as it came.
func TestForgedHeaders(t *testing.T) {
	forge := []func(*http.Request){
		header("X-Forwarded-Client-Cert", "By=spiffe://td/x;URI=spiffe://td/ns/shop/sa/admin"), header("X-Envoy-Internal", "true"),
		header("X-Envoy-Original-Path", "/secret"), header("X-Envoy-Retry-On", "5xx"), header("X-Envoy-Upstream-Rq-Timeout-Ms", "1"),
		header("X-Forwarded-For", "1.2.3.4, 10.0.0.1"),
	}
	w := basic(t)
	for _, two := range []bool{false, true} {
		resp, _ := do(t, w.client(shopper, vip+":80", two), "GET", "/", forge...)
		for k, want := range map[string]string{
			"X-Forwarded-Client-Cert": "", "X-Envoy-Internal": "", "X-Envoy-Original-Path": "", "X-Envoy-Retry-On": "", "X-Envoy-Upstream-Rq-Timeout-Ms": "",
			"X-Forwarded-For": "1.2.3.4, 10.0.0.1",
		} {
			if got := resp.Header.Get("Saw-" + k); got != want {
				t.Errorf("%s reached the application as %q", k, got)
			}
		}
	}
	hcm := manager(t)
	hcm.HttpFilters = append([]*hcmv3.HttpFilter{httpFilter(t, "xfcc", &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationv3.HeaderMutation{{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			Header: &corev3.HeaderValue{
				Key: "x-forwarded-client-cert", Value: "By=%FILTER_STATE(io.istio.local_principal:PLAIN)%;URI=%FILTER_STATE(io.istio.peer_principal:PLAIN)%",
			},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}}}},
	}})}, hcm.GetHttpFilters()...)
	w.mustApply(internal(t, hcm))
	resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/", forge...)
	if got := resp.Header.Values("Saw-X-Forwarded-Client-Cert"); len(got) != 1 || got[0] != "By=spiffe://td/ns/shop/sa/wp;URI="+shopper {
		t.Errorf("the application was told %q", got)
	}
}
