package phases_test

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	globalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	celexpr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const limitFilter = "marrow.ratelimit"

// limiting is a world whose chain has one more filter, and whose virtual host fills it.
func limiting(t *testing.T, base, filled proto.Message, rs ...*routev3.Route) *world {
	t.Helper()
	w := basic(t)
	w.limit(base, filled, rs...)
	return w
}

func (w *world) limit(base, filled proto.Message, rs ...*routev3.Route) {
	w.t.Helper()
	m := manager(w.t)
	n := len(m.GetHttpFilters()) - 1
	m.HttpFilters = append(append(append([]*hcmv3.HttpFilter{}, m.GetHttpFilters()[:n]...), httpFilter(w.t, limitFilter, base)), m.GetHttpFilters()[n])
	own := open(w.t)
	if filled != nil {
		own[limitFilter] = pack(w.t, filled)
	}
	if len(rs) == 0 {
		rs = []*routev3.Route{to("/", "v1")}
	}
	w.mustApply(internal(w.t, m), routes(w.t, own, rs...))
}

func hundred() *corev3.RuntimeFractionalPercent {
	return &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
}

func tokens(n uint32) *typev3.TokenBucket {
	return &typev3.TokenBucket{MaxTokens: n, TokensPerFill: wrapperspb.UInt32(n), FillInterval: durationpb.New(time.Hour)}
}

func generic(k, v string) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{GenericKey: &routev3.RateLimit_Action_GenericKey{DescriptorKey: k, DescriptorValue: v}}}
}

// peerAction is the descriptor extension that names the client.
func peerAction(t *testing.T) *routev3.RateLimit_Action {
	t.Helper()
	name := func(n string) *celexpr.Expr {
		return &celexpr.Expr{ExprKind: &celexpr.Expr_IdentExpr{IdentExpr: &celexpr.Expr_Ident{Name: n}}}
	}
	key := &celexpr.Expr{ExprKind: &celexpr.Expr_ConstExpr{ConstExpr: &celexpr.Constant{ConstantKind: &celexpr.Constant_StringValue{StringValue: "io.istio.peer_principal"}}}}
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Extension{Extension: &corev3.TypedExtensionConfig{
		Name: "expr", TypedConfig: pack(t, &exprv3.Descriptor{DescriptorKey: "identity", ExprSpecifier: &exprv3.Descriptor_Parsed{
			Parsed: &celexpr.Expr{ExprKind: &celexpr.Expr_CallExpr{CallExpr: &celexpr.Expr_Call{Function: "_[_]", Args: []*celexpr.Expr{name("filter_state"), key}}}},
		}}),
	}}}
}

func perIdentity(t *testing.T, n uint32) *localv3.LocalRateLimit {
	t.Helper()
	return &localv3.LocalRateLimit{
		StatPrefix: "x", TokenBucket: tokens(1000), FilterEnabled: hundred(), FilterEnforced: hundred(), AlwaysConsumeDefaultTokenBucket: wrapperspb.Bool(false),
		RateLimits: []*routev3.RateLimit{{
			Actions: []*routev3.RateLimit_Action{generic("policy", "p"), peerAction(t)}, XRatelimitOption: routev3.RateLimit_DRAFT_VERSION_03,
		}},
		Descriptors: []*commonv3.LocalRateLimitDescriptor{{
			Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "policy", Value: "p"}, {Key: "identity"}}, TokenBucket: tokens(n),
		}},
	}
}

func TestLocalRateLimit(t *testing.T) {
	p := perIdentity(t, 3)
	p.ResponseHeadersToAdd = []*corev3.HeaderValueOption{headerOption("x-limited", "100%%")}
	w := limiting(t, &localv3.LocalRateLimit{StatPrefix: "x"}, p)
	for _, who := range []string{shopper, "spiffe://td/ns/shop/sa/other"} {
		c := w.client(who, vip+":80", false)
		for i := range 5 {
			resp, body := do(t, c, "GET", "/")
			if i < 3 {
				if resp.StatusCode != 200 || resp.Header.Get("X-Ratelimit-Limit") != "3" || resp.Header.Get("X-Ratelimit-Remaining") != string(rune('2'-i)) {
					t.Errorf("%s, request %d: %d %v", who, i, resp.StatusCode, resp.Header)
				}
				continue
			}
			if resp.StatusCode != 429 || body != "local_rate_limited" || resp.Header.Get("X-Limited") != "100%" || resp.Header.Get("X-Ratelimit-Remaining") != "0" ||
				resp.Header.Get("X-Ratelimit-Reset") == "0" || resp.Header.Get("Content-Type") != "text/plain" {
				t.Errorf("%s, request %d: %d %q %v", who, i, resp.StatusCode, body, resp.Header)
			}
		}
	}
	// The same said again gives nobody anything.
	w.limit(&localv3.LocalRateLimit{StatPrefix: "x"}, p)
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/"); resp.StatusCode != 429 {
		t.Errorf("a configuration that says the same filled the buckets: %d", resp.StatusCode)
	}
	w.stop()
	if got := w.log.all()[3]; got != "GET / 429 RL local_rate_limited v1 -" {
		t.Errorf("log line %q", got)
	}
	counts := map[string]float64{}
	families, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "waypoint_ratelimit_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			text := ""
			for _, l := range m.GetLabel() {
				text += l.GetValue() + " "
			}
			counts[text] = m.GetCounter().GetValue()
		}
	}
	if counts["marrow.ratelimit p ok "] != 6 || counts["marrow.ratelimit p over_limit "] != 5 {
		t.Errorf("counted %v", counts)
	}
}

