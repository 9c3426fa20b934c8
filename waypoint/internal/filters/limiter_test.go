package filters

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	globalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	setmetadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_metadata/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	celexpr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

func facts() *LimitFacts {
	q := get()
	q.Query, q.Header = "user=a%20b&empty=", http.Header{"X-User": {"alice", "bob"}}
	text := func(v string) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"b": structpb.NewStringValue(v)}})}}
	}
	return &LimitFacts{
		Request: q, Cluster: "web", Node: "wp.shop", Route: map[string]*structpb.Struct{"n": text("route")}, Dynamic: map[string]*structpb.Struct{"n": text("claim")},
	}
}

// parse reads rate_limits in text form.
func parse(t *testing.T, text string) *routev3.RateLimit {
	t.Helper()
	p := &routev3.RateLimit{}
	if err := prototext.Unmarshal([]byte(text), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestLimitsOfTheClient: requests are counted for the client, not for the proxies that are trusted to tell of it.
func TestLimitsOfTheClient(t *testing.T) {
	ls, err := CompileLimits([]*routev3.RateLimit{parse(t, `actions {remote_address {}} actions {masked_remote_address {v4_prefix_mask_len {value: 16}}}`)})
	if err != nil {
		t.Fatal(err)
	}
	f := facts()
	f.Request.Remote = netip.MustParseAddr("203.0.113.7")
	got := ls.Descriptors(f, 0)
	if len(got) != 1 || got[0].Entries[0].Value != "203.0.113.7" || got[0].Entries[1].Value != "203.0.0.0/16" {
		t.Errorf("%+v", got)
	}
}

// TestDescriptors goes through every action.
func TestDescriptors(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       string // entries "key=value;…", empty = no descriptor
	}{
		{"source cluster", `actions {source_cluster {}}`, "source_cluster=wp.shop"},
		{"destination cluster", `actions {destination_cluster {}}`, "destination_cluster=web"},
		{"header, first of several", `actions {request_headers {header_name: "x-user" descriptor_key: "u"}}`, "u=alice"},
		{"pseudo header", `actions {request_headers {header_name: ":method" descriptor_key: "m"}}`, "m=GET"},
		{"missing header", `actions {request_headers {header_name: "x-no" descriptor_key: "u"}}`, ""},
		{"missing header skipped", `actions {generic_key {descriptor_value: "v"}} actions {request_headers {header_name: "x-no" descriptor_key: "u" skip_if_absent: true}}`, "generic_key=v"},
		{"everything skipped", `actions {request_headers {header_name: "x-no" descriptor_key: "u" skip_if_absent: true}}`, ""},
		{"query", `actions {query_parameters {query_parameter_name: "user" descriptor_key: "q"}}`, "q=a b"},
		{"empty query", `actions {query_parameters {query_parameter_name: "empty" descriptor_key: "q"}}`, "q="},
		{"missing query", `actions {query_parameters {query_parameter_name: "no" descriptor_key: "q"}}`, ""},
		{"address", `actions {remote_address {}}`, "remote_address=10.1.2.3"},
		{"masked address", `actions {masked_remote_address {v4_prefix_mask_len {value: 16}}}`, "masked_remote_address=10.1.0.0/16"},
		{"generic key", `actions {generic_key {descriptor_key: "k" descriptor_value: "100%"}}`, "k=100%"},
		{"header match", `actions {header_value_match {descriptor_value: "v" headers {name: "x-user" present_match: true}}}`, "header_match=v"},
		{"header mismatch", `actions {header_value_match {descriptor_value: "v" headers {name: "x-no" present_match: true}}}`, ""},
		{"header expected not to match", `actions {header_value_match {descriptor_key: "k" descriptor_value: "v" expect_match {value: false} headers {name: "x-no" present_match: true}}}`, "k=v"},
		{"query match", `actions {query_parameter_value_match {descriptor_value: "v" query_parameters {name: "user" present_match: true}}}`, "query_match=v"},
		{"query mismatch", `actions {query_parameter_value_match {descriptor_value: "v" query_parameters {name: "no" present_match: true}}}`, ""},
		{"query expected not to match", `actions {query_parameter_value_match {descriptor_value: "v" expect_match {value: false} query_parameters {name: "no" present_match: true}}}`, "query_match=v"},
		{"claim", `actions {metadata {descriptor_key: "c" metadata_key {key: "n" path {key: "a"} path {key: "b"}}}}`, "c=claim"},
		{"route's metadata", `actions {metadata {descriptor_key: "c" source: ROUTE_ENTRY metadata_key {key: "n" path {key: "a"} path {key: "b"}}}}`, "c=route"},
		{"missing claim", `actions {metadata {descriptor_key: "c" metadata_key {key: "n" path {key: "no"}}}}`, ""},
		{"missing claim with a default", `actions {metadata {descriptor_key: "c" default_value: "none" metadata_key {key: "no"}}}`, "c=none"},
		{"in order", `actions {generic_key {descriptor_value: "1"}} actions {remote_address {}} actions {generic_key {descriptor_value: "2"}}`, "generic_key=1;remote_address=10.1.2.3;generic_key=2"},
		{"another stage", `stage {value: 1} actions {remote_address {}}`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ls, err := CompileLimits([]*routev3.RateLimit{parse(t, tc.text)})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range ls.Descriptors(facts(), 0) {
				for _, e := range d.Entries {
					got = append(got, e.Key+"="+e.Value)
				}
			}
			if strings.Join(got, ";") != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestLimitsThatAreRefused: what is not understood is named.
func TestLimitsThatAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no actions":      ``,
		"disable_key":     `disable_key: "x" actions {remote_address {}}`,
		"stage 11":        `stage {value: 11} actions {remote_address {}}`,
		"stream done":     `apply_on_stream_done: true actions {remote_address {}}`,
		"hits_addend":     `hits_addend {number {value: 2}} actions {remote_address {}}`,
		"old metadata":    `actions {dynamic_metadata {descriptor_key: "x" metadata_key {key: "n"}}}`,
		"other metadata":  `actions {metadata {descriptor_key: "x" source: CLUSTER_ENTRY metadata_key {key: "n"}}}`,
		"format":          `actions {generic_key {descriptor_value: "x" default_value: "y"}}`,
		"no header":       `actions {header_value_match {descriptor_value: "x"}}`,
		"nothing":         `actions {}`,
		"extension":       `actions {extension {name: "x"}}`,
		"address matcher": `actions {remote_address_match {descriptor_value: "x"}}`,
		"too long a mask": `actions {masked_remote_address {v4_prefix_mask_len {value: 33}}}`,
	} {
		if _, err := CompileLimits([]*routev3.RateLimit{parse(t, text)}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func bucket(n uint32, every time.Duration) *typev3.TokenBucket {
	return &typev3.TokenBucket{MaxTokens: n, TokensPerFill: wrapperspb.UInt32(n), FillInterval: durationpb.New(every)}
}

func all() *corev3.RuntimeFractionalPercent {
	return &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
}

// shopLimit counts by a fixed descriptor and by user.
func shopLimit() *localv3.LocalRateLimit {
	generic := func(k, v string) *routev3.RateLimit_Action {
		return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{GenericKey: &routev3.RateLimit_Action_GenericKey{DescriptorKey: k, DescriptorValue: v}}}
	}
	user := &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_RequestHeaders_{RequestHeaders: &routev3.RateLimit_Action_RequestHeaders{HeaderName: "x-user", DescriptorKey: "user"}}}
	return &localv3.LocalRateLimit{
		StatPrefix: "x", FilterEnabled: all(), FilterEnforced: all(), TokenBucket: bucket(1000, time.Second),
		AlwaysConsumeDefaultTokenBucket: wrapperspb.Bool(false), MaxDynamicDescriptors: wrapperspb.UInt32(50),
		RateLimits: []*routev3.RateLimit{
			{Actions: []*routev3.RateLimit_Action{generic("policy", "all")}},
			{Actions: []*routev3.RateLimit_Action{generic("policy", "per-user"), user}},
		},
		Descriptors: []*commonv3.LocalRateLimitDescriptor{
			{Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "policy", Value: "all"}}, TokenBucket: bucket(100, time.Second)},
			{Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "policy", Value: "per-user"}, {Key: "user"}}, TokenBucket: bucket(2, time.Minute)},
		},
	}
}

