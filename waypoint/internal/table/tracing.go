package table

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	detectorsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
	"github.com/marrowmesh/marrow/waypoint/internal/trace"
)

// Tracing is how the requests of a chain become spans.
type Tracing struct {
	*trace.Config
	Name     *Format // of the span; nil = the route's decorator
	Upstream *Format // of the span of an attempt; nil = by the cluster
	Tags     []TraceTag
}

// TraceTag is one attribute that the configuration adds.
type TraceTag struct {
	Key     string
	Header  string // canonical; the value is a request header's
	Value   *Format
	Env     string // the value is a variable's of this process
	Default string
}

// envoyMaxPath is how much of a path a span tells when the configuration does not say.
const envoyMaxPath = 256

// compileTracing compiles what traces a chain; nil = nothing does.
func compileTracing(p *hcmv3.HttpConnectionManager) (*Tracing, error) {
	byID, pack, err := requestIDUse(p)
	t := p.GetTracing()
	if err != nil || t == nil || t.GetProvider() == nil {
		return nil, err
	}
	if err := strict.Only(t, "client_sampling", "random_sampling", "overall_sampling", "max_path_tag_length", "custom_tags", "provider",
		"spawn_upstream_span", "operation", "upstream_operation", "no_context_propagation"); err != nil {
		return nil, err
	}
	out := &Tracing{Config: &trace.Config{
		Client: percent(t.GetClientSampling()), Random: percent(t.GetRandomSampling()), Overall: percent(t.GetOverallSampling()),
		ByRequestID: byID, PackReason: pack, Child: t.GetSpawnUpstreamSpan().GetValue(), MaxPath: envoyMaxPath,
	}}
	if v := t.GetMaxPathTagLength(); v != nil {
		out.MaxPath = int(min(v.GetValue(), 1<<16))
	}
	if err := compileProvider(t.GetProvider(), out.Config); err != nil {
		return nil, fmt.Errorf("provider %q: %w", t.GetProvider().GetName(), err)
	}
	if t.GetNoContextPropagation() {
		out.Inject = 0
	}
	for _, c := range t.GetCustomTags() {
		tag, err := compileTag(c)
		if err != nil {
			return nil, fmt.Errorf("custom tag %q: %w", c.GetTag(), err)
		}
		out.Tags = append(out.Tags, tag)
	}
	if t.GetOperation() != "" {
		if out.Name, err = CompileFormat(t.GetOperation()); err != nil {
			return nil, err
		}
	}
	if t.GetUpstreamOperation() != "" {
		out.Upstream, err = CompileFormat(t.GetUpstreamOperation())
	}
	return out, err
}

// requestIDUse says whether request ids draw for traces, and carry the decision.
func requestIDUse(p *hcmv3.HttpConnectionManager) (draw, pack bool, err error) {
	e := p.GetRequestIdExtension()
	if e == nil {
		return true, true, nil
	}
	u := &uuidv3.UuidRequestIdConfig{}
	if err := strict.Unpack(e.GetTypedConfig(), u, "pack_trace_reason", "use_request_id_for_trace_sampling"); err != nil {
		return false, false, fmt.Errorf("request_id_extension: %w", err)
	}
	is := func(v interface{ GetValue() bool }, set bool) bool { return !set || v.GetValue() }
	return is(u.GetUseRequestIdForTraceSampling(), u.GetUseRequestIdForTraceSampling() != nil), is(u.GetPackTraceReason(), u.GetPackTraceReason() != nil), nil
}

// percent is a share; absent is all.
func percent(p *typev3.Percent) match.Fraction {
	if p == nil {
		return match.Always
	}
	return match.Fraction(math.Round(min(max(p.GetValue(), 0), 100) * float64(match.Always) / 100))
}

