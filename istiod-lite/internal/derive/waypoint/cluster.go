package waypoint

import (
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	internalupstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	networkingapi "istio.io/api/networking/v1alpha3"
)

// connectTimeout is how long a connection to an endpoint may take unless a DestinationRule says otherwise.
const connectTimeout = 10 * time.Second

const httpOptionsKey = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// clusterWant says what a cluster's name stands for; chains and routes collect them while they are made.
type clusterWant struct {
	service *Service
	port    Port
	subset  string
	http    bool
}

// cluster names the cluster for a service port and subset, and has it made. The name of a subset that no DestinationRule
// declares is returned but not made, so that requests to it fail as their author wrote.
func (d *derivation) cluster(s *Service, p Port, subset string, http bool) string {
	name := outboundName(p.Number, subset, s.Hostname)
	if s.Bound {
		name = vipName(p.Number, http, subset, s.Hostname)
	}
	if subset != "" && d.rules.forService(s).subset(subset) == nil {
		return name
	}
	d.wanted[name] = clusterWant{service: s, port: p, subset: subset, http: http}
	return name
}

// meshClusters are the internal hops that every waypoint has.
func meshClusters(m Mesh) map[string]*clusterv3.Cluster {
	originate := &clusterv3.Cluster{
		Name:                 ConnectOriginate,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       durationpb.New(connectTimeout),
		CleanupInterval:      durationpb.New(time.Minute),
		LbConfig: &clusterv3.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &clusterv3.Cluster_OriginalDstLbConfig{
			UpstreamPortOverride: uintValue(HBONEPort),
		}},
		TransportSocket: tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: meshTLS(m)}),
		TypedExtensionProtocolOptions: httpOptions(&httpv3.HttpProtocolOptions{
			CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(time.Hour)},
			UpstreamProtocolOptions:   explicitHTTP2(&corev3.Http2ProtocolOptions{AllowConnect: true}),
		}),
	}
	return map[string]*clusterv3.Cluster{
		MainInternal:     hopCluster(MainInternal, MainInternal),
		Encap:            hopCluster(Encap, ConnectOriginate),
		ConnectOriginate: originate,
	}
}

// hopCluster leads to an internal listener of the same process.
func hopCluster(name, listener string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
					Address: internalAddress(listener, ""),
				}},
			}}}},
		},
		CircuitBreakers: breakers(nil, nil),
		TransportSocket: internalUpstream(rawBuffer()),
		TypedExtensionProtocolOptions: httpOptions(&httpv3.HttpProtocolOptions{
			CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(5 * time.Minute)},
			UpstreamProtocolOptions:   downstreamProtocol(),
		}),
	}
}

func (d *derivation) serviceCluster(name string, want clusterWant) *clusterv3.Cluster {
	s := want.service
	rules := d.rules.forService(s)
	policy := rules.policy(want.port.Number, want.subset)
	d.unsupported(rules, policy, s.Resolution == Dialled)
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          name + ";",
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsSource(), ServiceName: name},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LbPolicy:             clusterv3.Cluster_LEAST_REQUEST,
		CommonLbConfig:       &clusterv3.Cluster_CommonLbConfig{},
		CircuitBreakers:      breakers(policy.GetConnectionPool(), policy.GetRetryBudget()),
		Metadata:             serviceMetadata(s, want.subset),
	}
	policy = d.withBackendTLS(s, want.port, policy)
	o := serviceHTTPOptions(want.port.Protocol, policy.GetConnectionPool())
	if err := d.transport(c, o, want, policy); err != nil {
		d.ruleProblem(rules, err.Error()+"; its requests get 503, so that nothing goes in plaintext unasked")
		d.closed[name] = true
		c.TransportSocket = internalUpstream(rawBuffer())
	}
	if want.http {
		c.TypedExtensionProtocolOptions = httpOptions(o)
	}
	applyBalancer(c, policy.GetLoadBalancer())
	d.discover(c, want)
	if near := d.nearness(s, policy); near.active && s.Resolution != Dialled {
		c.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
		}
	}
	applyConnections(c, policy.GetConnectionPool())
	c.OutlierDetection = outlierDetection(c, policy.GetOutlierDetection())
	return c
}

