package waypoint

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	networkingapi "istio.io/api/networking/v1alpha3"
)

// backend is one destination of a route, resolved as far as it can be.
type backend struct {
	cluster string // UnknownService when there is no such destination
	weight  uint32
	headers headerChanges
	service *Service
	port    Port
	subset  string
}

// forward is what a route does with a request that it sends on, in the words of neither API.
type forward struct {
	backends []backend
	headers  headerChanges
	timeout  time.Duration
	retry    *routev3.RetryPolicy
	mirrors  []*routev3.RouteAction_RequestMirrorPolicy
	// missing is the answer when the cluster does not exist: Gateway API says 500, Istio 503.
	missing routev3.RouteAction_ClusterNotFoundResponseCode
}

// serviceRoutes is the route configuration of one service port.
func (d *derivation) serviceRoutes(name string, s *Service, p Port) *routev3.RouteConfiguration {
	host := &routev3.VirtualHost{
		Name:                 "inbound|http|" + decimal(p.Number),
		Domains:              []string{"*"},
		TypedPerFilterConfig: d.limitsOnHost(d.limitsFor(s, p), d.policiesFor(s).http()),
	}
	routes := append(d.gatewayRoutes(s, p), d.istioRoutes(s, p)...)
	for _, r := range routes {
		host.Routes = append(host.Routes, r)
		if catchesAll(r.GetMatch()) {
			break
		}
	}
	own := d.cluster(s, p, "", true)
	d.wantSubsets(s, p)
	switch {
	case len(host.GetRoutes()) == 0:
		host.Routes = []*routev3.Route{d.plainRoute("default", own, d.rules.forService(s).policy(p.Number, "").GetLoadBalancer())}
	case !catchesAll(host.GetRoutes()[len(host.GetRoutes())-1].GetMatch()):
		host.Routes = append(host.Routes, &routev3.Route{
			Name:  "no-route",
			Match: everything(),
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
				Status: 404,
			}},
		})
	}
	return &routev3.RouteConfiguration{
		Name:                           name,
		ValidateClusters:               boolValue(false),
		MaxDirectResponseBodySizeBytes: uintValue(1 << 20),
		VirtualHosts:                   []*routev3.VirtualHost{host},
	}
}

// wantSubsets makes the clusters of declared subsets before a route asks for them, so that shifting weight to one does
// not wait for it.
func (d *derivation) wantSubsets(s *Service, p Port) {
	for _, subset := range d.rules.forService(s).subsetNames() {
		d.cluster(s, p, subset, true)
	}
}

// plainRoute sends everything to one cluster with the mesh's defaults.
func (d *derivation) plainRoute(name, cluster string, lb *networkingapi.LoadBalancerSettings) *routev3.Route {
	f := forward{
		backends: []backend{{cluster: cluster, weight: 1}},
		retry:    d.plainRetry(lb.GetConsistentHash() == nil),
		missing:  routev3.RouteAction_SERVICE_UNAVAILABLE,
	}
	r := &routev3.Route{Name: name, Match: everything()}
	f.onRoute(r)
	r.GetRoute().HashPolicy = hashPolicy(lb)
	return r
}

// onRoute makes the route's action. Backends have positive weights.
func (f forward) onRoute(r *routev3.Route) {
	a := &routev3.RouteAction{
		ClusterNotFoundResponseCode: f.missing,
		Timeout:                     durationpb.New(f.timeout),
		RetryPolicy:                 f.retry,
		RequestMirrorPolicies:       f.mirrors,
	}
	if f.timeout == 0 {
		// A caller's grpc-timeout counts. Envoy forgets timeout where this is set, so with a timeout it cannot be; then
		// caller and server watch grpc-timeout themselves.
		a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{GrpcTimeoutHeaderMax: durationpb.New(0)}
	}
	r.Action = &routev3.Route_Route{Route: a}
	headers := f.headers
	if len(f.backends) == 1 {
		headers = headers.join(f.backends[0].headers)
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: f.backends[0].cluster}
	} else {
		weighted := &routev3.WeightedCluster{}
		for _, b := range f.backends {
			w := &routev3.WeightedCluster_ClusterWeight{Name: b.cluster, Weight: uintValue(b.weight)}
			b.headers.onBackend(w)
			weighted.Clusters = append(weighted.Clusters, w)
		}
		a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	}
	headers.onRoute(r)
}

// respond makes the route answer by itself.
func respond(r *routev3.Route, status uint32, body string) {
	answer := &routev3.DirectResponseAction{Status: status}
	if body != "" {
		answer.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: body}}
	}
	r.Action = &routev3.Route_DirectResponse{DirectResponse: answer}
}

// defaultRetryOn holds only conditions under which the application cannot have seen the request, or says that it has not.
const defaultRetryOn = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"

// plainRetry is the mesh's word on retries; one that cannot be read is as if it were not there.
func (d *derivation) plainRetry(otherHosts bool) *routev3.RetryPolicy {
	p, err := d.istioRetry(nil)
	if err != nil {
		return defaultRetry(otherHosts)
	}
	if p != nil && !otherHosts {
		p.RetryHostPredicate, p.HostSelectionRetryMaxAttempts = nil, 0
	}
	return p
}

func defaultRetry(otherHosts bool) *routev3.RetryPolicy {
	return retryPolicy(2, defaultRetryOn, otherHosts)
}

func retryPolicy(attempts uint32, on string, otherHosts bool) *routev3.RetryPolicy {
	p := &routev3.RetryPolicy{RetryOn: on, NumRetries: uintValue(attempts)}
	if otherHosts {
		p.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: pack(&previoushostsv3.PreviousHostsPredicate{}),
			},
		}}
		p.HostSelectionRetryMaxAttempts = 5
	}
	return p
}

// resolve finds the service and port behind a backend; without a port number the service must have one port, or the
// request's port is taken.
func (d *derivation) resolve(host string, port, requestPort uint32) (*Service, Port, bool) {
	s := d.services[host]
	if s == nil {
		return nil, Port{}, false
	}
	if port == 0 {
		if len(s.Ports) == 1 {
			return s, s.Ports[0], true
		}
		port = requestPort
	}
	p, ok := s.port(port)
	return s, p, ok && p.Protocol != Ignored
}

// backendFor is a backend that may not exist.
func (d *derivation) backendFor(host, subset string, port, requestPort uint32, http bool) backend {
	s, p, ok := d.resolve(host, port, requestPort)
	if !ok {
		return backend{cluster: UnknownService}
	}
	return backend{cluster: d.cluster(s, p, subset, http), service: s, port: p, subset: subset}
}
