package waypoint

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshapi "istio.io/api/mesh/v1alpha1"
	telemetryapi "istio.io/api/telemetry/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
)

// defaultSampling is Istio's share of traced requests, in percent.
const defaultSampling = 1.0

// spec is what the Telemetry objects of a service say together.
type spec struct {
	provider string
	sampling *float64
	off      bool
	byID     *bool
	istio    bool
	silent   bool // headers are left as they are
	tags     map[string]*telemetryapi.Tracing_CustomTag
	owner    *telemetryv1.Telemetry
}

func (d *derivation) tracingSpec(s *Service) spec {
	out := spec{istio: true}
	if names := d.in.Mesh.Config.GetDefaultProviders().GetTracing(); len(names) > 0 {
		out.provider = names[0]
	}
	for _, t := range d.telemetryFor(s) {
		for _, e := range t.Spec.GetTracing() {
			if d.countsHere(e.GetMatch().GetMode()) {
				out.merge(t, e)
			}
		}
	}
	return out
}

func (sp *spec) merge(t *telemetryv1.Telemetry, e *telemetryapi.Tracing) {
	sp.owner = t
	if p := e.GetProviders(); len(p) > 0 {
		sp.provider = p[0].GetName()
	}
	if v := e.GetRandomSamplingPercentage(); v != nil {
		n := v.GetValue()
		sp.sampling = &n
	}
	if v := e.GetDisableSpanReporting(); v != nil {
		sp.off = v.GetValue()
	}
	if v := e.GetUseRequestIdForTraceSampling(); v != nil {
		b := v.GetValue()
		sp.byID = &b
	}
	if v := e.GetEnableIstioTags(); v != nil {
		sp.istio = v.GetValue()
	}
	if v := e.GetDisableContextPropagation(); v != nil {
		sp.silent = v.GetValue()
	}
	if e.GetCustomTags() != nil { // a later set takes the place of the one before
		sp.tags = e.GetCustomTags()
	}
}

// trace makes a chain's requests spans, as the settings and Telemetry objects say, and names its routes for them.
func (d *derivation) trace(m *hcmv3.HttpConnectionManager, name string, s *Service, p Port) {
	sp := d.tracingSpec(s)
	if sp.provider == "" || sp.off {
		return // nothing is reported; contexts pass through in their headers
	}
	provider, maxPath, err := d.tracer(sp.provider)
	if err != nil {
		if sp.owner != nil {
			d.report("Telemetry", sp.owner.Namespace, sp.owner.Name, reasonUnsupported, fmt.Sprintf("tracing provider %q: %v", sp.provider, err))
		}
		return
	}
	share := defaultSampling
	if v := d.in.Mesh.Config.GetDefaultConfig().GetTracing().GetSampling(); v > 0 {
		share = v
	}
	if sp.sampling != nil {
		share = *sp.sampling
	}
	m.Tracing = &hcmv3.HttpConnectionManager_Tracing{
		ClientSampling: &typev3.Percent{Value: 100}, RandomSampling: &typev3.Percent{Value: share}, OverallSampling: &typev3.Percent{Value: 100},
		Provider: provider, CustomTags: d.tags(sp), NoContextPropagation: sp.silent,
	}
	if maxPath > 0 {
		m.Tracing.MaxPathTagLength = uintValue(maxPath)
	}
	if sp.byID != nil {
		m.RequestIdExtension = &hcmv3.RequestIDExtension{TypedConfig: pack(&uuidv3.UuidRequestIdConfig{UseRequestIdForTraceSampling: boolValue(*sp.byID)})}
	}
	if s == nil {
		return
	}
	for _, v := range d.routes[name].GetVirtualHosts() {
		for _, r := range v.GetRoutes() {
			r.Decorator = &routev3.Decorator{Operation: s.Hostname + ":" + decimal(p.Number) + pathText(r.GetMatch())}
		}
	}
}

// pathText is a route's path as span names show it.
func pathText(m *routev3.RouteMatch) string {
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Path:
		return p.Path
	case *routev3.RouteMatch_Prefix:
		return p.Prefix + "*"
	case *routev3.RouteMatch_PathSeparatedPrefix:
		return p.PathSeparatedPrefix + "/*"
	case *routev3.RouteMatch_SafeRegex:
		return "/" + p.SafeRegex.GetRegex()
	}
	return "/*"
}

// tags are the tags that the configuration adds to a span, by name.
func (d *derivation) tags(sp spec) []*tracingv3.CustomTag {
	all := map[string]*tracingv3.CustomTag{}
	literal := func(name, value string) {
		all[name] = &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Literal_{Literal: &tracingv3.CustomTag_Literal{Value: value}}}
	}
	if sp.istio {
		literal("istio.mesh_id", cmp.Or(d.in.Mesh.Config.GetDefaultConfig().GetMeshId(), d.in.Mesh.TrustDomain))
		literal("istio.namespace", d.in.Gateway.Namespace)
		literal("istio.cluster_id", cmp.Or(d.in.Mesh.ClusterID, "unknown"))
		literal("istio.canonical_service", d.in.Gateway.Name)
		literal("istio.canonical_revision", "latest")
	}
	for name, t := range sp.tags {
		switch v := t.GetType().(type) {
		case *telemetryapi.Tracing_CustomTag_Literal:
			literal(name, v.Literal.GetValue())
		case *telemetryapi.Tracing_CustomTag_Environment:
			all[name] = &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Environment_{
				Environment: &tracingv3.CustomTag_Environment{Name: v.Environment.GetName(), DefaultValue: v.Environment.GetDefaultValue()},
			}}
		case *telemetryapi.Tracing_CustomTag_Header:
			all[name] = &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_RequestHeader{
				RequestHeader: &tracingv3.CustomTag_Header{Name: v.Header.GetName(), DefaultValue: v.Header.GetDefaultValue()},
			}}
		default:
			d.report("Telemetry", sp.owner.Namespace, sp.owner.Name, reasonUnsupported, fmt.Sprintf("tracing.customTags[%s]: %T is not supported; use literal, environment or header", name, v))
		}
	}
	out := make([]*tracingv3.CustomTag, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[name])
	}
	return out
}

