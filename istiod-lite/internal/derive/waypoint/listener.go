package waypoint

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setstatecommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	sethttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// connectTerminate ends the tunnels that node proxies bring and remembers who came and where they wanted to go.
func connectTerminate(m Mesh) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:    ConnectTerminate,
		Address: socketAddress("0.0.0.0", HBONEPort),
		ConnectionBalanceConfig: &listenerv3.Listener_ConnectionBalanceConfig{
			BalanceType: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance_{
				ExactBalance: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance{},
			},
		},
		AccessLog: listenerAccessLog(),
		FilterChains: []*listenerv3.FilterChain{{
			Name:            "default",
			TransportSocket: terminateTLS(m),
			Filters:         []*listenerv3.Filter{networkFilter("envoy.filters.network.http_connection_manager", connectManager())},
		}},
	}
	if m.IPv6 {
		l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: socketAddress("::", HBONEPort)}}
	}
	return l
}

func connectManager() *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:                 ConnectTerminate,
		CodecType:                  hcmv3.HttpConnectionManager_HTTP2,
		StreamIdleTimeout:          durationpb.New(0),
		UseRemoteAddress:           boolValue(false),
		ServerName:                 "istio-envoy",
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_OVERWRITE,
		AccessLog:                  terminationAccessLog(),
		UpgradeConfigs:             []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "CONNECT"}},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			AllowConnect:         true,
			MaxConcurrentStreams: uintValue(100),
			ConnectionKeepalive: &corev3.KeepaliveSettings{
				Interval: durationpb.New(10 * time.Second),
				Timeout:  durationpb.New(20 * time.Second),
			},
		},
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: connectRoute()},
		HttpFilters: []*hcmv3.HttpFilter{
			httpFilter("connect_authority", &sethttpv3.Config{OnRequestHeaders: connectState()}),
			httpFilter("envoy.filters.http.router", &routerv3.Router{}),
		},
	}
}

func connectRoute() *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: "default",
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    "default",
			Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{
					ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{},
				}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: MainInternal},
					Timeout:          durationpb.New(0),
					UpgradeConfigs: []*routev3.RouteAction_UpgradeConfig{{
						UpgradeType:   "CONNECT",
						ConnectConfig: &routev3.RouteAction_UpgradeConfig_ConnectConfig{},
					}},
				}},
			}},
		}},
	}
}

// connectState lists what the tunnel's end tells the chains behind it.
func connectState() []*setstatecommonv3.FilterStateValue {
	return []*setstatecommonv3.FilterStateValue{
		filterState(originalDstKey+".local_ip", "", "%REQ(:AUTHORITY)%"),
		filterState(originalDstKey+".remote_ip", "", "%DOWNSTREAM_REMOTE_ADDRESS%"),
		filterState(connectAuthorityKey, "envoy.string", "%REQ(:AUTHORITY)%"),
		filterState(PrincipalKey, "envoy.string", "%DOWNSTREAM_PEER_URI_SAN%"),
		filterState(localPrincipalKey, "envoy.string", "%DOWNSTREAM_LOCAL_URI_SAN%"),
	}
}

func filterState(key, factory, format string) *setstatecommonv3.FilterStateValue {
	return &setstatecommonv3.FilterStateValue{
		Key:        &setstatecommonv3.FilterStateValue_ObjectKey{ObjectKey: key},
		FactoryKey: factory,
		Value: &setstatecommonv3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: format},
			}},
			// An absent value must become an empty one and not a dash, which a policy could match.
			OmitEmptyValues: true,
		}},
		SharedWithUpstream: setstatecommonv3.FilterStateValue_ONCE,
	}
}

func terminateTLS(m Mesh) *corev3.TransportSocket {
	return tlsSocket(&tlsv3.DownstreamTlsContext{
		CommonTlsContext:         meshTLS(m),
		RequireClientCertificate: boolValue(true),
	})
}

// meshTLS holds what both directions share: the waypoint's certificate, the mesh's roots and trust domain, TLS 1.3, h2.
func meshTLS(m Mesh) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		AlpnProtocols: []string{"h2"},
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: SecretDefault, SdsConfig: adsSource()}},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: &tlsv3.CertificateValidationContext{
					MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
						SanType: tlsv3.SubjectAltNameMatcher_URI,
						Matcher: prefixed("spiffe://" + m.TrustDomain + "/"),
					}},
				},
				ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: SecretRoots, SdsConfig: adsSource()},
			},
		},
	}
}

func tlsSocket(m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(m)},
	}
}

// connectOriginate opens the tunnel to the chosen endpoint's node proxy.
func connectOriginate() *listenerv3.Listener {
	proxy := &tcpproxyv3.TcpProxy{
		StatPrefix:       ConnectOriginate,
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: ConnectOriginate},
		AccessLog:        originateAccessLog(),
		TunnelingConfig:  &tcpproxyv3.TcpProxy_TunnelingConfig{Hostname: "%DOWNSTREAM_LOCAL_ADDRESS%"},
	}
	return &listenerv3.Listener{
		Name:              ConnectOriginate,
		ListenerSpecifier: internalListener(),
		UseOriginalDst:    boolValue(false),
		ListenerFilters:   []*listenerv3.ListenerFilter{originalDst()},
		FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{networkFilter("envoy.filters.network.tcp_proxy", proxy)},
		}},
	}
}

func internalListener() *listenerv3.Listener_InternalListener {
	return &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}}
}

func originalDst() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{})
}

func listenerFilter(name string, m proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name:       name,
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(m)},
	}
}

func networkFilter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(m)}}
}

func httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(m)}}
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}
