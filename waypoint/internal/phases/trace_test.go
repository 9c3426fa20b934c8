package phases_test

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/internal/testkit/fakecollector"
)

// collectors makes clusters otlp (HTTP/2) and http lead to c.
func (w *world) collectors(c *fakecollector.Collector) {
	at := func(name, addr, real string, o *httpv3.HttpProtocolOptions_ExplicitHttpConfig) *clusterv3.Cluster {
		ap := netip.MustParseAddrPort(addr)
		w.mu.Lock()
		w.hops[ap] = real
		w.mu.Unlock()
		return &clusterv3.Cluster{
			Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(2e9),
			TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(w.t, &httpv3.HttpProtocolOptions{
				UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: o},
			})},
			LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
					SocketAddress: &corev3.SocketAddress{Address: ap.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(ap.Port())}},
				}}}},
			}}}}},
		}
	}
	w.mustApply(at("otlp", "10.9.9.9:4317", c.GRPC, &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
	}), at("http", "10.9.9.9:4318", c.HTTP, &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
	}))
}

func (w *world) traced(p proto.Message, change ...func(*hcmv3.HttpConnectionManager_Tracing)) {
	m := manager(w.t)
	m.Tracing = &hcmv3.HttpConnectionManager_Tracing{
		Provider:       &tracev3.Tracing_Http{Name: "tracer", ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: pack(w.t, p)}},
		RandomSampling: &typev3.Percent{Value: 100},
		CustomTags: []*tracingv3.CustomTag{
			{Tag: "lit", Type: &tracingv3.CustomTag_Literal_{Literal: &tracingv3.CustomTag_Literal{Value: "l"}}},
			{Tag: "head", Type: &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{Name: "x-user", DefaultValue: "nobody"}}},
			{Tag: "env", Type: &tracingv3.CustomTag_Environment_{Environment: &tracingv3.CustomTag_Environment{Name: "POD", DefaultValue: "d"}}},
			{Tag: "val", Type: &tracingv3.CustomTag_Value{Value: "%PROTOCOL% %ROUTE_NAME%"}},
		},
	}
	for _, f := range change {
		f(m.GetTracing())
	}
	w.mustApply(internal(w.t, m))
}

func otlpGRPC() *tracev3.OpenTelemetryConfig {
	return &tracev3.OpenTelemetryConfig{ServiceName: "wp.shop", GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
		EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "otlp", Authority: "collector"},
	}}}
}

func otlpHTTP() *tracev3.OpenTelemetryConfig {
	return &tracev3.OpenTelemetryConfig{ServiceName: "wp.shop", HttpService: &corev3.HttpService{HttpUri: &corev3.HttpUri{
		Uri: "http://collector/v1/traces", HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "http"}, Timeout: durationpb.New(1e9),
	}}}
}

func zipkin() *tracev3.ZipkinConfig {
	return &tracev3.ZipkinConfig{
		CollectorCluster: "http", CollectorEndpoint: "/api/v2/spans", TraceId_128Bit: true, SharedSpanContext: wrapperspb.Bool(false),
		CollectorEndpointVersion: tracev3.ZipkinConfig_HTTP_JSON, TraceContextOption: tracev3.ZipkinConfig_USE_B3_WITH_W3C_PROPAGATION,
	}
}

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
)

func TestTraces(t *testing.T) {
	for name, c := range map[string]struct {
		provider proto.Message
		send     func(*http.Request)
		protocol string
		told     func(http.Header) string // span id that the upstream was told
	}{
		"OTLP by gRPC": {otlpGRPC(), header("Traceparent", "00-"+traceID+"-"+spanID+"-01"), "grpc", func(h http.Header) string { return strings.Split(h.Get("Saw-Traceparent"), "-")[2] }},
		"OTLP by HTTP": {otlpHTTP(), header("Traceparent", "00-"+traceID+"-"+spanID+"-01"), "http", func(h http.Header) string { return strings.Split(h.Get("Saw-Traceparent"), "-")[2] }},
		"Zipkin":       {zipkin(), header("B3", traceID+"-"+spanID+"-1"), "zipkin", func(h http.Header) string { return h.Get("Saw-X-B3-Spanid") }},
		"Zipkin, W3C":  {zipkin(), header("Traceparent", "00-"+traceID+"-"+spanID+"-01"), "zipkin", func(h http.Header) string { return h.Get("Saw-X-B3-Spanid") }},
	} {
		t.Run(name, func(t *testing.T) {
			r := to("/", "v1")
			r.Decorator = &routev3.Decorator{Operation: "web:80/*"}
			w := basic(t, r)
			col := fakecollector.New(t)
			w.collectors(col)
			w.traced(c.provider)
			n := uint64(100)
			w.random = func(uint64) uint64 { n++; return n }
			resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/a?b=c", c.send, header("X-User", "ann"))
			s := col.Wait(t, 1)[0]
			want := map[string]string{
				"component": "proxy", "http.url": "http://web/a?b=c", "http.method": "GET", "http.status_code": "200", "response_flags": "-", "upstream_cluster": "v1",
				"guid:x-request-id": "id-1", "node_id": "wp-1", "lit": "l", "head": "ann", "env": "value of POD", "val": "HTTP/1.1 v1", "http.protocol": "HTTP/1.1",
				"istio.source_workload": "client", "istio.destination_workload": "v1", "istio.destination_namespace": "shop", "downstream_cluster": "-",
			}
			for k, v := range want {
				if s.Tags[k] != v {
					t.Errorf("%s: got %q, want %q", k, s.Tags[k], v)
				}
			}
			if s.Protocol != c.protocol || s.Trace != traceID || s.Parent != spanID || s.Name != "web:80/*" || s.Error || !strings.Contains(s.Kind, "SERVER") || c.protocol != "zipkin" && s.Service != "wp.shop" {
				t.Errorf("got %+v", s)
			}
			if told := c.told(resp.Header); told != s.ID {
				t.Errorf("the upstream was told of span %q, the span is %q", told, s.ID)
			}
			// What the waypoint refuses is in the trace too.
			w.mustApply(routes(t, map[string]*anypb.Any{"marrow.rbac.deny": pack(t, allow(nil, "spiffe://td/ns/x/sa/y"))}, r))
			do(t, w.client(shopper, vip+":80", false), "GET", "/b", c.send)
			if s := col.Wait(t, 2)[1]; s.Tags["http.status_code"] != "403" || s.Tags["upstream_address"] != "" || s.Error {
				t.Errorf("refused: %+v", s)
			}
		})
	}
}