func local(t *testing.T, p *localv3.LocalRateLimit) *LocalLimit {
	t.Helper()
	l, err := compileLocalLimit(p, true)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDraws(t *testing.T) {
	names := func(ds []Draw) (out []string) {
		for _, d := range ds {
			out = append(out, d.Name)
		}
		return out
	}
	l := local(t, shopLimit())
	ds := l.Draws(facts(), RouteLimits{}, nil)
	if !slices.Equal(names(ds), []string{"per-user", "all"}) {
		t.Errorf("draws %v, want the slower first and no default", names(ds))
	}
	if ds[0].Key == "" || ds[1].Key != "" || ds[0].Keep != 50 {
		t.Errorf("keys %q and %q, keep %d", ds[0].Key, ds[1].Key, ds[0].Keep)
	}
	other := facts()
	other.Request.Header.Set("X-User", "carol")
	if l.Draws(other, RouteLimits{}, nil)[0].Key == ds[0].Key {
		t.Error("two users are counted as one")
	}
	p := shopLimit()
	p.AlwaysConsumeDefaultTokenBucket = nil
	if got := names(local(t, p).Draws(facts(), RouteLimits{}, nil)); !slices.Equal(got, []string{"per-user", "all", ""}) {
		t.Errorf("draws %v, want the default at last", got)
	}
	p = shopLimit()
	p.FilterEnabled = nil
	if got := local(t, p).Draws(facts(), RouteLimits{}, nil); got != nil {
		t.Errorf("a filter that is not enabled draws %v", got)
	}
	p = shopLimit()
	p.RateLimits = p.GetRateLimits()[:1]
	p.Descriptors = p.GetDescriptors()[1:]
	if got := names(local(t, p).Draws(facts(), RouteLimits{}, nil)); !slices.Equal(got, []string{""}) {
		t.Errorf("a request that fits no descriptor draws %v", got)
	}
}

// TestRouteLimits: whose rate_limits count.
func TestRouteLimits(t *testing.T) {
	one := func(v string) Limits {
		ls, err := CompileLimits([]*routev3.RateLimit{parse(t, `actions {generic_key {descriptor_key: "policy" descriptor_value: "`+v+`"}}`)})
		if err != nil {
			t.Fatal(err)
		}
		return ls
	}
	for _, tc := range []struct {
		name string
		in   RouteLimits
		how  RouteInclusion
		want int
	}{
		{"the host's where the route has none", RouteLimits{Host: one("h")}, HostUnlessRoute, 1},
		{"the route's instead of the host's", RouteLimits{Route: one("r"), Host: one("h")}, HostUnlessRoute, 1},
		{"both", RouteLimits{Route: one("r"), Host: one("h")}, HostToo, 2},
		{"both, as the older field says", RouteLimits{Route: one("r"), Host: one("h"), IncludeHost: true}, HostUnlessRoute, 2},
		{"never the host's", RouteLimits{Host: one("h")}, HostNever, 0},
	} {
		if got := tc.in.descriptors(facts(), 0, tc.how); len(got) != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestLocalLimitRefuses(t *testing.T) {
	for name, change := range map[string]func(*localv3.LocalRateLimit){
		"no name":        func(p *localv3.LocalRateLimit) { p.StatPrefix = "" },
		"no bucket":      func(p *localv3.LocalRateLimit) { p.TokenBucket = nil },
		"per connection": func(p *localv3.LocalRateLimit) { p.LocalRateLimitPerDownstreamConnection = true },
		"shared":         func(p *localv3.LocalRateLimit) { p.LocalClusterRateLimit = &commonv3.LocalClusterRateLimit{} },
		"twice":          func(p *localv3.LocalRateLimit) { p.Descriptors[1] = p.GetDescriptors()[0] },
		"no entries":     func(p *localv3.LocalRateLimit) { p.Descriptors[0].Entries = nil },
		"without tokens": func(p *localv3.LocalRateLimit) { p.Descriptors[0].TokenBucket = nil },
		"too many keys":  func(p *localv3.LocalRateLimit) { p.MaxDynamicDescriptors = wrapperspb.UInt32(1 << 21) },
		"format in header": func(p *localv3.LocalRateLimit) {
			p.ResponseHeadersToAdd = []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "a", Value: "%REQ(b)%"}}}
		},
		"stage of its own": func(p *localv3.LocalRateLimit) { p.RateLimits[0].Stage = wrapperspb.UInt32(0) },
	} {
		p := shopLimit()
		change(p)
		if _, err := compileLocalLimit(p, true); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := compileLocalLimit(&localv3.LocalRateLimit{StatPrefix: "x"}, false); err != nil {
		t.Errorf("a filter that is to be filled by routes: %v", err)
	}
}

func shopService() *globalv3.RateLimit {
	return &globalv3.RateLimit{Domain: "d", RateLimitService: &ratelimitv3.RateLimitServiceConfig{
		TransportApiVersion: corev3.ApiVersion_V3,
		GrpcService:         &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "rls"}}},
	}}
}