// tracer is the provider in Envoy's words. Its collector gets a cluster of its own.
func (d *derivation) tracer(name string) (out *tracev3.Tracing_Http, maxPath uint32, err error) {
	p := d.provider(name)
	if p == nil {
		return nil, 0, fmt.Errorf("is not among extensionProviders of the mesh's settings")
	}
	var m proto.Message
	switch t := p.GetProvider().(type) {
	case *meshapi.MeshConfig_ExtensionProvider_Zipkin:
		out, maxPath = &tracev3.Tracing_Http{Name: "envoy.tracers.zipkin"}, t.Zipkin.GetMaxTagLength()
		m, err = d.zipkin(t.Zipkin)
	case *meshapi.MeshConfig_ExtensionProvider_Opentelemetry:
		out, maxPath = &tracev3.Tracing_Http{Name: "envoy.tracers.opentelemetry"}, t.Opentelemetry.GetMaxTagLength()
		m, err = d.openTelemetry(t.Opentelemetry)
	default:
		err = fmt.Errorf("%T is not supported; use zipkin or opentelemetry", t)
	}
	if err != nil {
		return nil, 0, err
	}
	out.ConfigType = &tracev3.Tracing_Http_TypedConfig{TypedConfig: pack(m)}
	return out, maxPath, nil
}

// collector names the cluster of a collector and has it made.
func (d *derivation) collector(service string, port uint32, grpc bool) (cluster, host string, err error) {
	cluster, want, err := d.provided("tracing", service, port, grpc)
	if err != nil {
		return "", "", err
	}
	d.wanted[cluster] = want
	return cluster, want.service.Hostname, nil
}

func (d *derivation) zipkin(p *meshapi.MeshConfig_ExtensionProvider_ZipkinTracingProvider) (proto.Message, error) {
	cluster, host, err := d.collector(p.GetService(), p.GetPort(), false)
	if err != nil {
		return nil, err
	}
	path := cmp.Or(p.GetPath(), "/api/v2/spans")
	z := &tracev3.ZipkinConfig{
		CollectorCluster: cluster, CollectorEndpoint: path, CollectorEndpointVersion: tracev3.ZipkinConfig_HTTP_JSON, CollectorHostname: host,
		TraceId_128Bit: !p.GetEnable_64BitTraceId(), SharedSpanContext: boolValue(false),
	}
	if p.GetTraceContextOption() == meshapi.MeshConfig_ExtensionProvider_ZipkinTracingProvider_USE_B3_WITH_W3C_PROPAGATION {
		z.TraceContextOption = tracev3.ZipkinConfig_USE_B3_WITH_W3C_PROPAGATION
	}
	if p.GetTimeout() != nil || len(p.GetHeaders()) > 0 {
		if z.CollectorService, err = httpCollector(cluster, host, path, p.GetTimeout(), p.GetHeaders()); err != nil {
			return nil, err
		}
	}
	return z, nil
}

func (d *derivation) openTelemetry(p *meshapi.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider) (proto.Message, error) {
	if p.GetResourceDetectors() != nil {
		return nil, fmt.Errorf("resourceDetectors are not supported")
	}
	cluster, host, err := d.collector(p.GetService(), p.GetPort(), p.GetHttp() == nil)
	if err != nil {
		return nil, err
	}
	o := &tracev3.OpenTelemetryConfig{ServiceName: d.in.Gateway.Name + "." + d.in.Gateway.Namespace}
	if h := p.GetHttp(); h != nil {
		o.HttpService, err = httpCollector(cluster, host, h.GetPath(), h.GetTimeout(), h.GetHeaders())
		return o, err
	}
	o.GrpcService = &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster, Authority: host}},
		Timeout:         p.GetGrpc().GetTimeout(),
	}
	for _, h := range p.GetGrpc().GetInitialMetadata() {
		if h.GetEnvName() != "" {
			return nil, fmt.Errorf("grpc.initialMetadata[%s].envName is not supported; give the value", h.GetName())
		}
		o.GrpcService.InitialMetadata = append(o.GrpcService.InitialMetadata, &corev3.HeaderValue{Key: h.GetName(), Value: h.GetValue()})
	}
	return o, nil
}

func httpCollector(cluster, host, path string, limit *durationpb.Duration, headers []*meshapi.MeshConfig_ExtensionProvider_HttpHeader) (*corev3.HttpService, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("path %q does not begin with a slash", path)
	}
	if limit == nil {
		limit = durationpb.New(5 * time.Second)
	}
	s := &corev3.HttpService{HttpUri: &corev3.HttpUri{
		Uri: "http://" + host + path, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster}, Timeout: limit,
	}}
	for _, h := range headers {
		if h.GetEnvName() != "" {
			return nil, fmt.Errorf("headers[%s].envName is not supported; give the value", h.GetName())
		}
		s.RequestHeadersToAdd = append(s.RequestHeadersToAdd, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: h.GetName(), Value: strings.ReplaceAll(h.GetValue(), "%", "%%")},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return s, nil
}