func TestTraceAttempts(t *testing.T) {
	w := basic(t, to("/", "v1", retry("5xx", 2)))
	w.pod("10.0.0.1:8080", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Saw", r.Header.Get("Traceparent"))
		rw.WriteHeader(503)
	}))
	col := fakecollector.New(t)
	w.collectors(col)
	w.traced(otlpGRPC(), func(p *hcmv3.HttpConnectionManager_Tracing) { p.SpawnUpstreamSpan = wrapperspb.Bool(true) })
	n := uint64(100)
	w.random = func(uint64) uint64 { n++; return n }
	resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/", header("Traceparent", "00-"+traceID+"-"+spanID+"-01"))
	all := col.Wait(t, 4)
	i := slices.IndexFunc(all, func(s fakecollector.Span) bool { return strings.Contains(s.Kind, "SERVER") })
	if len(all) != 4 || i < 0 {
		t.Fatalf("want a server's span and three attempts: %+v", all)
	}
	server, last := all[i], ""
	for _, s := range slices.Delete(slices.Clone(all), i, i+1) {
		if s.Parent != server.ID || s.Trace != traceID || !strings.Contains(s.Kind, "CLIENT") || s.Name != "router v1 egress" {
			t.Errorf("attempt %+v", s)
		}
		last = s.ID
	}
	if told := strings.Split(resp.Header.Get("Saw"), "-"); len(told) != 4 || told[2] != last {
		t.Errorf("the last attempt told %v, its span is %s", told, last)
	}
	if !server.Error {
		t.Errorf("a 503 is an error: %+v", server)
	}
}

func TestTraceNotSampled(t *testing.T) {
	w := basic(t)
	col := fakecollector.New(t)
	w.collectors(col)
	w.traced(otlpGRPC(), func(p *hcmv3.HttpConnectionManager_Tracing) { p.RandomSampling = &typev3.Percent{Value: 0} })
	c := w.client(shopper, vip+":80", false)
	const uuid = "00000001-0000-4000-8000-000000000000"
	resp, _ := do(t, c, "GET", "/", header("X-Request-Id", uuid))
	if got := resp.Header.Get("Saw-Traceparent"); !strings.HasSuffix(got, "-00") || resp.Header.Get("Saw-X-Request-Id") != uuid {
		t.Errorf("told %q, request id %q", got, resp.Header.Get("Saw-X-Request-Id"))
	}
	resp, _ = do(t, c, "GET", "/", header("X-Request-Id", uuid), header("X-Envoy-Force-Trace", "true"))
	if got := resp.Header.Get("Saw-Traceparent"); !strings.HasSuffix(got, "-01") || resp.Header.Get("Saw-X-Request-Id") != "00000001-0000-a000-8000-000000000000" {
		t.Errorf("told %q, request id %q", got, resp.Header.Get("Saw-X-Request-Id"))
	}
	if all := col.Wait(t, 1); len(all) != 1 {
		t.Errorf("%d spans", len(all))
	}
	// Without a tracer, headers go through as they are.
	w.mustApply(internal(t, manager(t)))
	resp, _ = do(t, w.client(shopper, vip+":80", false), "GET", "/", header("Traceparent", "any"), header("B3", "0"))
	if resp.Header.Get("Saw-Traceparent") != "any" || resp.Header.Get("Saw-B3") != "0" {
		t.Errorf("got %v", resp.Header)
	}
}

func TestTracingIsRefusedByName(t *testing.T) {
	w := newWorld(t)
	for want, p := range map[string]proto.Message{
		"HTTP_PROTO":              &tracev3.ZipkinConfig{CollectorCluster: "c", CollectorEndpoint: "/", CollectorEndpointVersion: tracev3.ZipkinConfig_HTTP_PROTO},
		"DatadogConfig":           &tracev3.DatadogConfig{CollectorCluster: "c"},
		"one of grpc_service":     &tracev3.OpenTelemetryConfig{},
		"sampler":                 &tracev3.OpenTelemetryConfig{Sampler: &corev3.TypedExtensionConfig{Name: "s"}},
		"collector_cluster and":   &tracev3.ZipkinConfig{CollectorCluster: "c"},
		"resource detector \"d\"": &tracev3.OpenTelemetryConfig{ResourceDetectors: []*corev3.TypedExtensionConfig{{Name: "d", TypedConfig: pack(t, &tracev3.DatadogConfig{})}}},
	} {
		m := manager(t)
		m.Tracing = &hcmv3.HttpConnectionManager_Tracing{Provider: &tracev3.Tracing_Http{Name: "x", ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: pack(t, p)}}}
		rejects := w.apply(internal(t, m))
		if len(rejects) != 1 || !strings.Contains(rejects[0].Err.Error(), want) {
			t.Errorf("%s: %v", want, rejects)
		}
	}
}