func compileProvider(p *tracev3.Tracing_Http, c *trace.Config) error {
	u := p.GetTypedConfig().GetTypeUrl()
	switch u[strings.LastIndexByte(u, '/')+1:] {
	case "envoy.config.trace.v3.ZipkinConfig":
		z := &tracev3.ZipkinConfig{}
		if err := strict.Unpack(p.GetTypedConfig(), z, "collector_cluster", "collector_endpoint", "trace_id_128bit", "shared_span_context",
			"collector_endpoint_version", "collector_hostname", "trace_context_option", "collector_service"); err != nil {
			return err
		}
		return compileZipkin(z, c)
	case "envoy.config.trace.v3.OpenTelemetryConfig":
		o := &tracev3.OpenTelemetryConfig{}
		if err := strict.Unpack(p.GetTypedConfig(), o, "grpc_service", "http_service", "service_name", "resource_detectors", "max_cache_size",
			"set_telemetry_sdk_resource_attributes", "set_service_name_resource_attribute", "set_instrumentation_scope"); err != nil {
			return err
		}
		return compileOpenTelemetry(o, c)
	}
	return fmt.Errorf("type %s: %w", u, strict.ErrUnsupported)
}

func compileZipkin(z *tracev3.ZipkinConfig, c *trace.Config) error {
	if z.GetCollectorEndpointVersion() == tracev3.ZipkinConfig_HTTP_PROTO {
		return fmt.Errorf("collector_endpoint_version HTTP_PROTO: %w: use HTTP_JSON", strict.ErrUnsupported)
	}
	pr := &trace.Provider{
		Protocol: trace.ZipkinJSON, Cluster: z.GetCollectorCluster(), Path: z.GetCollectorEndpoint(), Host: z.GetCollectorHostname(), Timeout: exportTimeout,
	}
	if s := z.GetCollectorService(); s != nil {
		if err := httpService(s, pr); err != nil {
			return fmt.Errorf("collector_service: %w", err)
		}
	}
	if pr.Cluster == "" || !strings.HasPrefix(pr.Path, "/") {
		return errors.New("collector_cluster and collector_endpoint are needed")
	}
	c.Extract, c.Inject = trace.B3, trace.B3
	if z.GetTraceContextOption() == tracev3.ZipkinConfig_USE_B3_WITH_W3C_PROPAGATION {
		c.Extract, c.Inject = trace.B3|trace.W3C, trace.B3|trace.W3C
	}
	c.Shared = z.GetSharedSpanContext() == nil || z.GetSharedSpanContext().GetValue()
	c.Short = !z.GetTraceId_128Bit()
	c.Provider = finish(pr)
	return nil
}

// exportTimeout is the limit of one request to a collector when the configuration has none.
const exportTimeout = 5 * time.Second

