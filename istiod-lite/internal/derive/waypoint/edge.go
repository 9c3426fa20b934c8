package waypoint

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// edgeHeaderLimit is how long a stranger may take to say what is wanted.
const edgeHeaderLimit = 15 * time.Second

// deriveEdge computes the resources of a gateway at the border. Its way into the mesh is a waypoint's, its listeners are
// ordinary sockets.
func (d *derivation) deriveEdge() Resources {
	out := Resources{
		Listeners: map[string]*listenerv3.Listener{ConnectOriginate: connectOriginate()},
		Routes:    d.routes,
		Clusters:  meshClusters(d.in.Mesh),
		Endpoints: map[string]*endpointv3.ClusterLoadAssignment{},
		Secrets:   d.secrets,
	}
	delete(out.Clusters, MainInternal)
	delete(out.Clusters, Encap)
	viaWaypoint(out.Clusters[ConnectOriginate])
	for i := range d.in.Edge.Ports {
		l := d.edgeListener(&d.in.Edge.Ports[i])
		out.Listeners[l.GetName()] = l
	}
	for name, want := range d.wanted {
		out.Clusters[name] = d.serviceCluster(name, want)
		out.Endpoints[name] = d.assignment(name, want)
	}
	maps.Copy(out.Clusters, d.outside)
	maps.Copy(out.Clusters, d.extra)
	for _, s := range d.in.Edge.Secrets {
		out.Secrets[s.Name] = edgeSecret(s)
	}
	return out
}

func edgeSecret(s EdgeSecret) *tlsv3.Secret {
	if len(s.Key) > 0 {
		return &tlsv3.Secret{Name: s.Name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inlineBytes(s.Chain), PrivateKey: inlineBytes(s.Key),
		}}}
	}
	v := &tlsv3.CertificateValidationContext{TrustedCa: inlineBytes(s.Roots)}
	if len(s.CRL) > 0 {
		v.Crl = inlineBytes(s.CRL)
	}
	return &tlsv3.Secret{Name: s.Name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: v}}
}

func inlineBytes(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// edgeListener serves one port. Server names choose among chains where there are several.
func (d *derivation) edgeListener(p *EdgePort) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:             "0.0.0.0_" + decimal(p.Target),
		Address:          socketAddress("0.0.0.0", p.Target),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		AccessLog:        listenerAccessLog(),
		// Whoever says nothing is let go: a listener filter that waits must not hold a connection for good.
		ListenerFiltersTimeout: durationpb.New(edgeHeaderLimit),
	}
	if d.in.Mesh.IPv6 {
		l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: socketAddress("::", p.Target)}}
	}
	if d.in.Edge.Topology.ProxyProtocol {
		l.ListenerFilters = append(l.ListenerFilters, listenerFilter("envoy.filters.listener.proxy_protocol", &proxyprotocolv3.ProxyProtocol{}))
	}
	encrypted := slices.ContainsFunc(p.Servers, func(s EdgeServer) bool { return s.TLS != nil || s.TCP != nil && s.TCP.Passthrough })
	asked := slices.ContainsFunc(p.Servers, func(s EdgeServer) bool { return s.TCP != nil }) && d.policiesFor(nil).asksServerName()
	if encrypted || asked {
		l.ListenerFilters = append(l.ListenerFilters, listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{}))
	}
	for i := range p.Servers {
		l.FilterChains = append(l.FilterChains, d.edgeChain(p, &p.Servers[i], encrypted))
	}
	return l
}

