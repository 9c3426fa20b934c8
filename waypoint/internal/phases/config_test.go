package phases_test

import (
	"strconv"
	"testing"
	"time"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	networkinputs "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The shapes below are those that istiod sends to a waypoint.

const (
	vip      = "10.96.0.1"
	tcpVIP   = "10.96.0.2"
	sniffVIP = "10.96.0.3"
	host     = "web.shop.svc.cluster.local"
)

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func terminate(t testing.TB) *listenerv3.Listener {
	tls := &tlsv3.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		CommonTlsContext: &tlsv3.CommonTlsContext{ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
					SanType: tlsv3.SubjectAltNameMatcher_URI,
					Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "spiffe://td/"}},
				}}},
			},
		}},
	}
	hcm := &hcmv3.HttpConnectionManager{HttpFilters: []*hcmv3.HttpFilter{httpFilter(t, "envoy.filters.http.router", &routerv3.Router{})}}
	return &listenerv3.Listener{
		Name: "connect_terminate",
		FilterChains: []*listenerv3.FilterChain{{
			Name:            "default",
			TransportSocket: &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(t, tls)}},
			Filters:         []*listenerv3.Filter{networkFilter(t, "hcm", hcm)},
		}},
	}
}

func networkFilter(t testing.TB, name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, m)}}
}

func httpFilter(t testing.TB, name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, m)}}
}

// chainName is of the only service's port 80.
func chainName(kind string) string { return "inbound-vip|80|" + kind + "|" + host }

func accessLog(t testing.TB, format string) []*accesslogv3.AccessLog {
	return []*accesslogv3.AccessLog{{Name: "file", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(t, &filelogv3.FileAccessLog{
		Path: "/dev/stdout",
		AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: format},
			}},
		}},
	})}}}
}

const logFormat = "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n"

func manager(t testing.TB) *hcmv3.HttpConnectionManager {
	closed := &rbacv3.RBAC{Rules: &rbacconfig.RBAC{Action: rbacconfig.RBAC_ALLOW}}
	return &hcmv3.HttpConnectionManager{
		StatPrefix:       "x",
		RouteSpecifier:   &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: chainName("http")}},
		UseRemoteAddress: wrapperspb.Bool(false), NormalizePath: wrapperspb.Bool(true), Proxy_100Continue: true,
		ServerName: "istio-envoy", UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		StreamIdleTimeout: durationpb.New(0), AccessLog: accessLog(t, logFormat),
		HttpFilters: []*hcmv3.HttpFilter{
			httpFilter(t, "marrow.rbac.deny", closed),
			httpFilter(t, "marrow.rbac.allow", closed),
			httpFilter(t, "envoy.filters.http.fault", &faultv3.HTTPFault{}),
			httpFilter(t, "envoy.filters.http.cors", &corsv3.Cors{}),
			httpFilter(t, "envoy.filters.http.router", &routerv3.Router{}),
		},
	}
}

func chainOf(name string) *xdsmatcher.Matcher_OnMatch {
	a, _ := anypb.New(wrapperspb.String(name))
	return &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Action{Action: &xdscore.TypedExtensionConfig{Name: name, TypedConfig: a}}}
}

func tree(t testing.TB, input proto.Message, m map[string]*xdsmatcher.Matcher_OnMatch, otherwise *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher_OnMatch {
	return &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Matcher{Matcher: &xdsmatcher.Matcher{
		OnNoMatch: otherwise,
		MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
			Input:    &xdscore.TypedExtensionConfig{Name: "in", TypedConfig: pack(t, input)},
			TreeType: &xdsmatcher.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &xdsmatcher.Matcher_MatcherTree_MatchMap{Map: m}},
		}},
	}}}
}

func internal(t testing.TB, m *hcmv3.HttpConnectionManager) *listenerv3.Listener {
	httpName, tcpName := chainName("http"), chainName("tcp")
	port := func(then *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher_OnMatch {
		return tree(t, &networkinputs.DestinationPortInput{}, map[string]*xdsmatcher.Matcher_OnMatch{"80": then}, nil)
	}
	sniff := tree(t, &networkinputs.ApplicationProtocolInput{}, map[string]*xdsmatcher.Matcher_OnMatch{
		"'h2c'": chainOf(httpName), "'http/1.1'": chainOf(httpName),
	}, chainOf(tcpName))
	row := func(ip string, then *xdsmatcher.Matcher_OnMatch) *xdsmatcher.IPMatcher_IPRangeMatcher {
		return &xdsmatcher.IPMatcher_IPRangeMatcher{
			Ranges: []*xdscore.CidrRange{{AddressPrefix: ip, PrefixLen: wrapperspb.UInt32(32)}}, OnMatch: then,
		}
	}
	tcp := &tcpproxyv3.TcpProxy{StatPrefix: "tcp", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: "tcp"}, AccessLog: accessLog(t, logFormat)}
	return &listenerv3.Listener{
		Name: "main_internal",
		FilterChains: []*listenerv3.FilterChain{
			{Name: httpName, Filters: []*listenerv3.Filter{networkFilter(t, "hcm", m)}},
			{Name: tcpName, Filters: []*listenerv3.Filter{networkFilter(t, "tcp", tcp)}},
		},
		FilterChainMatcher: &xdsmatcher.Matcher{MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
			Input: &xdscore.TypedExtensionConfig{Name: "ip", TypedConfig: pack(t, &networkinputs.DestinationIPInput{})},
			TreeType: &xdsmatcher.Matcher_MatcherTree_CustomMatch{CustomMatch: &xdscore.TypedExtensionConfig{
				Name: "ip", TypedConfig: pack(t, &xdsmatcher.IPMatcher{RangeMatchers: []*xdsmatcher.IPMatcher_IPRangeMatcher{
					row(vip, port(chainOf(httpName))), row(tcpVIP, port(chainOf(tcpName))), row(sniffVIP, port(sniff)),
				}}),
			}},
		}}},
	}
}

