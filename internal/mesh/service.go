package mesh

import (
	"net/netip"

	"github.com/marrowmesh/marrow/internal/identity"
)

// IPFamilies restricts which of an endpoint's addresses a service uses.
type IPFamilies uint8

// The family restrictions.
const (
	AnyFamily IPFamilies = iota
	IPv4Only
	IPv6Only
	DualStack
)

func (f IPFamilies) String() string {
	switch f {
	case IPv4Only:
		return "IPv4"
	case IPv6Only:
		return "IPv6"
	case DualStack:
		return "Dual"
	case AnyFamily:
	}
	return ""
}

// Accepts says whether an address may be used under the restriction.
func (f IPFamilies) Accepts(ip netip.Addr) bool {
	switch f {
	case IPv4Only:
		return ip.Is4()
	case IPv6Only:
		return ip.Is6()
	case AnyFamily, DualStack:
	}
	return true
}

// Scope is one thing that a service may prefer to have in common with its client.
type Scope uint8

// The scopes, in the order of the wire's numbers.
const (
	ScopeRegion Scope = iota + 1
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

func (s Scope) String() string {
	names := [...]string{"Unspecified", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"}
	if int(s) < len(names) {
		return names[s]
	}
	return "Unspecified"
}

// Mode is how the preferences narrow the endpoints.
type Mode uint8

// The modes.
const (
	// ModeStandard ignores preferences.
	ModeStandard Mode = iota
	// ModeStrict keeps only endpoints that match every preference.
	ModeStrict
	// ModeFailover keeps the endpoints that match the longest run of preferences.
	ModeFailover
	// ModePassthrough makes no choice: the original address is kept.
	ModePassthrough
)

func (m Mode) String() string {
	names := [...]string{"Standard", "Strict", "Failover", "Passthrough"}
	if int(m) < len(names) {
		return names[m]
	}
	return "Standard"
}

// LoadBalancing is a service's wish for the choice of its endpoints.
type LoadBalancing struct {
	Preferences []Scope
	Mode        Mode
	// AllowUnhealthy keeps endpoints that are not ready.
	AllowUnhealthy bool
}

// WeightedWaypoint takes a share of a service's new connections.
type WeightedWaypoint struct {
	Destination GatewayAddress
	Weight      uint32
}

// VIP is a virtual address of a service, or a whole range of them.
type VIP struct {
	Network string
	Prefix  netip.Prefix
}

// Exact says that the VIP is one address.
func (v VIP) Exact() bool { return v.Prefix.IsSingleIP() }

// Service is one host name of one namespace with its virtual addresses. Treat it as read-only.
type Service struct {
	Name      string
	Namespace string
	Hostname  string
	VIPs      []VIP
	Ports     []PortMapping
	// SANs are identities accepted from an endpoint besides its own.
	SANs []identity.ID
	// Waypoint handles the service's traffic; nil if it has none.
	Waypoint *GatewayAddress
	// WeightedWaypoints replace Waypoint while one of them has a weight above zero.
	WeightedWaypoints []WeightedWaypoint
	LoadBalancing     LoadBalancing
	Families          IPFamilies
	// Canonical wins where several namespaces own a host name or an address.
	Canonical bool
	// Private services are seen only by clients of their own namespace.
	Private bool
}

// Key is the service's name in the mesh.
func (s *Service) Key() NamespacedHostname {
	return NamespacedHostname{Namespace: s.Namespace, Hostname: s.Hostname}
}

// VisibleTo says whether clients of a namespace may see the service.
func (s *Service) VisibleTo(namespace string) bool { return !s.Private || s.Namespace == namespace }

// Target is the service-level port behind a service port; false if the service does not list it.
func (s *Service) Target(port uint16) (uint16, bool) { return target(s.Ports, port) }

// PickWaypoint chooses the waypoint of one new connection, nil if the service has none.
func (s *Service) PickWaypoint(rnd func(n uint64) uint64) *GatewayAddress {
	var total uint64
	for i := range s.WeightedWaypoints {
		total += uint64(s.WeightedWaypoints[i].Weight)
	}
	if total == 0 {
		return s.Waypoint
	}
	at := rnd(total)
	for i := range s.WeightedWaypoints {
		weight := uint64(s.WeightedWaypoints[i].Weight)
		if at < weight {
			return &s.WeightedWaypoints[i].Destination
		}
		at -= weight
	}
	return s.Waypoint
}

// ResourceName is the name under which the service travels on the wire.
func (s *Service) ResourceName() string { return s.Key().String() }