// TestRateLimitAnswers: status and code are those of the configuration.
func TestRateLimitAnswers(t *testing.T) {
	p := perIdentity(t, 1)
	p.RateLimitedAsResourceExhausted = true
	p.Status = &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable}
	w := limiting(t, &localv3.LocalRateLimit{StatPrefix: "x"}, p)
	c := w.client(shopper, vip+":80", true)
	do(t, c, "GET", "/")
	if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != 503 {
		t.Errorf("status %d", resp.StatusCode)
	}
	resp, _ := do(t, c, "POST", "/", header("Content-Type", "application/grpc"))
	if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "8" || resp.Header.Get("Grpc-Message") != "local_rate_limited" {
		t.Errorf("gRPC: %d %v", resp.StatusCode, resp.Header)
	}
}

func TestObservedRateLimit(t *testing.T) {
	p := perIdentity(t, 1)
	p.FilterEnforced = nil
	p.RequestHeadersToAddWhenNotEnforced = []*corev3.HeaderValueOption{headerOption("x-over", "yes")}
	w := limiting(t, &localv3.LocalRateLimit{StatPrefix: "x"}, p)
	c := w.client(shopper, vip+":80", false)
	if resp, _ := do(t, c, "GET", "/"); resp.Header.Get("Saw-X-Over") != "" {
		t.Error("within the limit, and marked")
	}
	if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != 200 || resp.Header.Get("Saw-X-Over") != "yes" {
		t.Errorf("over the limit: %d %v", resp.StatusCode, resp.Header)
	}
}

// TestRateLimitOfRoutes: a route's own limit takes the place of its host's, and rate_limits come from routes too.
func TestRateLimitOfRoutes(t *testing.T) {
	one := &localv3.LocalRateLimit{
		StatPrefix: "x", TokenBucket: tokens(1000), FilterEnabled: hundred(), FilterEnforced: hundred(), AlwaysConsumeDefaultTokenBucket: wrapperspb.Bool(false),
		Descriptors: []*commonv3.LocalRateLimitDescriptor{{Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "route", Value: "slow"}}, TokenBucket: tokens(1)}},
	}
	slow := to("/slow", "v1", func(a *routev3.RouteAction) {
		a.RateLimits = []*routev3.RateLimit{{Actions: []*routev3.RateLimit_Action{generic("route", "slow")}}}
	})
	own := to("/own", "v1")
	own.TypedPerFilterConfig = map[string]*anypb.Any{limitFilter: pack(t, &localv3.LocalRateLimit{StatPrefix: "y", TokenBucket: tokens(2), FilterEnabled: hundred(), FilterEnforced: hundred()})}
	w := limiting(t, &localv3.LocalRateLimit{StatPrefix: "x"}, one, slow, own, to("/", "v1"))
	c := w.client(shopper, vip+":80", false)
	got := map[string]int{}
	for range 4 {
		for _, path := range []string{"/slow", "/own", "/"} {
			if resp, _ := do(t, c, "GET", path); resp.StatusCode == 200 {
				got[path]++
			}
		}
	}
	if got["/slow"] != 1 || got["/own"] != 2 || got["/"] != 4 {
		t.Errorf("passed %v", got)
	}
}