func TestGlobalQuestions(t *testing.T) {
	p := shopService()
	p.RateLimits = []*routev3.RateLimit{parse(t, `actions {remote_address {}} limit {dynamic_metadata {metadata_key {key: "l" path {key: "x"}}}}`)}
	g, err := compileGlobalLimit(p)
	if err != nil {
		t.Fatal(err)
	}
	if g.Timeout != 20*time.Millisecond || g.Failed != 500 || g.Deny(nil) || !g.Enforced(nil) || g.Answer.Status != 429 {
		t.Errorf("defaults are not Envoy's: %+v", g)
	}
	f := facts()
	s := &SetMetadata{}
	set, err := structpb.NewStruct(map[string]any{"x": map[string]any{"requests_per_unit": 5, "unit": "MINUTE"}})
	if err != nil {
		t.Fatal(err)
	}
	if s, err = compileSetMetadata(&setmetadatav3.Config{Metadata: []*setmetadatav3.Metadata{{MetadataNamespace: "l", Value: set}}}); err != nil {
		t.Fatal(err)
	}
	s.Apply(f.Dynamic)
	q := g.Ask(f, RouteLimits{}, nil, nil)
	if q.Domain != "d" || len(q.Descriptors) != 1 || q.Descriptors[0].Limit == nil || *q.Descriptors[0].Limit != (Quota{5, typev3.RateLimitUnit_MINUTE}) {
		t.Errorf("question %+v", q)
	}
	by, err := compileGlobalRoute(&globalv3.RateLimitPerRoute{Domain: "other", RateLimits: []*routev3.RateLimit{parse(t, `actions {source_cluster {}}`)}})
	if err != nil {
		t.Fatal(err)
	}
	if q := g.Ask(f, RouteLimits{}, by, nil); q.Domain != "other" || q.Descriptors[0].Entries[0].Key != "source_cluster" {
		t.Errorf("question changed by the route: %+v", q)
	}
	f.Cluster = ""
	if q := g.Ask(f, RouteLimits{}, nil, nil); len(q.Descriptors) != 0 {
		t.Errorf("asked about a request that goes nowhere: %+v", q)
	}
}

