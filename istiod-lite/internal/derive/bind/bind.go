package bind

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/policy"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// World is everything that waypoints' inputs are made of.
type World struct {
	Mesh waypoint.Mesh
	// Addresses are the mesh's WDS resources as derive/ambient made them, by resource name.
	Addresses map[string]*workload.Address
	Objects   Objects
}

// Objects are the user's rows. The slices' order does not matter.
type Objects struct {
	Gateways         []*gatewayv1.Gateway
	Pods             []*corev1.Pod
	Services         []*corev1.Service
	ServiceEntries   []*networkingv1.ServiceEntry
	HTTPRoutes       []*gatewayv1.HTTPRoute
	GRPCRoutes       []*gatewayv1.GRPCRoute
	TLSRoutes        []*gatewayv1.TLSRoute
	TCPRoutes        []*gatewayv1.TCPRoute
	VirtualServices  []*networkingv1.VirtualService
	DestinationRules []*networkingv1.DestinationRule
	Secrets          []*corev1.Secret
	ConfigMaps       []*corev1.ConfigMap
	Policies         []*securityv1.AuthorizationPolicy
	Authentications  []*securityv1.RequestAuthentication
	RateLimits       []*policy.RateLimitPolicy
	Telemetries      []*telemetryv1.Telemetry
	BackendTLS       []*gatewayv1.BackendTLSPolicy
}

// Inputs returns one input for each Gateway that is a waypoint of this control plane.
func Inputs(w World) map[types.NamespacedName]waypoint.Input {
	j := newJoin(w)
	out := map[types.NamespacedName]waypoint.Input{}
	for _, g := range w.Objects.Gateways {
		if g.Spec.GatewayClassName != kube.WaypointClass || g.DeletionTimestamp != nil {
			continue
		}
		out[kube.NameOf(g)] = j.input(g)
	}
	return out
}

// join holds the indexes over one World.
type join struct {
	w         World
	endpoints map[string][]waypoint.Endpoint // by "namespace/hostname"
	workloads []*workload.Workload
	services  []*workload.Service
	meta      map[string]serviceMeta // by "namespace/hostname"
	pods      map[types.NamespacedName]*corev1.Pod
}

// serviceMeta is what WDS does not say of a service.
type serviceMeta struct {
	kind, name string
	created    time.Time
	ports      map[uint32]waypoint.Port
	resolution waypoint.Resolution
}

func newJoin(w World) *join {
	j := &join{w: w, endpoints: map[string][]waypoint.Endpoint{}, meta: map[string]serviceMeta{}, pods: map[types.NamespacedName]*corev1.Pod{}}
	for _, p := range w.Objects.Pods {
		j.pods[kube.NameOf(p)] = p
	}
	for _, s := range w.Objects.Services {
		j.meta[s.Namespace+"/"+kube.Hostname(s.Name, s.Namespace, w.Mesh.ClusterDomain)] = ofService(s)
	}
	for _, e := range w.Objects.ServiceEntries {
		for _, h := range e.Spec.GetHosts() {
			if _, taken := j.meta[e.Namespace+"/"+h]; !taken {
				j.meta[e.Namespace+"/"+h] = ofEntry(e)
			}
		}
	}
	for _, name := range sortedNames(w.Addresses) {
		switch a := w.Addresses[name].GetType().(type) {
		case *workload.Address_Workload:
			j.addWorkload(a.Workload)
		case *workload.Address_Service:
			j.services = append(j.services, a.Service)
		}
	}
	return j
}

func sortedNames(m map[string]*workload.Address) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func ofService(s *corev1.Service) serviceMeta {
	m := serviceMeta{kind: "Service", name: s.Name, created: s.CreationTimestamp.Time, ports: map[uint32]waypoint.Port{}}
	for _, p := range s.Spec.Ports {
		n := uint32(p.Port)
		m.ports[n] = waypoint.Port{Number: n, Name: p.Name, Protocol: protocol(kube.ServicePortProtocol(p))}
	}
	return m
}

func ofEntry(e *networkingv1.ServiceEntry) serviceMeta {
	m := serviceMeta{
		kind: "ServiceEntry", name: e.Name, created: e.CreationTimestamp.Time, ports: map[uint32]waypoint.Port{},
		resolution: resolution(e.Spec.GetResolution()),
	}
	for _, p := range e.Spec.GetPorts() {
		m.ports[p.GetNumber()] = waypoint.Port{Number: p.GetNumber(), Name: p.GetName(), Protocol: protocol(kube.ParseProtocol(p.GetProtocol()))}
	}
	return m
}