func (d *derivation) edgeChain(p *EdgePort, s *EdgeServer, mixed bool) *listenerv3.FilterChain {
	c := &listenerv3.FilterChain{Name: s.Name, Metadata: d.metrics(nil)}
	if s.TLS != nil || s.TCP != nil && s.TCP.Passthrough {
		c.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "tls"}
		if !slices.Contains(s.SNI, "*") {
			c.FilterChainMatch.ServerNames = s.SNI
		}
	} else if mixed {
		c.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer"}
	}
	if s.TLS != nil {
		c.TransportSocket = tlsSocket(edgeTLS(s.TLS))
	}
	if s.TCP != nil {
		set := d.policiesFor(nil)
		c.Filters = append(append(d.customTCP(set), set.network()...), d.edgeTCP(s.Name, p, s.TCP))
		return c
	}
	d.routes[s.Name] = d.edgeRoutes(p, s)
	c.Filters = []*listenerv3.Filter{d.edgeManager(s)}
	return c
}

// edgeManager is the connection manager of a waypoint's chain, changed where strangers come in: their address is the
// socket's, what they say about it is not believed beyond the trusted hops.
func (d *derivation) edgeManager(s *EdgeServer) *listenerv3.Filter {
	f := d.httpManager(s.Name, nil, Port{}, d.limitsFor(nil, Port{}))
	m := &hcmv3.HttpConnectionManager{}
	if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
		return f // cannot be: it was packed a moment ago
	}
	m.UseRemoteAddress = boolValue(true)
	m.XffNumTrustedHops = d.in.Edge.Topology.TrustedHops
	m.RequestHeadersTimeout = durationpb.New(edgeHeaderLimit)
	m.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{MaxConcurrentStreams: uintValue(100)}
	if s.TLS != nil && s.TLS.Client != nil && d.in.Edge.Topology.ForwardCert == SanitizeSet {
		m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
		m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: boolValue(true), Uri: true, Dns: true,
		}
	}
	return networkFilter("envoy.filters.network.http_connection_manager", m)
}

// edgeRoutes has one virtual host per domain and one for all other hosts, so that a policy judges those too.
func (d *derivation) edgeRoutes(p *EdgePort, s *EdgeServer) *routev3.RouteConfiguration {
	out := &routev3.RouteConfiguration{
		Name:                           s.Name,
		ValidateClusters:               boolValue(false),
		MaxDirectResponseBodySizeBytes: uintValue(1 << 20),
		IgnorePortInHostMatching:       true,
	}
	filters := d.limitsOnHost(d.limitsFor(nil, Port{}), d.policiesFor(nil).http())
	d.gatewayNames = s.HTTP.Owner
	hosts := slices.Clone(s.HTTP.Hosts)
	slices.SortStableFunc(hosts, func(a, b EdgeHost) int { return cmp.Compare(a.Domain, b.Domain) })
	any := false
	for i := range hosts {
		h := &hosts[i]
		any = any || h.Domain == "*"
		v := &routev3.VirtualHost{
			Name: h.Domain + ":" + decimal(p.Number), Domains: []string{h.Domain}, TypedPerFilterConfig: filters,
			Routes: d.edgeHostRoutes(Port{Number: p.Number, Protocol: HTTP, Encrypted: s.TLS != nil}, h),
		}
		out.VirtualHosts = append(out.VirtualHosts, v)
	}
	if !any {
		out.VirtualHosts = append(out.VirtualHosts, &routev3.VirtualHost{
			Name: "blackhole:" + decimal(p.Number), Domains: []string{"*"}, TypedPerFilterConfig: filters, Routes: []*routev3.Route{noRoute()},
		})
	}
	d.gatewayNames = nil
	return out
}

func noRoute() *routev3.Route {
	r := &routev3.Route{Name: "no-route", Match: everything()}
	respond(r, 404, "")
	return r
}

func (d *derivation) edgeHostRoutes(port Port, h *EdgeHost) []*routev3.Route {
	if h.Redirect {
		r := &routev3.Route{Name: "https-redirect", Match: everything(), Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{
			SchemeRewriteSpecifier: &routev3.RedirectAction_HttpsRedirect{HttpsRedirect: true},
		}}}
		return []*routev3.Route{r}
	}
	var all []ranked
	for _, r := range h.HTTPRoutes {
		all = append(all, d.markRoutes(r, d.httpRoute(r, port))...)
	}
	for _, r := range h.GRPCRoutes {
		all = append(all, d.grpcRoute(r, port)...)
	}
	slices.SortStableFunc(all, precedence)
	var routes []*routev3.Route
	for _, r := range all {
		routes = append(routes, r.route)
	}
	routes = append(routes, d.virtualServiceRoutes(h.VirtualServices, port)...)
	for i, r := range routes {
		if catchesAll(r.GetMatch()) {
			return routes[:i+1]
		}
	}
	return append(routes, noRoute())
}

