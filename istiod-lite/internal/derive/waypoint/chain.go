package waypoint

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setstatecommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	grpcstatsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	setnetworkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// httpChain serves one service port and puts the port's routes beside it under the same name.
func (d *derivation) httpChain(name string, s *Service, p Port) *listenerv3.FilterChain {
	d.routes[name] = d.serviceRoutes(name, s, p)
	return &listenerv3.FilterChain{
		Name:     name,
		Metadata: d.metrics(s),
		Filters:  []*listenerv3.Filter{d.httpManager(name, s, p, d.limitsFor(s, p))},
	}
}

// httpManager serves HTTP; s is nil for the chains of workloads.
func (d *derivation) httpManager(name string, s *Service, p Port, limits limitSet) *listenerv3.Filter {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: name,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: adsSource(), RouteConfigName: name,
		}},
		AccessLog:                  d.logs(s),
		StreamIdleTimeout:          durationpb.New(0),
		UseRemoteAddress:           boolValue(false),
		UpgradeConfigs:             []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		ServerName:                 "istio-envoy",
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_OVERWRITE,
		Proxy_100Continue:          true,
		HttpFilters: slices.Concat(d.clientIdentity(), d.customHTTP(d.policiesFor(s)), d.tokenFilter(s),
			httpFilters(d.limitFilters(limits)...)),
	}
	normalize(m, d.in.Mesh.Config.GetPathNormalization())
	d.trace(m, name, s, p)
	if p.Protocol == HTTP2 {
		m.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	}
	return networkFilter("envoy.filters.network.http_connection_manager", m)
}

// httpFilters refuses everything unless the virtual host says which policies there are: a route configuration that
// lost them is closed.
func httpFilters(limits ...*hcmv3.HttpFilter) []*hcmv3.HttpFilter {
	refuse := &httprbacv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}}
	judges := []*hcmv3.HttpFilter{
		httpFilter(rbacAudit, refuse),
		httpFilter(rbacDeny, refuse),
		httpFilter(rbacAllow, refuse),
	}
	return append(append(judges, limits...), // a request that is refused takes nothing from a limit
		httpFilter("envoy.filters.http.grpc_stats", &grpcstatsv3.FilterConfig{EmitFilterState: true}),
		httpFilter(faultFilter, &faultv3.HTTPFault{}),
		httpFilter(corsFilter, &corsv3.Cors{}),
		httpFilter("envoy.filters.http.router", &routerv3.Router{}),
	)
}

// tcpChain passes bytes; policies are judged once, when the connection opens.
func (d *derivation) tcpChain(name string, s *Service, p Port) *listenerv3.FilterChain {
	var filters []*listenerv3.Filter
	set := d.policiesFor(s)
	filters = append(append(filters, d.customTCP(set)...), set.network()...)
	return &listenerv3.FilterChain{Name: name, Metadata: d.metrics(s), Filters: append(filters, d.tcpProxy(name, s, p))}
}

func (d *derivation) tcpProxy(name string, s *Service, p Port) *listenerv3.Filter {
	proxy := &tcpproxyv3.TcpProxy{StatPrefix: name, AccessLog: d.logs(s)}
	targets := d.tcpTargets(s, p)
	if len(targets) == 1 {
		proxy.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: targets[0].cluster}
	} else {
		weighted := &tcpproxyv3.TcpProxy_WeightedCluster{}
		for _, t := range targets {
			weighted.Clusters = append(weighted.Clusters, &tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{
				Name: t.cluster, Weight: t.weight,
			})
		}
		proxy.ClusterSpecifier = &tcpproxyv3.TcpProxy_WeightedClusters{WeightedClusters: weighted}
	}
	d.tcpPolicy(proxy, s, p)
	return networkFilter("envoy.filters.network.tcp_proxy", proxy)
}

// directChains serve attached workloads by their own address. They are always there, so that attaching the first
// workload changes the tree and nothing else.
func (d *derivation) directChains() []*listenerv3.FilterChain {
	set, limits := d.policiesFor(nil), d.limitsFor(nil, Port{})
	d.routes[directHTTP] = &routev3.RouteConfiguration{
		Name:             directHTTP,
		ValidateClusters: boolValue(false),
		VirtualHosts: []*routev3.VirtualHost{{
			Name:                 directHTTP,
			Domains:              []string{"*"},
			TypedPerFilterConfig: d.limitsOnHost(limits, set.http()),
			Routes:               []*routev3.Route{d.plainRoute("default", Encap, nil)},
		}},
	}
	// The next internal hop must learn the destination too; a state is handed on for one hop only.
	restate := networkFilter("connect_authority", &setnetworkv3.Config{
		OnNewConnection: []*setstatecommonv3.FilterStateValue{
			filterState(originalDstKey+".local_ip", "", "%DOWNSTREAM_LOCAL_ADDRESS%"),
		},
	})
	tcp := []*listenerv3.Filter{restate}
	tcp = append(append(tcp, d.customTCP(set)...), set.network()...)
	tcp = append(tcp, networkFilter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
		StatPrefix:       directTCP,
		AccessLog:        d.logs(nil),
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: Encap},
	}))
	return []*listenerv3.FilterChain{
		{Name: directHTTP, Metadata: d.metrics(nil), Filters: []*listenerv3.Filter{restate, d.httpManager(directHTTP, nil, Port{}, limits)}},
		{Name: directTCP, Metadata: d.metrics(nil), Filters: tcp},
	}
}
