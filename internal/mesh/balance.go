package mesh

import "net/netip"

// Use says what an endpoint is looked for.
type Use uint8

// The uses of an endpoint.
const (
	// ForTraffic is the normal destination of a connection, or a network gateway.
	ForTraffic Use = iota
	// ForWaypoint looks for a waypoint, which may stand behind an application tunnel
	// and then need not list its port.
	ForWaypoint
)

// Choice is the outcome of load balancing.
type Choice struct {
	Workload *Workload
	// Port is where the endpoint listens.
	Port uint16
}

// Choose picks one endpoint of a service for a client, by the service's wishes and the endpoints' capacities.
// rnd(n) must return a number below n. False: there is no endpoint that can take the connection.
func (v *View) Choose(src *Workload, s *Service, port uint16, use Use, rnd func(n uint64) uint64) (Choice, bool) {
	svcTarget, listed := s.Target(port)
	if use == ForTraffic && !listed {
		return Choice{}, false
	}
	b := balancer{src: src, service: s, port: port, svcTarget: svcTarget, listed: listed, use: use}
	members := v.Endpoints(s.Key())
	best, total := -1, uint64(0)
	for i := range members {
		score, target := b.score(&members[i])
		if score < 0 || target == 0 || score < best {
			continue
		}
		if score > best {
			best, total = score, 0
		}
		total += uint64(members[i].Workload.Capacity)
	}
	if total == 0 {
		return Choice{}, false
	}
	at := rnd(total)
	for i := range members {
		score, target := b.score(&members[i])
		if score != best || target == 0 {
			continue
		}
		weight := uint64(members[i].Workload.Capacity)
		if at < weight {
			return Choice{Workload: members[i].Workload, Port: target}, true
		}
		at -= weight
	}
	return Choice{}, false
}

// balancer is one question for an endpoint.
type balancer struct {
	src       *Workload
	service   *Service
	port      uint16
	svcTarget uint16
	listed    bool
	use       Use
}

// score ranks an endpoint, higher is nearer; negative is no candidate. target is its port, 0 if it has none.
func (b *balancer) score(ep *Endpoint) (score int, to uint16) {
	w, lb := ep.Workload, &b.service.LoadBalancing
	if w.Unhealthy && !lb.AllowUnhealthy {
		return -1, 0
	}
	if len(w.Addresses) == 0 && w.Hostname == "" && (w.Network == b.src.Network || w.NetworkGateway == nil) {
		return -1, 0 // nothing to connect to
	}
	to = b.target(ep)
	if to == 0 {
		return -1, 0
	}
	if lb.Mode == ModeStandard || lb.Mode == ModePassthrough {
		return 0, to
	}
	matches, extra := 0, 0
	for i, scope := range lb.Preferences {
		same := shares(b.src, w, scope)
		if i == 0 && scope == ScopeNetwork {
			// The network first: any endpoint of it beats all others, which are still ranked by the rest.
			if same {
				matches++
				extra = len(lb.Preferences) - 1
			}
			continue
		}
		if !same {
			break
		}
		matches++
	}
	if lb.Mode == ModeStrict && matches != len(lb.Preferences) {
		return -1, 0
	}
	return matches + extra, to
}

// target is the port of the endpoint: its own mapping, else the service's, else, behind an
// application tunnel, the port asked for.
func (b *balancer) target(ep *Endpoint) uint16 {
	if own, ok := target(ep.Ports, b.port); ok && own != 0 {
		return own
	}
	if b.svcTarget != 0 {
		return b.svcTarget
	}
	if b.use == ForWaypoint && ep.Workload.Tunnel != nil {
		return b.port
	}
	return 0
}

func shares(a, b *Workload, scope Scope) bool {
	switch scope {
	case ScopeRegion:
		return a.Locality.Region == b.Locality.Region
	case ScopeZone:
		return a.Locality.Zone == b.Locality.Zone
	case ScopeSubzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case ScopeNode:
		return a.Node == b.Node
	case ScopeCluster:
		return a.ClusterID == b.ClusterID
	case ScopeNetwork:
		return a.Network == b.Network
	}
	return false
}

// PickAddr chooses which address of a workload to connect to: the one asked for if it is
// one of them, else one that the service accepts, preferably of the family asked for.
// False: it has none; it must be resolved by its host name or reached by its gateway.
func PickAddr(w *Workload, families IPFamilies, asked netip.Addr) (netip.Addr, bool) {
	if asked.IsValid() && w.HasAddr(asked) {
		return asked, true
	}
	var other netip.Addr
	for _, ip := range w.Addresses {
		if !families.Accepts(ip) {
			continue
		}
		if !asked.IsValid() || ip.Is4() == asked.Is4() {
			return ip, true
		}
		if !other.IsValid() {
			other = ip
		}
	}
	return other, other.IsValid()
}