// TestRateLimitRefusedByName: a field that is not understood is refused, and what was in force stays.
func TestRateLimitRefusedByName(t *testing.T) {
	w := limiting(t, &localv3.LocalRateLimit{StatPrefix: "x"}, perIdentity(t, 1))
	c := w.client(shopper, vip+":80", false)
	do(t, c, "GET", "/")
	bad := perIdentity(t, 100)
	bad.LocalRateLimitPerDownstreamConnection = true
	own := open(t)
	own[limitFilter] = pack(t, bad)
	rejects := w.apply(routes(t, own, to("/", "v1")))
	if len(rejects) != 1 || !strings.Contains(rejects[0].Err.Error(), "local_rate_limit_per_downstream_connection") {
		t.Fatalf("rejects %v", rejects)
	}
	if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != 429 {
		t.Errorf("after a refused change: %d", resp.StatusCode)
	}
}

// service is a rate limit service that a test speaks for.
type service struct {
	rlsv3.UnimplementedRateLimitServiceServer
	mu    sync.Mutex
	asked []*rlsv3.RateLimitRequest
	say   func(context.Context, *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error)
}

func (s *service) ShouldRateLimit(ctx context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	s.mu.Lock()
	s.asked = append(s.asked, r)
	say := s.say
	s.mu.Unlock()
	return say(ctx, r)
}

func (s *service) set(say func(context.Context, *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.say = say
}

func answer(r *rlsv3.RateLimitResponse) func(context.Context, *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	return func(context.Context, *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) { return r, nil }
}

func overHTTP2(t *testing.T) func(*clusterv3.Cluster) {
	return func(c *clusterv3.Cluster) {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(t, &httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
			}},
		})}
	}
}

// asking is a world whose filter asks a service behind the node proxy of 10.0.0.9.
func asking(t *testing.T, change ...func(*globalv3.RateLimit)) (*world, *service) {
	t.Helper()
	s := &service{}
	srv := grpc.NewServer()
	rlsv3.RegisterRateLimitServiceServer(srv, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	p := &globalv3.RateLimit{
		Domain: "shop", Timeout: durationpb.New(2 * time.Second), EnableXRatelimitHeaders: globalv3.RateLimit_DRAFT_VERSION_03,
		RateLimitService: &ratelimitv3.RateLimitServiceConfig{
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcService:         &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "rls|x"}}},
		},
	}
	for _, f := range change {
		f(p)
	}
	w := basic(t)
	w.podTCP("10.0.0.9:8081", l.Addr().String(), "spiffe://td/ns/shop/sa/app")
	w.mustApply(cluster(t, "rls|x", overHTTP2(t)), endpoints("rls|x", "10.0.0.9:8081"))
	w.limit(p, &globalv3.RateLimitPerRoute{RateLimits: []*routev3.RateLimit{{Actions: []*routev3.RateLimit_Action{generic("policy", "p"), peerAction(t)}}}})
	return w, s
}

func TestGlobalRateLimit(t *testing.T) {
	w, s := asking(t)
	c := w.client(shopper, vip+":80", false)
	limit := &rlsv3.RateLimitResponse_RateLimit{RequestsPerUnit: 10, Unit: rlsv3.RateLimitResponse_RateLimit_MINUTE, Name: "ten"}
	status := func(code rlsv3.RateLimitResponse_Code, left uint32) []*rlsv3.RateLimitResponse_DescriptorStatus {
		return []*rlsv3.RateLimitResponse_DescriptorStatus{{Code: code, CurrentLimit: limit, LimitRemaining: left, DurationUntilReset: durationpb.New(30 * time.Second)}, {}}
	}
	s.set(answer(&rlsv3.RateLimitResponse{
		OverallCode: rlsv3.RateLimitResponse_OK, Statuses: status(rlsv3.RateLimitResponse_OK, 7),
		RequestHeadersToAdd:  []*corev3.HeaderValue{{Key: "x-class", Value: "gold"}, {Key: "host", Value: "evil"}, {Key: "bad name", Value: "x"}},
		ResponseHeadersToAdd: []*corev3.HeaderValue{{Key: "x-told", Value: "yes"}, {Key: "x-bad", Value: "a\r\nb"}},
	}))
	resp, _ := do(t, c, "GET", "/")
	for k, want := range map[string]string{
		"Saw-X-Class": "gold", "Saw-Host": "web", "X-Told": "yes", "X-Bad": "", "X-Ratelimit-Limit": `10, 10;w=60;name="ten"`,
		"X-Ratelimit-Remaining": "7", "X-Ratelimit-Reset": "30", "X-Envoy-Ratelimited": "",
	} {
		if got := resp.Header.Get(k); got != want {
			t.Errorf("%s: got %q, want %q", k, got, want)
		}
	}
	s.set(answer(&rlsv3.RateLimitResponse{
		OverallCode: rlsv3.RateLimitResponse_OVER_LIMIT, Statuses: status(rlsv3.RateLimitResponse_OVER_LIMIT, 0), RawBody: []byte("slow down"),
	}))
	resp, body := do(t, c, "GET", "/")
	if resp.StatusCode != 429 || body != "slow down" || resp.Header.Get("X-Envoy-Ratelimited") != "true" || resp.Header.Get("X-Ratelimit-Remaining") != "0" {
		t.Errorf("over the limit: %d %q %v", resp.StatusCode, body, resp.Header)
	}
	want := &rlsv3.RateLimitRequest{Domain: "shop", Descriptors: []*commonv3.RateLimitDescriptor{{
		Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "policy", Value: "p"}, {Key: "identity", Value: shopper}},
	}}}
	if len(s.asked) != 2 || !proto.Equal(s.asked[0], want) {
		t.Errorf("asked %v", s.asked)
	}
	w.stop()
	if got := w.log.all()[1]; got != "GET / 429 RL request_rate_limited v1 -" {
		t.Errorf("log line %q", got)
	}
}