// open is a virtual host's configuration that no policy narrows.
func open(t testing.TB) map[string]*anypb.Any {
	return map[string]*anypb.Any{"marrow.rbac.deny": pack(t, &rbacv3.RBACPerRoute{}), "marrow.rbac.allow": pack(t, &rbacv3.RBACPerRoute{})}
}

func routes(t testing.TB, filters map[string]*anypb.Any, rs ...*routev3.Route) *routev3.RouteConfiguration {
	if filters == nil {
		filters = open(t)
	}
	return &routev3.RouteConfiguration{
		Name:         chainName("http"),
		VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: rs, TypedPerFilterConfig: filters}},
	}
}

func prefix(p string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p}}
}

// to routes everything below a prefix to a cluster.
func to(p, cluster string, change ...func(*routev3.RouteAction)) *routev3.Route {
	a := &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}, Timeout: durationpb.New(0)}
	for _, c := range change {
		c(a)
	}
	return &routev3.Route{Name: cluster, Match: prefix(p), Action: &routev3.Route_Route{Route: a}}
}

func retry(on string, n uint32) func(*routev3.RouteAction) {
	return func(a *routev3.RouteAction) {
		a.RetryPolicy = &routev3.RetryPolicy{
			RetryOn: on, NumRetries: wrapperspb.UInt32(n),
			RetryBackOff: &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(time.Millisecond)},
		}
	}
}

func timeout(d time.Duration) func(*routev3.RouteAction) {
	return func(a *routev3.RouteAction) { a.Timeout = durationpb.New(d) }
}

func cluster(t testing.TB, name string, change ...func(*clusterv3.Cluster)) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: name}, ConnectTimeout: durationpb.New(2 * time.Second),
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{},
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: map[string]*structpb.Value{
			"services": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
				"host": structpb.NewStringValue(host), "name": structpb.NewStringValue("web"), "namespace": structpb.NewStringValue("shop"),
			}})}}),
		}}}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(t, &httpv3.HttpProtocolOptions{
				UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{}},
			}),
		},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// endpoints of pods in the mesh; workload names follow the cluster's.
func endpoints(name string, addrs ...string) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}
	for i, a := range addrs {
		id := "spiffe://td/ns/shop/sa/app"
		out.Endpoints[0].LbEndpoints = append(out.Endpoints[0].LbEndpoints, &endpointv3.LbEndpoint{
			HealthStatus: corev3.HealthStatus_HEALTHY,
			Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
				"envoy.filters.listener.original_dst": {Fields: map[string]*structpb.Value{"local": structpb.NewStringValue(a)}},
				"istio": {Fields: map[string]*structpb.Value{
					"workload": structpb.NewStringValue(name + ";shop;web;v1;c1"), "identity": structpb.NewStringValue(id),
					"uid": structpb.NewStringValue(name + strconv.Itoa(i)),
				}},
			}},
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{
				Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
					AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: "connect_originate"}, EndpointId: a,
				}},
			}}},
		})
	}
	return out
}

func allow(methods []string, principal string) *rbacv3.RBACPerRoute {
	p := &rbacconfig.Policy{
		Permissions: []*rbacconfig.Permission{{Rule: &rbacconfig.Permission_Any{Any: true}}},
		Principals:  []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_Any{Any: true}}},
	}
	if len(methods) > 0 {
		p.Permissions = nil
		for _, m := range methods {
			p.Permissions = append(p.Permissions, &rbacconfig.Permission{Rule: &rbacconfig.Permission_Header{Header: &routev3.HeaderMatcher{
				Name:                 ":method",
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: m}}},
			}}})
		}
	}
	if principal != "" {
		p.Principals = []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
			Key:     "io.istio.peer_principal",
			Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: principal}}},
		}}}}
	}
	return &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{Rules: &rbacconfig.RBAC{
		Action: rbacconfig.RBAC_ALLOW, Policies: map[string]*rbacconfig.Policy{"ns[shop]-policy[p]-rule[0]": p},
	}}}
}

func headerOption(k, v string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, Value: v}}
}
