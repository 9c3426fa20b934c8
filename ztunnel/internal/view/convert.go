package view

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
)

var errNoPayload = errors.New("resource has no payload")

// Workload converts the wire form. It refuses what it cannot represent: a workload half understood
// could be reached in a way nobody meant.
func Workload(p *workload.Workload) (*mesh.Workload, error) {
	w := &mesh.Workload{
		UID: p.GetUid(), Name: p.GetName(), Namespace: p.GetNamespace(), Network: p.GetNetwork(),
		Node: p.GetNode(), Hostname: p.GetHostname(), Policies: p.GetAuthorizationPolicies(),
		NativeTunnel: p.GetNativeTunnel(), Capacity: 1,
		Runtime: mesh.Runtime{
			WorkloadType: workloadType(p.GetWorkloadType()), WorkloadName: p.GetWorkloadName(),
			CanonicalName: p.GetCanonicalName(), CanonicalRevision: p.GetCanonicalRevision(),
			ClusterID: cmp.Or(p.GetClusterId(), mesh.DefaultCluster),
			Locality: mesh.Locality{
				Region: p.GetLocality().GetRegion(), Zone: p.GetLocality().GetZone(), Subzone: p.GetLocality().GetSubzone(),
			},
		},
	}
	if p.GetCapacity() != nil {
		w.Capacity = p.GetCapacity().GetValue()
	}
	if w.Namespace != "" {
		id, err := identity.New(cmp.Or(p.GetTrustDomain(), mesh.DefaultTrustDomain), w.Namespace,
			cmp.Or(p.GetServiceAccount(), mesh.DefaultServiceAccount))
		if err != nil {
			return nil, err
		}
		w.ID = id
	}
	for i, raw := range p.GetAddresses() {
		ip, ok := netip.AddrFromSlice(raw)
		if !ok {
			return nil, fmt.Errorf("addresses[%d] has %d bytes: want 4 or 16", i, len(raw))
		}
		w.Addresses = append(w.Addresses, ip)
	}
	var err error
	if w.Waypoint, err = gateway("waypoint", p.GetWaypoint()); err != nil {
		return nil, err
	}
	if w.NetworkGateway, err = gateway("network_gateway", p.GetNetworkGateway()); err != nil {
		return nil, err
	}
	if err := workloadEnums(w, p); err != nil {
		return nil, err
	}
	w.Services, err = memberships(p.GetServices())
	return w, err
}

// workloadEnums refuses numbers that this proxy does not know, as the protocol demands.
func workloadEnums(w *mesh.Workload, p *workload.Workload) error {
	switch p.GetTunnelProtocol() {
	case workload.TunnelProtocol_NONE:
	case workload.TunnelProtocol_HBONE:
		w.Protocol = mesh.HBONE
	case workload.TunnelProtocol_LEGACY_ISTIO_MTLS:
		return errors.New("tunnel_protocol LEGACY_ISTIO_MTLS is not supported: use NONE or HBONE")
	default:
		return unknownEnum("tunnel_protocol", p.GetTunnelProtocol())
	}
	switch p.GetNetworkMode() {
	case workload.NetworkMode_STANDARD:
	case workload.NetworkMode_HOST_NETWORK:
		w.HostNetwork = true
	default:
		return unknownEnum("network_mode", p.GetNetworkMode())
	}
	switch p.GetStatus() {
	case workload.WorkloadStatus_HEALTHY:
	case workload.WorkloadStatus_UNHEALTHY:
		w.Unhealthy = true
	default:
		return unknownEnum("status", p.GetStatus())
	}
	if p.GetApplicationTunnel() == nil {
		return nil
	}
	w.Tunnel = &mesh.ApplicationTunnel{Port: uint16(p.GetApplicationTunnel().GetPort())}
	switch p.GetApplicationTunnel().GetProtocol() {
	case workload.ApplicationTunnel_NONE:
	case workload.ApplicationTunnel_PROXY:
		w.Tunnel.Protocol = mesh.TunnelProxy
	default:
		return unknownEnum("application_tunnel.protocol", p.GetApplicationTunnel().GetProtocol())
	}
	return nil
}

func unknownEnum[E fmt.Stringer](field string, v E) error {
	return fmt.Errorf("%s %s is not a known value", field, v)
}

func workloadType(t workload.WorkloadType) string {
	switch t {
	case workload.WorkloadType_CRONJOB:
		return "cronjob"
	case workload.WorkloadType_POD:
		return "pod"
	case workload.WorkloadType_JOB:
		return "job"
	case workload.WorkloadType_DEPLOYMENT:
	}
	return "deployment"
}

func memberships(services map[string]*workload.PortList) ([]mesh.Membership, error) {
	if len(services) == 0 {
		return nil, nil
	}
	out := make([]mesh.Membership, 0, len(services))
	for key, list := range services {
		ns, host, ok := strings.Cut(key, "/")
		if !ok {
			return nil, fmt.Errorf("services[%q]: want namespace/hostname", key)
		}
		out = append(out, mesh.Membership{Service: mesh.NamespacedHostname{Namespace: ns, Hostname: host}, Ports: ports(list.GetPorts())})
	}
	slices.SortFunc(out, func(a, b mesh.Membership) int {
		return cmp.Or(strings.Compare(a.Service.Namespace, b.Service.Namespace), strings.Compare(a.Service.Hostname, b.Service.Hostname))
	})
	return out, nil
}

// ports cuts the numbers to 16 bits, as the protocol says.
func ports(list []*workload.Port) []mesh.PortMapping {
	if len(list) == 0 {
		return nil
	}
	out := make([]mesh.PortMapping, len(list))
	for i, p := range list {
		out[i] = mesh.PortMapping{Service: uint16(p.GetServicePort()), Target: uint16(p.GetTargetPort())}
	}
	return out
}