// TestServiceFailures: a service that cannot say lets through, or refuses where it is asked to, within its time limit.
func TestServiceFailures(t *testing.T) {
	hang := func(ctx context.Context, _ *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	failures := map[string]func(context.Context, *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error){
		"an error": func(context.Context, *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
			return nil, context.Canceled
		},
		"nonsense": answer(&rlsv3.RateLimitResponse{}),
		"silence":  hang,
		"too much": answer(&rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK, RawBody: make([]byte, 1<<20)}),
	}
	for _, deny := range []bool{false, true} {
		w, s := asking(t, func(p *globalv3.RateLimit) {
			p.FailureModeDeny, p.Timeout = deny, durationpb.New(300*time.Millisecond)
			p.StatusOnError = &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable}
		})
		c := w.client(shopper, vip+":80", false)
		want := map[bool]int{false: 200, true: 503}[deny]
		for name, say := range failures {
			s.set(say)
			began := time.Now()
			if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != want {
				t.Errorf("%s, deny %v: %d", name, deny, resp.StatusCode)
			}
			if d := time.Since(began); d > 3*time.Second {
				t.Errorf("%s, deny %v: took %v", name, deny, d)
			}
		}
		w.mustApply(endpoints("rls|x"))
		if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != want {
			t.Errorf("no endpoints, deny %v: %d", deny, resp.StatusCode)
		}
		w.stop()
		if line := w.log.all()[0]; deny && line != "GET / 503 RLSE rate_limiter_error v1 -" {
			t.Errorf("log line %q", line)
		}
	}
}

func metadataKey(namespace, key string) *metadatav3.MetadataKey {
	return &metadatav3.MetadataKey{Key: namespace, Path: []*metadatav3.MetadataKey_PathSegment{{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: key}}}}
}

// TestRateLimitMetadata: what the service leaves behind is there for the filters after it.
func TestRateLimitMetadata(t *testing.T) {
	w, s := asking(t)
	m := manager(t)
	n := len(m.GetHttpFilters()) - 1
	base := &globalv3.RateLimit{
		Domain: "shop", Timeout: durationpb.New(2 * time.Second),
		RateLimitService: &ratelimitv3.RateLimitServiceConfig{
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcService:         &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "rls|x"}}},
		},
		RateLimits: []*routev3.RateLimit{{Actions: []*routev3.RateLimit_Action{generic("policy", "p")}}},
	}
	second := proto.CloneOf(base)
	second.RateLimits = []*routev3.RateLimit{{Actions: []*routev3.RateLimit_Action{{ActionSpecifier: &routev3.RateLimit_Action_Metadata{Metadata: &routev3.RateLimit_Action_MetaData{
		DescriptorKey: "class", MetadataKey: metadataKey("envoy.filters.http.ratelimit", "class"),
	}}}}}}
	m.HttpFilters = append(append([]*hcmv3.HttpFilter{}, m.GetHttpFilters()[:n]...), httpFilter(t, "first", base), httpFilter(t, "second", second), m.GetHttpFilters()[n])
	w.mustApply(internal(t, m), routes(t, nil, to("/", "v1")))
	left, err := structpb.NewStruct(map[string]any{"class": "gold"})
	if err != nil {
		t.Fatal(err)
	}
	s.set(answer(&rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK, DynamicMetadata: left}))
	do(t, w.client(shopper, vip+":80", false), "GET", "/")
	if len(s.asked) != 2 || s.asked[1].GetDescriptors()[0].GetEntries()[0].GetValue() != "gold" {
		t.Errorf("asked %v", s.asked)
	}
}