func compileOpenTelemetry(o *tracev3.OpenTelemetryConfig, c *trace.Config) error {
	pr := &trace.Provider{Service: o.GetServiceName(), Timeout: exportTimeout, Resource: map[string]string{}}
	if pr.Service == "" {
		pr.Service = "unknown_service:envoy"
	}
	if v := o.GetSetTelemetrySdkResourceAttributes(); v == nil || v.GetValue() {
		pr.Resource["telemetry.sdk.language"], pr.Resource["telemetry.sdk.name"] = "go", "marrow"
	}
	for name, v := range map[string]*wrapperspb.BoolValue{
		"set_service_name_resource_attribute": o.GetSetServiceNameResourceAttribute(), "set_instrumentation_scope": o.GetSetInstrumentationScope(),
	} {
		if v != nil && !v.GetValue() {
			return fmt.Errorf("%s false: %w", name, strict.ErrUnsupported)
		}
	}
	for _, d := range o.GetResourceDetectors() {
		s := &detectorsv3.StaticConfigResourceDetectorConfig{}
		if err := strict.Unpack(d.GetTypedConfig(), s, "attributes"); err != nil {
			return fmt.Errorf("resource detector %q: %w: %w", d.GetName(), strict.ErrUnsupported, err)
		}
		maps.Copy(pr.Resource, s.GetAttributes())
	}
	switch g := o.GetGrpcService(); {
	case g != nil && o.GetHttpService() == nil:
		if err := strict.Only(g, "envoy_grpc", "timeout", "initial_metadata"); err != nil {
			return err
		}
		e := g.GetEnvoyGrpc()
		if err := strict.Only(e, "cluster_name", "authority"); err != nil {
			return err
		}
		pr.Protocol, pr.Cluster, pr.Host, pr.Path = trace.OTLPgRPC, e.GetClusterName(), e.GetAuthority(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
		pr.Header = http.Header{}
		for _, m := range g.GetInitialMetadata() {
			pr.Header.Add(m.GetKey(), m.GetValue())
		}
		if t := g.GetTimeout().AsDuration(); t > 0 {
			pr.Timeout = t
		}
	case g == nil && o.GetHttpService() != nil:
		pr.Protocol = trace.OTLPHTTP
		if err := httpService(o.GetHttpService(), pr); err != nil {
			return fmt.Errorf("http_service: %w", err)
		}
	default:
		return errors.New("one of grpc_service and http_service is needed")
	}
	if pr.Cluster == "" {
		return errors.New("no cluster leads to the collector")
	}
	c.Extract, c.Inject = trace.W3C, trace.W3C
	c.Provider = finish(pr)
	return nil
}

func httpService(s *corev3.HttpService, pr *trace.Provider) error {
	if err := strict.Only(s, "http_uri", "request_headers_to_add"); err != nil {
		return err
	}
	u, err := url.Parse(s.GetHttpUri().GetUri())
	if err != nil || !strings.HasPrefix(u.Path, "/") {
		return fmt.Errorf("http_uri.uri %q has no path", s.GetHttpUri().GetUri())
	}
	pr.Cluster, pr.Host, pr.Path = s.GetHttpUri().GetCluster(), u.Host, u.RequestURI()
	if t := s.GetHttpUri().GetTimeout().AsDuration(); t > 0 {
		pr.Timeout = t
	}
	pr.Header = http.Header{}
	for _, o := range s.GetRequestHeadersToAdd() {
		f, err := CompileFormat(o.GetHeader().GetValue())
		if err != nil || slices.ContainsFunc(f.parts, func(p part) bool { return p.name != "" }) {
			return fmt.Errorf("header %q has a command: %w", o.GetHeader().GetKey(), strict.ErrUnsupported)
		}
		pr.Header.Add(o.GetHeader().GetKey(), f.Render(nil, ""))
	}
	return nil
}

// finish completes a provider with the key by which equal ones are known.
func finish(p *trace.Provider) *trace.Provider {
	if p.Host == "" {
		p.Host = p.Cluster
	}
	p.Key = fmt.Sprintf("%d|%s|%s|%s|%v|%v|%s|%v", p.Protocol, p.Cluster, p.Host, p.Path, p.Header, p.Timeout, p.Service, p.Resource)
	return p
}

func compileTag(c *tracingv3.CustomTag) (TraceTag, error) {
	t := TraceTag{Key: c.GetTag()}
	if err := strict.Only(c, "tag", "literal", "environment", "request_header", "value"); err != nil {
		return t, err
	}
	if t.Key == "" {
		return t, errors.New("has no name")
	}
	var err error
	switch v := c.GetType().(type) {
	case *tracingv3.CustomTag_Literal_:
		t.Default = v.Literal.GetValue()
	case *tracingv3.CustomTag_Environment_:
		t.Env, t.Default = v.Environment.GetName(), v.Environment.GetDefaultValue()
	case *tracingv3.CustomTag_RequestHeader:
		t.Header, t.Default = v.RequestHeader.GetName(), v.RequestHeader.GetDefaultValue()
		if !strings.HasPrefix(t.Header, ":") {
			t.Header = http.CanonicalHeaderKey(t.Header)
		}
	case *tracingv3.CustomTag_Value:
		t.Value, err = CompileFormat(v.Value)
	default:
		err = fmt.Errorf("type %T: %w", v, strict.ErrUnsupported)
	}
	return t, err
}
