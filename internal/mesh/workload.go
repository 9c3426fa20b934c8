package mesh

import (
	"net/netip"
	"slices"

	"github.com/marrowmesh/marrow/internal/identity"
)

// DefaultTrustDomain, DefaultServiceAccount and DefaultCluster stand for empty fields on the wire.
const (
	DefaultTrustDomain    = "cluster.local"
	DefaultServiceAccount = "default"
	DefaultCluster        = "Kubernetes"
)

// Protocol is how a workload is reached.
type Protocol uint8

// The protocols. TCP is plaintext: the workload is not in the mesh.
const (
	TCP Protocol = iota
	HBONE
)

func (p Protocol) String() string {
	if p == HBONE {
		return "HBONE"
	}
	return "TCP"
}

// NamespacedHostname names a service, or a workload that has a host name.
type NamespacedHostname struct {
	Namespace string
	Hostname  string
}

func (n NamespacedHostname) String() string { return n.Namespace + "/" + n.Hostname }

// NetworkAddress is an address of one network; the empty network is a network too.
type NetworkAddress struct {
	Network string
	Addr    netip.Addr
}

func (a NetworkAddress) String() string { return a.Network + "/" + a.Addr.String() }

// GatewayAddress refers to a waypoint or a network gateway: by host name if Host is set, else by address.
type GatewayAddress struct {
	Host NamespacedHostname
	Addr NetworkAddress
	// Port is the HBONE port of the gateway's service or workload.
	Port uint16
}

// ByHost says which of the two forms the address has.
func (g *GatewayAddress) ByHost() bool { return g.Host.Hostname != "" }

// String is "namespace/hostname" or "network/address", without the port.
func (g *GatewayAddress) String() string {
	if g.ByHost() {
		return g.Host.String()
	}
	return g.Addr.String()
}

// TunnelProtocol is how the application behind a workload wants to be spoken to.
type TunnelProtocol uint8

// The application tunnel protocols.
const (
	TunnelNone TunnelProtocol = iota
	TunnelProxy
)

func (p TunnelProtocol) String() string {
	if p == TunnelProxy {
		return "PROXY"
	}
	return "NONE"
}

// ApplicationTunnel replaces the port, and perhaps the protocol, of deliveries to a workload.
type ApplicationTunnel struct {
	Protocol TunnelProtocol
	// Port is where the application listens; 0 keeps the requested port.
	Port uint16
}

// Locality is where a workload runs.
type Locality struct {
	Region, Zone, Subzone string
}

// PortMapping is one service port and the port behind it; Target 0 means "each endpoint says its own".
type PortMapping struct {
	Service uint16
	Target  uint16
}

// Membership makes a workload an endpoint of a service, with its own port numbers.
type Membership struct {
	Service NamespacedHostname
	Ports   []PortMapping
}

// Runtime is what telemetry says about a workload beyond its name.
type Runtime struct {
	// WorkloadType is the lower-case kind of owner: deployment, cronjob, pod or job.
	WorkloadType string
	// WorkloadName is the owner's name.
	WorkloadName      string
	CanonicalName     string
	CanonicalRevision string
	ClusterID         string
	Locality          Locality
}

// Workload is one endpoint of the mesh: a pod, a workload entry or an address outside. Treat it as read-only.
type Workload struct {
	UID       string
	Name      string
	Namespace string
	Network   string
	Node      string
	Hostname  string
	Addresses []netip.Addr
	Protocol  Protocol
	// ID is the identity the workload's peers must present and see.
	ID identity.ID
	// Waypoint is the workload's own waypoint; nil if it has none.
	Waypoint *GatewayAddress
	// NetworkGateway leads to the workload from other networks; nil if it has none.
	NetworkGateway *GatewayAddress
	// Tunnel is nil unless the application expects its traffic in a special way.
	Tunnel *ApplicationTunnel
	// Services are sorted by name.
	Services []Membership
	// Policies are the names of the selector policies that apply.
	Policies []string
	Runtime
	// Capacity is the load-balancing weight; 0 is never chosen.
	Capacity     uint32
	Unhealthy    bool
	HostNetwork  bool
	NativeTunnel bool
}

// Identity is the workload's own identity.
func (w *Workload) Identity() identity.ID { return w.ID }

// HasAddr says whether ip is one of the workload's addresses.
func (w *Workload) HasAddr(ip netip.Addr) bool {
	return slices.Contains(w.Addresses, ip)
}

// Membership returns the workload's place in a service, nil if it is no endpoint of it.
func (w *Workload) Membership(s NamespacedHostname) *Membership {
	for i := range w.Services {
		if w.Services[i].Service == s {
			return &w.Services[i]
		}
	}
	return nil
}

// Target is the endpoint's own port for a service port; false if it does not map it.
func (m *Membership) Target(port uint16) (uint16, bool) { return target(m.Ports, port) }

// target returns the last mapping of a port, as duplicates are resolved on the wire.
func target(ports []PortMapping, port uint16) (uint16, bool) {
	for _, m := range slices.Backward(ports) {
		if m.Service == port {
			return m.Target, true
		}
	}
	return 0, false
}