func gateway(field string, g *workload.GatewayAddress) (*mesh.GatewayAddress, error) {
	if g == nil {
		return nil, nil
	}
	out := &mesh.GatewayAddress{Port: uint16(g.GetHboneMtlsPort())}
	switch d := g.GetDestination().(type) {
	case *workload.GatewayAddress_Hostname:
		out.Host = mesh.NamespacedHostname{Namespace: d.Hostname.GetNamespace(), Hostname: d.Hostname.GetHostname()}
		if out.Host.Hostname == "" {
			return nil, fmt.Errorf("%s has an empty hostname", field)
		}
	case *workload.GatewayAddress_Address:
		ip, ok := netip.AddrFromSlice(d.Address.GetAddress())
		if !ok {
			return nil, fmt.Errorf("%s address has %d bytes: want 4 or 16", field, len(d.Address.GetAddress()))
		}
		out.Addr = mesh.NetworkAddress{Network: d.Address.GetNetwork(), Addr: ip}
	default:
		return nil, fmt.Errorf("%s has no destination: set hostname or address", field)
	}
	return out, nil
}

// Service converts the wire form. ignored are parts that the protocol lets go with a warning.
func Service(p *workload.Service) (s *mesh.Service, ignored []error, err error) {
	s = &mesh.Service{
		Name: p.GetName(), Namespace: p.GetNamespace(), Hostname: p.GetHostname(),
		Ports: ports(p.GetPorts()), Canonical: p.GetCanonical(),
		Private: p.GetVisibility() == workload.Visibility_NAMESPACE,
	}
	for i, a := range p.GetAddresses() {
		vip, err := virtualIP(a)
		if err != nil {
			return nil, nil, fmt.Errorf("addresses[%d]: %w", i, err)
		}
		s.VIPs = append(s.VIPs, vip)
	}
	for _, san := range p.GetSubjectAltNames() {
		id, err := identity.Parse(san)
		if err != nil {
			ignored = append(ignored, fmt.Errorf("subject_alt_names: %w", err))
			continue
		}
		s.SANs = append(s.SANs, id)
	}
	if s.Waypoint, err = gateway("waypoint", p.GetWaypoint()); err != nil {
		return nil, nil, err
	}
	for i, ww := range p.GetWeightedWaypoints() {
		g, err := gateway(fmt.Sprintf("weighted_waypoints[%d].destination", i), ww.GetDestination())
		if err != nil {
			return nil, nil, err
		}
		if g == nil {
			return nil, nil, fmt.Errorf("weighted_waypoints[%d] has no destination", i)
		}
		s.WeightedWaypoints = append(s.WeightedWaypoints, mesh.WeightedWaypoint{Destination: *g, Weight: ww.GetWeight()})
	}
	if err := serviceEnums(s, p); err != nil {
		return nil, nil, err
	}
	return s, ignored, nil
}

// virtualIP reads an address without a length as one address; host bits of a range do not matter.
func virtualIP(a *workload.NetworkAddress) (mesh.VIP, error) {
	ip, ok := netip.AddrFromSlice(a.GetAddress())
	if !ok {
		return mesh.VIP{}, fmt.Errorf("address has %d bytes: want 4 or 16", len(a.GetAddress()))
	}
	length := ip.BitLen()
	if a.Length != nil {
		if a.GetLength() > uint32(ip.BitLen()) {
			return mesh.VIP{}, fmt.Errorf("length %d of %s: at most %d", a.GetLength(), ip, ip.BitLen())
		}
		length = int(a.GetLength())
	}
	return mesh.VIP{Network: a.GetNetwork(), Prefix: netip.PrefixFrom(ip, length)}, nil
}

func serviceEnums(s *mesh.Service, p *workload.Service) error {
	switch p.GetIpFamilies() {
	case workload.IPFamilies_AUTOMATIC:
	case workload.IPFamilies_IPV4_ONLY:
		s.Families = mesh.IPv4Only
	case workload.IPFamilies_IPV6_ONLY:
		s.Families = mesh.IPv6Only
	case workload.IPFamilies_DUAL:
		s.Families = mesh.DualStack
	default:
		return unknownEnum("ip_families", p.GetIpFamilies())
	}
	lb := p.GetLoadBalancing()
	switch lb.GetMode() {
	case workload.LoadBalancing_UNSPECIFIED_MODE:
	case workload.LoadBalancing_STRICT:
		s.LoadBalancing.Mode = mesh.ModeStrict
	case workload.LoadBalancing_FAILOVER:
		s.LoadBalancing.Mode = mesh.ModeFailover
	case workload.LoadBalancing_PASSTHROUGH:
		s.LoadBalancing.Mode = mesh.ModePassthrough
	default:
		return unknownEnum("load_balancing.mode", lb.GetMode())
	}
	switch lb.GetHealthPolicy() {
	case workload.LoadBalancing_ONLY_HEALTHY:
	case workload.LoadBalancing_ALLOW_ALL:
		s.LoadBalancing.AllowUnhealthy = true
	default:
		return unknownEnum("load_balancing.health_policy", lb.GetHealthPolicy())
	}
	for i, scope := range lb.GetRoutingPreference() {
		if scope < workload.LoadBalancing_REGION || scope > workload.LoadBalancing_NETWORK {
			return unknownEnum(fmt.Sprintf("load_balancing.routing_preference[%d]", i), scope)
		}
		s.LoadBalancing.Preferences = append(s.LoadBalancing.Preferences, mesh.Scope(scope))
	}
	return nil
}