func resolution(r networkingapi.ServiceEntry_Resolution) waypoint.Resolution {
	switch r {
	case networkingapi.ServiceEntry_DNS:
		return waypoint.DNS
	case networkingapi.ServiceEntry_DNS_ROUND_ROBIN:
		return waypoint.OneByDNS
	case networkingapi.ServiceEntry_NONE:
		return waypoint.Dialled
	case networkingapi.ServiceEntry_STATIC, networkingapi.ServiceEntry_DYNAMIC_DNS:
	}
	return waypoint.Listed
}

// protocol says how a waypoint treats a declared protocol.
func protocol(p kube.Protocol) waypoint.Protocol {
	switch p {
	case kube.HTTP:
		return waypoint.HTTP
	case kube.HTTP2, kube.GRPC, kube.GRPCWeb:
		return waypoint.HTTP2
	case kube.TCP, kube.TLS, kube.HTTPS, kube.Mongo, kube.MySQL, kube.Redis, kube.HBONE:
		return waypoint.TCP
	case kube.UDP:
		return waypoint.Ignored
	default:
		return waypoint.Sniffed
	}
}

func (j *join) addWorkload(w *workload.Workload) {
	j.workloads = append(j.workloads, w)
	for key, ports := range w.GetServices() {
		targets := map[uint32]uint32{}
		for _, p := range ports.GetPorts() {
			targets[p.GetServicePort()] = p.GetTargetPort()
		}
		j.endpoints[key] = append(j.endpoints[key], waypoint.Endpoint{
			Workload: j.workload(w), Targets: targets, Healthy: w.GetStatus() == workload.WorkloadStatus_HEALTHY,
			Weight: w.GetCapacity().GetValue(),
		})
	}
}

func (j *join) workload(w *workload.Workload) waypoint.Workload {
	out := waypoint.Workload{
		UID: w.GetUid(), Namespace: w.GetNamespace(), Name: w.GetWorkloadName(), HBONE: w.GetTunnelProtocol() == workload.TunnelProtocol_HBONE,
		ServiceAccount: w.GetServiceAccount(), TrustDomain: w.GetTrustDomain(), CanonicalName: w.GetCanonicalName(), CanonicalRevision: w.GetCanonicalRevision(),
		Region: w.GetLocality().GetRegion(), Zone: w.GetLocality().GetZone(), Subzone: w.GetLocality().GetSubzone(),
		Network: w.GetNetwork(), Node: w.GetNode(), Hostname: w.GetHostname(),
	}
	if out.TrustDomain == "" {
		out.TrustDomain = j.w.Mesh.TrustDomain
	}
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default"
	}
	out.Addresses = addresses(w.GetAddresses())
	if p := j.pods[types.NamespacedName{Namespace: w.GetNamespace(), Name: w.GetName()}]; p != nil && strings.Contains(w.GetUid(), "//Pod/") {
		out.Labels = p.Labels
	}
	return out
}

func addresses(raw [][]byte) []netip.Addr {
	var out []netip.Addr
	for _, b := range raw {
		if a, ok := netip.AddrFromSlice(b); ok {
			out = append(out, a)
		}
	}
	return out
}

// input gathers what one waypoint needs.
func (j *join) input(g *gatewayv1.Gateway) waypoint.Input {
	o := j.w.Objects
	in := waypoint.Input{
		Mesh: j.w.Mesh, Gateway: kube.NameOf(g), ClientIdentity: waypoint.AsksClientIdentity(g.Annotations),
		HTTPRoutes: o.HTTPRoutes, GRPCRoutes: o.GRPCRoutes, TLSRoutes: o.TLSRoutes, TCPRoutes: o.TCPRoutes,
		VirtualServices: o.VirtualServices, DestinationRules: o.DestinationRules, Policies: o.Policies,
		Authentications: o.Authentications, Additions: j.additions(),
	}
	in.Secrets = within(o.Secrets, g.Namespace)
	in.ConfigMaps = within(o.ConfigMaps, g.Namespace)
	in.Mesh.IPv6 = j.hasIPv6(g)
	j.locate(g, &in)
	at := j.addressesOf(g)
	for _, s := range j.services {
		in.Services = append(in.Services, j.service(s, at.names(s.GetWaypoint()) || at.namesAny(s.GetWeightedWaypoints())))
	}
	for _, w := range j.workloads {
		if at.names(w.GetWaypoint()) {
			in.Workloads = append(in.Workloads, j.workload(w))
		}
	}
	return in
}

func (j *join) additions() waypoint.Additions {
	o := j.w.Objects
	return waypoint.Additions{
		RateLimits: o.RateLimits, Telemetries: o.Telemetries, BackendTLS: waypoint.BackendTLSOf(o.BackendTLS, o.ConfigMaps),
	}
}

// within are the objects of one namespace.
func within[T interface{ GetNamespace() string }](all []T, namespace string) []T {
	var out []T
	for _, o := range all {
		if o.GetNamespace() == namespace {
			out = append(out, o)
		}
	}
	return out
}