func (d *derivation) edgeTCP(name string, p *EdgePort, t *EdgeTCP) *listenerv3.Filter {
	proxy := &tcpproxyv3.TcpProxy{StatPrefix: name, AccessLog: accessLog(nil)}
	weighted := &tcpproxyv3.TcpProxy_WeightedCluster{}
	for _, b := range t.Backends {
		if b.Weight == 0 {
			continue
		}
		cluster := d.backendFor(b.Host, b.Subset, b.Port, p.Number, false).cluster
		weighted.Clusters = append(weighted.Clusters, &tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{Name: cluster, Weight: b.Weight})
	}
	switch len(weighted.GetClusters()) {
	case 0:
		proxy.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: UnknownService}
	case 1:
		proxy.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: weighted.GetClusters()[0].GetName()}
	default:
		proxy.ClusterSpecifier = &tcpproxyv3.TcpProxy_WeightedClusters{WeightedClusters: weighted}
	}
	return networkFilter("envoy.filters.network.tcp_proxy", proxy)
}

// serves says whether an HTTPRoute is bound to one of the gateway's hosts.
func (e *Edge) serves(namespace, name string) bool {
	for _, p := range e.Ports {
		for _, s := range p.Servers {
			if s.HTTP == nil {
				continue
			}
			for _, h := range s.HTTP.Hosts {
				if slices.ContainsFunc(h.HTTPRoutes, func(r *gatewayv1.HTTPRoute) bool { return r.Namespace == namespace && r.Name == name }) {
					return true
				}
			}
		}
	}
	return false
}

// countsAs says whether a list of gateways in an object of the namespace means the proxy for which routes are being made.
func (d *derivation) countsAs(gateways []string, namespace string) bool {
	if d.in.Edge == nil {
		return slices.Contains(gateways, meshGateway)
	}
	return slices.ContainsFunc(gateways, func(g string) bool {
		return g != meshGateway && slices.Contains(d.gatewayNames, GatewayName(g, namespace))
	})
}

// GatewayName completes a gateway's name as VirtualServices write it: "name", "namespace/name" or the older
// "name.namespace".
func GatewayName(g, namespace string) string {
	if strings.Contains(g, "/") {
		return g
	}
	if name, ns, ok := strings.Cut(g, "."); ok {
		ns, _, _ = strings.Cut(ns, ".")
		return ns + "/" + name
	}
	return namespace + "/" + g
}

// fromHere decides a match on who sends: a gateway sends, with its own labels; at a waypoint it is not known before.
func (d *derivation) fromHere(labels map[string]string) bool {
	return len(labels) == 0 || d.in.Edge != nil && hasLabels(d.in.Labels, labels)
}

// virtualServiceRoutes are the routes of some VirtualServices, in order.
func (d *derivation) virtualServiceRoutes(list []*networkingv1.VirtualService, p Port) []*routev3.Route {
	var out []*routev3.Route
	for _, v := range list {
		for i, rule := range d.httpRules(v) {
			out = append(out, d.reportedRule(v, rule, i, p)...)
		}
	}
	return out
}

func (d *derivation) reportedRule(v *networkingv1.VirtualService, rule *networkingapi.HTTPRoute, i int, p Port) []*routev3.Route {
	routes, err := d.istioRule(v, rule, p)
	if err != nil {
		d.report("VirtualService", v.Namespace, v.Name, reasonInvalid, "http["+decimal(uint32(i))+"]: "+err.Error())
	}
	return routes
}