// discover says how the cluster's endpoints are found, where that is not by a list of their own.
func (d *derivation) discover(c *clusterv3.Cluster, want clusterWant) {
	s := want.service
	switch {
	case s.byName():
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
		c.EdsClusterConfig, c.LoadAssignment = nil, d.assignment(c.GetName(), want)
		// Envoy wants exactly one endpoint of a cluster that goes where one name leads at the moment.
		if groups := c.GetLoadAssignment().GetEndpoints(); s.Resolution == OneByDNS && len(groups) == 1 && len(groups[0].GetLbEndpoints()) == 1 {
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_LOGICAL_DNS}
		}
		c.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
	case s.Resolution == Dialled:
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		c.EdsClusterConfig, c.LbPolicy, c.LbConfig = nil, clusterv3.Cluster_CLUSTER_PROVIDED, nil
	}
}

// unsupported reports what a DestinationRule asks for in vain.
func (d *derivation) unsupported(rules *destination, policy *networkingapi.TrafficPolicy, dialled bool) {
	if !dialled && policy.GetLoadBalancer().GetSimple() == networkingapi.LoadBalancerSettings_PASSTHROUGH {
		d.ruleProblem(rules, "loadBalancer.simple PASSTHROUGH is for services of resolution NONE; requests are balanced")
	}
	if policy.GetTunnel() != nil {
		d.ruleProblem(rules, "tunnel is not for waypoints, which have tunnels of their own; it is left out")
	}
}

func (d *derivation) ruleProblem(rules *destination, message string) {
	if rules != nil {
		d.report("DestinationRule", rules.owner.Namespace, rules.owner.Name, reasonUnsupported, message)
	}
}

func serviceMetadata(s *Service, subset string) *corev3.Metadata {
	values := map[string]*structpb.Value{
		"services": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
			structpb.NewStructValue(fields(map[string]*structpb.Value{
				"host": text(s.Hostname), "name": text(s.Name), "namespace": text(s.Namespace),
			})),
		}}),
	}
	if subset != "" {
		values["subset"] = text(subset)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": fields(values)}}
}

func internalAddress(listener, endpointID string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
		AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: listener},
		EndpointId:           endpointID,
	}}}
}

func rawBuffer() *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.raw_buffer",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&rawbufferv3.RawBuffer{})},
	}
}

// internalUpstream hands the endpoint's metadata to the internal listener behind it; for a socket address it is plain.
func internalUpstream(inner *corev3.TransportSocket) *corev3.TransportSocket {
	host := func(name string) *internalupstreamv3.InternalUpstreamTransport_MetadataValueSource {
		return &internalupstreamv3.InternalUpstreamTransport_MetadataValueSource{
			Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Host_{Host: &metadatav3.MetadataKind_Host{}}},
			Name: name,
		}
	}
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.internal_upstream",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&internalupstreamv3.InternalUpstreamTransport{
			PassthroughMetadata: []*internalupstreamv3.InternalUpstreamTransport_MetadataValueSource{
				host(originalDstKey), host("istio"),
			},
			TransportSocket: inner,
		})},
	}
}

func httpOptions(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{httpOptionsKey: pack(proto.Message(o))}
}

func explicitHTTP2(o *corev3.Http2ProtocolOptions) *httpv3.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: o},
	}}
}

func explicitHTTP1() *httpv3.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
		},
	}}
}

func downstreamProtocol() *httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig {
	return &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
		UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
		},
	}
}

// unlimited is the value of a limit that nobody set; Envoy's own defaults (1024) would surprise.
const unlimited = math.MaxUint32