// locate says where the waypoint's pods run.
func (j *join) locate(g *gatewayv1.Gateway, in *waypoint.Input) {
	seen := map[waypoint.Place]bool{}
	for _, w := range j.workloads {
		p := j.pods[types.NamespacedName{Namespace: w.GetNamespace(), Name: w.GetName()}]
		if p == nil || p.Namespace != g.Namespace || p.Labels[kube.LabelGatewayName] != g.Name {
			continue
		}
		l := w.GetLocality()
		seen[waypoint.Place{Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubzone()}] = true
		in.Network, in.Labels = w.GetNetwork(), p.Labels
	}
	in.Places = slices.SortedFunc(maps.Keys(seen), func(a, b waypoint.Place) int { return strings.Compare(a.String(), b.String()) })
}

// preferred are the labels that stand for a service's wish to stay near.
func preferred(lb *workload.LoadBalancing) []string {
	if lb.GetMode() != workload.LoadBalancing_FAILOVER {
		return nil
	}
	names := map[workload.LoadBalancing_Scope]string{
		workload.LoadBalancing_NETWORK: "topology.istio.io/network", workload.LoadBalancing_REGION: "topology.kubernetes.io/region",
		workload.LoadBalancing_ZONE: "topology.kubernetes.io/zone", workload.LoadBalancing_SUBZONE: "topology.istio.io/subzone",
		workload.LoadBalancing_NODE: "kubernetes.io/hostname", workload.LoadBalancing_CLUSTER: "topology.istio.io/cluster",
	}
	var out []string
	for _, s := range lb.GetRoutingPreference() {
		if name := names[s]; name != "" {
			out = append(out, name)
		}
	}
	return out
}

// hasIPv6 says that the waypoint's pods have IPv6 addresses. Envoy refuses a listener for a family that its host lacks.
func (j *join) hasIPv6(g *gatewayv1.Gateway) bool {
	for _, p := range j.pods {
		if p.Namespace != g.Namespace || p.Labels[kube.LabelGatewayName] != g.Name {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is6() {
				return true
			}
		}
	}
	return false
}

func (j *join) service(s *workload.Service, bound bool) waypoint.Service {
	key := s.GetNamespace() + "/" + s.GetHostname()
	m := j.meta[key]
	out := waypoint.Service{
		Kind: m.kind, Namespace: s.GetNamespace(), Name: m.name, Hostname: s.GetHostname(), Created: m.created,
		Endpoints: slices.Clone(j.endpoints[key]), Bound: bound, Prefer: preferred(s.GetLoadBalancing()),
		Resolution: m.resolution,
	}
	for _, a := range s.GetAddresses() {
		if a.Length != nil && a.GetLength() < uint32(8*len(a.GetAddress())) {
			continue // a range is reached through routes by name only
		}
		out.VIPs = append(out.VIPs, addresses([][]byte{a.GetAddress()})...)
	}
	// A service port that an endpoint does not map goes to the service's own target port.
	for _, p := range s.GetPorts() {
		out.Ports = append(out.Ports, m.port(p.GetServicePort()))
		if p.GetTargetPort() == 0 {
			continue
		}
		for _, e := range out.Endpoints {
			if _, ok := e.Targets[p.GetServicePort()]; !ok {
				e.Targets[p.GetServicePort()] = p.GetTargetPort()
			}
		}
	}
	return out
}

func (m serviceMeta) port(n uint32) waypoint.Port {
	if p, ok := m.ports[n]; ok {
		return p
	}
	return waypoint.Port{Number: n}
}

// gatewayAddresses is how WDS resources may name a Gateway.
type gatewayAddresses struct {
	namespace string
	hosts     map[string]bool
	ips       map[netip.Addr]bool
}

func (j *join) addressesOf(g *gatewayv1.Gateway) gatewayAddresses {
	at := gatewayAddresses{namespace: g.Namespace, hosts: map[string]bool{}, ips: map[netip.Addr]bool{}}
	for _, a := range g.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Value); err == nil {
			at.ips[ip] = true
		} else {
			at.hosts[a.Value] = true
		}
	}
	return at
}

func (at gatewayAddresses) names(a *workload.GatewayAddress) bool {
	switch d := a.GetDestination().(type) {
	case *workload.GatewayAddress_Hostname:
		return d.Hostname.GetNamespace() == at.namespace && at.hosts[d.Hostname.GetHostname()]
	case *workload.GatewayAddress_Address:
		ip, ok := netip.AddrFromSlice(d.Address.GetAddress())
		return ok && at.ips[ip]
	default:
		return false
	}
}

func (at gatewayAddresses) namesAny(ws []*workload.WeightedWaypoint) bool {
	return slices.ContainsFunc(ws, func(w *workload.WeightedWaypoint) bool { return at.names(w.GetDestination()) })
}
