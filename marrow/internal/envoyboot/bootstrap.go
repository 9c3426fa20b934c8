package envoyboot

import (
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	internallistenerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	injectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/credential_injector/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	upstreamcodecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	genericv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/injected_credentials/generic/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	adminPort = 15000
	readyPort = 15021
	statsPort = 15090

	xdsCluster   = "xds-grpc"
	adminCluster = "prometheus_stats"
	tokenSecret  = "istio-token"
)

// Bootstrap is the static part of Envoy's configuration. tokenPath is the file written by writeTokenSource.
func Bootstrap(c Config, tokenPath string) (*bootstrapv3.Bootstrap, error) {
	b := builder{config: c}
	ads := &corev3.ApiConfigSource{
		ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
		TransportApiVersion:       corev3.ApiVersion_V3,
		SetNodeOnFirstMessageOnly: true,
		GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: xdsCluster},
		}}},
	}
	out := &bootstrapv3.Bootstrap{
		Node:  b.node(),
		Admin: &bootstrapv3.Admin{Address: address("127.0.0.1", adminPort)},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			AdsConfig: ads, LdsConfig: overADS(), CdsConfig: overADS(),
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Clusters: []*clusterv3.Cluster{b.xds(tokenPath), b.admin()},
			Listeners: []*listenerv3.Listener{
				b.toAdmin(readyPort, "/healthz/ready", "/ready"),
				b.toAdmin(statsPort, "/stats/prometheus", "/stats/prometheus"),
			},
		},
		BootstrapExtensions: []*corev3.TypedExtensionConfig{{
			Name:        "envoy.bootstrap.internal_listener",
			TypedConfig: b.pack(&internallistenerv3.InternalListener{BufferSizeKb: wrapperspb.UInt32(64)}),
		}},
		LayeredRuntime: &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
			Name: "marrow",
			LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: &structpb.Struct{Fields: map[string]*structpb.Value{
				// A user's expression may be longer than Envoy's default allows, which would refuse all routes with it.
				"re2.max_program_size.error_level": structpb.NewNumberValue(32768),
			}}},
		}}},
	}
	return out, b.err
}

// builder keeps the first error of packing.
type builder struct {
	config Config
	err    error
}

func (b *builder) pack(m proto.Message) *anypb.Any {
	out, err := anypb.New(m)
	if err != nil && b.err == nil {
		b.err = err
	}
	return out
}

func (b *builder) node() *corev3.Node {
	c := b.config
	metadata := map[string]*structpb.Value{}
	for key, value := range map[string]string{
		"NAME": c.PodName, "NAMESPACE": c.Namespace, "SERVICE_ACCOUNT": c.ServiceAccount, "CLUSTER_ID": c.ClusterID,
		"NODE_NAME": c.Node, "INSTANCE_IPS": c.PodIP.String(), "GATEWAY_NAME": c.Gateway,
	} {
		if value != "" {
			metadata[key] = structpb.NewStringValue(value)
		}
	}
	return &corev3.Node{
		Id:       c.NodeID(),
		Cluster:  c.ServiceAccount + "." + c.Namespace,
		Metadata: &structpb.Struct{Fields: metadata},
	}
}

// xds leads to istiod-lite: TLS with the mesh's root and the name that was dialled, the token in a header.
func (b *builder) xds(tokenPath string) *clusterv3.Cluster {
	c := b.config
	injector := &injectorv3.CredentialInjector{
		Overwrite: true,
		Credential: &corev3.TypedExtensionConfig{
			Name: "envoy.http.injected_credentials.generic",
			TypedConfig: b.pack(&genericv3.Generic{
				HeaderValuePrefix: "Bearer ",
				Credential: &tlsv3.SdsSecretConfig{Name: tokenSecret, SdsConfig: &corev3.ConfigSource{
					ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{
						PathConfigSource: &corev3.PathConfigSource{Path: tokenPath},
					},
					ResourceApiVersion: corev3.ApiVersion_V3,
				}},
			}),
		},
	}
	options := &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{ConnectionKeepalive: &corev3.KeepaliveSettings{
						Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(10 * time.Second),
					}},
				},
			},
		},
		HttpFilters: []*hcmv3.HttpFilter{
			b.filter("envoy.filters.http.credential_injector", injector),
			b.filter("envoy.filters.http.upstream_codec", &upstreamcodecv3.UpstreamCodec{}),
		},
	}
	return &clusterv3.Cluster{
		Name:                 xdsCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment:       oneEndpoint(xdsCluster, address(c.XDSHost, c.XDSPort)),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": b.pack(options),
		},
		TransportSocket: &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.tls",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.pack(b.xdsTLS())},
		},
	}
}

func (b *builder) xdsTLS() *tlsv3.UpstreamTlsContext {
	c := b.config
	return &tlsv3.UpstreamTlsContext{
		Sni: c.XDSName,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols: []string{"h2"},
			TlsParams:     &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{
				ValidationContext: &tlsv3.CertificateValidationContext{
					TrustedCa: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: c.RootFile}},
					MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
						SanType: tlsv3.SubjectAltNameMatcher_DNS,
						Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: c.XDSName}},
					}},
				},
			},
		},
	}
}

func (b *builder) filter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(m)}}
}

func (b *builder) admin() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 adminCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment:       oneEndpoint(adminCluster, address("127.0.0.1", adminPort)),
	}
}

// toAdmin opens one path of the administration to others. Envoy is ready (200 at /ready) when the first LDS and CDS are
// in place.
func (b *builder) toAdmin(port uint32, path, rewrite string) *listenerv3.Listener {
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: "agent",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			VirtualHosts: []*routev3.VirtualHost{{
				Name: "backend", Domains: []string{"*"},
				Routes: []*routev3.Route{{
					Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: path}},
					Action: &routev3.Route_Route{Route: &routev3.RouteAction{
						ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: adminCluster},
						PrefixRewrite:    rewrite,
					}},
				}},
			}},
		}},
		HttpFilters: []*hcmv3.HttpFilter{b.filter("envoy.filters.http.router", &routerv3.Router{})},
	}
	return &listenerv3.Listener{
		Name:                  "admin_" + path,
		Address:               address("0.0.0.0", port),
		IgnoreGlobalConnLimit: true,
		BypassOverloadManager: true,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.pack(manager)},
		}}}},
	}
}

func overADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(0),
	}
}

func address(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

func oneEndpoint(cluster string, a *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{
		ClusterName: cluster,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}},
		}}}},
	}
}