func TestGlobalLimitRefuses(t *testing.T) {
	for name, change := range map[string]func(*globalv3.RateLimit){
		"no domain":     func(p *globalv3.RateLimit) { p.Domain = "" },
		"internal only": func(p *globalv3.RateLimit) { p.RequestType = "internal" },
		"no service":    func(p *globalv3.RateLimit) { p.RateLimitService = nil },
		"old transport": func(p *globalv3.RateLimit) { p.RateLimitService.TransportApiVersion = corev3.ApiVersion_V2 }, //nolint:staticcheck // that is the point
		"google's grpc": func(p *globalv3.RateLimit) {
			p.RateLimitService.GrpcService = &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_GoogleGrpc_{GoogleGrpc: &corev3.GrpcService_GoogleGrpc{}}}
		},
		"no timeout": func(p *globalv3.RateLimit) { p.Timeout = durationpb.New(0) },
	} {
		p := shopService()
		change(p)
		if _, err := compileGlobalLimit(p); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestLimitOverrides: a route's limit replaces the filter's; a route's change of a global filter does not.
func TestLimitOverrides(t *testing.T) {
	g, err := compileGlobalLimit(shopService())
	if err != nil {
		t.Fatal(err)
	}
	a, err := anypb.New(&globalv3.RateLimitPerRoute{Domain: "other"})
	if err != nil {
		t.Fatal(err)
	}
	o, err := CompileOverrides(map[string]*anypb.Any{"g": a})
	if err != nil {
		t.Fatal(err)
	}
	if Effective(Named{"g", g}, o) != HTTP(g) || GlobalChange("g", o) == nil || GlobalChange("h", o) != nil {
		t.Error("the change took the filter's place, or was not found")
	}
	b, err := anypb.New(shopLimit())
	if err != nil {
		t.Fatal(err)
	}
	o, err = CompileOverrides(map[string]*anypb.Any{"l": b})
	if err != nil {
		t.Fatal(err)
	}
	o.Place("here")
	got, ok := Effective(Named{"l", &LocalLimit{}}, o).(*LocalLimit)
	if !ok || !strings.HasPrefix(got.ID, "here|l|") {
		t.Errorf("got %+v", got)
	}
}

func lit(v any) *celexpr.Expr {
	c := &celexpr.Constant{}
	switch v := v.(type) {
	case string:
		c.ConstantKind = &celexpr.Constant_StringValue{StringValue: v}
	case []byte:
		c.ConstantKind = &celexpr.Constant_BytesValue{BytesValue: v}
	case bool:
		c.ConstantKind = &celexpr.Constant_BoolValue{BoolValue: v}
	case int:
		c.ConstantKind = &celexpr.Constant_Int64Value{Int64Value: int64(v)}
	}
	return &celexpr.Expr{ExprKind: &celexpr.Expr_ConstExpr{ConstExpr: c}}
}

func ident(n string) *celexpr.Expr {
	return &celexpr.Expr{ExprKind: &celexpr.Expr_IdentExpr{IdentExpr: &celexpr.Expr_Ident{Name: n}}}
}

func sel(of *celexpr.Expr, f string) *celexpr.Expr {
	return &celexpr.Expr{ExprKind: &celexpr.Expr_SelectExpr{SelectExpr: &celexpr.Expr_Select{Operand: of, Field: f}}}
}

func call(f string, args ...*celexpr.Expr) *celexpr.Expr {
	return &celexpr.Expr{ExprKind: &celexpr.Expr_CallExpr{CallExpr: &celexpr.Expr_Call{Function: f, Args: args}}}
}

func method(f string, on *celexpr.Expr, args ...*celexpr.Expr) *celexpr.Expr {
	return &celexpr.Expr{ExprKind: &celexpr.Expr_CallExpr{CallExpr: &celexpr.Expr_Call{Function: f, Target: on, Args: args}}}
}

func dict(kv ...*celexpr.Expr) *celexpr.Expr {
	s := &celexpr.Expr_CreateStruct{}
	for i := 0; i < len(kv); i += 2 {
		s.Entries = append(s.Entries, &celexpr.Expr_CreateStruct_Entry{KeyKind: &celexpr.Expr_CreateStruct_Entry_MapKey{MapKey: kv[i]}, Value: kv[i+1]})
	}
	return &celexpr.Expr{ExprKind: &celexpr.Expr_StructExpr{StructExpr: s}}
}

func array(es ...*celexpr.Expr) *celexpr.Expr {
	return &celexpr.Expr{ExprKind: &celexpr.Expr_ListExpr{ListExpr: &celexpr.Expr_CreateList{Elements: es}}}
}

func TestExpressions(t *testing.T) {
	who := call("_[_]", ident("filter_state"), lit("io.istio.peer_principal"))
	user := call("_[_]", sel(ident("request"), "headers"), lit("x-user"))
	no := call("_[_]", sel(ident("request"), "headers"), lit("x-no"))
	path := sel(ident("request"), "url_path")
	yes, never := lit(true), lit(false)
	for _, tc := range []struct {
		name string
		e    *celexpr.Expr
		want string // "error" = none
	}{
		{"identity", who, "spiffe://td/ns/shop/sa/client"},
		{"identity is bytes", call("_==_", who, lit([]byte("spiffe://td/ns/shop/sa/client"))), "true"},
		{"bytes are no string", call("_==_", who, lit("spiffe://td/ns/shop/sa/client")), "error"},
		{"from", call("_&&_", call("_>=_", who, lit([]byte("spiffe://td/ns/shop/"))), call("_<_", who, lit([]byte("spiffe://td/ns/shop0")))), "true"},
		{"list", call("@in", who, array(lit([]byte("x")), lit([]byte("spiffe://td/ns/shop/sa/client")))), "true"},
		{"not in list", call("@in", path, array(lit("x"))), "false"},
		{"headers", user, "alice,bob"},
		{"missing header", no, "error"},
		{"or passes over an error", call("_||_", call("_==_", no, lit("x")), yes), "true"},
		{"or without help", call("_||_", call("_==_", no, lit("x")), never), "error"},
		{"and passes over an error", call("_&&_", call("_==_", no, lit("x")), never), "false"},
		{"not", call("!_", never), "true"},
		{"choice", call("_?_:_", call("_==_", path, lit("/a/b")), lit("left"), lit("right")), "left"},
		{"starts", method("startsWith", path, lit("/a")), "true"},
		{"ends", method("endsWith", path, lit("/a")), "false"},
		{"contains", method("contains", path, lit("a/")), "true"},
		{"matches anywhere", method("matches", path, lit("b$")), "true"},
		{"map", call("_[_]", dict(yes, lit("match")), call("_==_", sel(ident("request"), "method"), lit("GET"))), "match"},
		{"no such key", call("_[_]", dict(yes, lit("match")), never), "error"},
		{"port", sel(ident("destination"), "port"), "80"},
		{"numbers", call("_>_", sel(ident("source"), "port"), lit(3)), "true"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, err := compileExpr(tc.e, 0)
			if err != nil {
				t.Fatal(err)
			}
			got, ok := printed(e(facts().Request))
			if !ok {
				got = "error"
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	deep := lit(true)
	for range 100 {
		deep = call("!_", deep)
	}
	for name, e := range map[string]*celexpr.Expr{
		"function": call("size", path), "attribute": sel(ident("response"), "code"), "nothing": {}, "unknown state": call("_[_]", ident("filter_state"), lit("x")),
		"too deep": deep, "a list alone": array(), "bad pattern": method("matches", path, lit("(")), "computed key": call("_[_]", ident("filter_state"), path),
	} {
		if _, err := compileExpr(e, 0); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestExprAction(t *testing.T) {
	a, err := anypb.New(&exprv3.Descriptor{DescriptorKey: "who", ExprSpecifier: &exprv3.Descriptor_Parsed{Parsed: call("_[_]", ident("filter_state"), lit("io.istio.peer_principal"))}})
	if err != nil {
		t.Fatal(err)
	}
	ls, err := CompileLimits([]*routev3.RateLimit{{Actions: []*routev3.RateLimit_Action{{ActionSpecifier: &routev3.RateLimit_Action_Extension{Extension: &corev3.TypedExtensionConfig{Name: "e", TypedConfig: a}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	f := facts()
	if ds := ls.Descriptors(f, 0); len(ds) != 1 || ds[0].Entries[0] != (Entry{"who", "spiffe://td/ns/shop/sa/client"}) {
		t.Errorf("got %v", ds)
	}
	f.Request.Principal = ""
	if ds := ls.Descriptors(f, 0); len(ds) != 0 {
		t.Errorf("nobody was counted as somebody: %v", ds)
	}
	text, err := anypb.New(&exprv3.Descriptor{DescriptorKey: "k", ExprSpecifier: &exprv3.Descriptor_Text{Text: "request.path"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exprAction(&corev3.TypedExtensionConfig{Name: "e", TypedConfig: text}); !errors.Is(err, strict.ErrUnsupported) {
		t.Errorf("a text was taken: %v", err)
	}
}

func FuzzLimits(f *testing.F) {
	seed, _ := proto.Marshal(shopLimit())
	f.Add(seed)
	f.Fuzz(func(_ *testing.T, b []byte) {
		p := &localv3.LocalRateLimit{}
		if proto.Unmarshal(b, p) != nil {
			return
		}
		if l, err := compileLocalLimit(p, true); err == nil {
			l.Draws(facts(), RouteLimits{}, func(uint64) uint64 { return 0 })
		}
	})
}
