package waypoint

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

type locality struct{ region, zone, subzone string }

func (l locality) compare(o locality) int {
	return cmp.Or(cmp.Compare(l.region, o.region), cmp.Compare(l.zone, o.zone), cmp.Compare(l.subzone, o.subzone))
}

// assignment lists the endpoints of a cluster, by priority, locality and address.
func (d *derivation) assignment(name string, want clusterWant) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	rules := d.rules.forService(want.service)
	policy := rules.policy(want.port.Number, want.subset)
	if d.closed[name] {
		return out
	}
	var labels map[string]string
	if want.subset != "" {
		labels = rules.subset(want.subset).GetLabels()
	}
	if hop := d.ingressWaypoint(want); hop != nil {
		out.Endpoints = hop
		return out
	}
	near := d.nearness(want.service, policy)
	// Below a panic threshold every endpoint is tried; one that says it is not ready must not be among them.
	readyOnly := policy.GetOutlierDetection().GetMinHealthPercent() > 0
	groups := map[groupKey]*group{}
	for i := range want.service.Endpoints {
		e := &want.service.Endpoints[i]
		if _, served := e.Targets[want.port.Number]; !served || !reachable(e, want.service) || !hasLabels(e.Labels, labels) || readyOnly && !e.Healthy {
			continue
		}
		key := groupKey{locality{e.Region, e.Zone, e.Subzone}, d.priority(&near, e)}
		g := groups[key]
		if g == nil {
			g = &group{groupKey: key}
			groups[key] = g
		}
		g.endpoints, g.weight = append(g.endpoints, e), g.weight+uint64(e.weight())
	}
	for _, g := range sortedGroups(groups, &near, d.in.Place) {
		l := &endpointv3.LocalityLbEndpoints{
			Locality: &corev3.Locality{Region: g.at.region, Zone: g.at.zone, SubZone: g.at.subzone},
			Priority: g.priority, LoadBalancingWeight: uintValue(uint32(min(g.weight, maxWeight))),
		}
		for _, e := range g.endpoints {
			l.LbEndpoints = append(l.LbEndpoints, d.endpoint(e, e.Targets[want.port.Number]))
		}
		out.Endpoints = append(out.Endpoints, l)
	}
	return out
}

// reachable says that the endpoint has an address, or a name where names are resolved.
func reachable(e *Endpoint, s *Service) bool {
	return len(e.Addresses) > 0 || e.Hostname != "" && !strings.Contains(e.Hostname, "*") && s.byName()
}

func (s *Service) byName() bool { return s.Resolution == DNS || s.Resolution == OneByDNS }

// maxWeight is what Envoy allows a priority's localities together; a mesh with more endpoints than that does not exist.
const maxWeight = 1 << 24

func sortedGroups(by map[groupKey]*group, near *nearness, own Place) []*group {
	groups := slices.Collect(maps.Values(by))
	slices.SortFunc(groups, func(a, b *group) int { return cmp.Or(cmp.Compare(a.priority, b.priority), a.at.compare(b.at)) })
	for _, g := range groups {
		slices.SortFunc(g.endpoints, func(a, b *Endpoint) int {
			return cmp.Or(firstAddress(*a).Compare(firstAddress(*b)), cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.UID, b.UID))
		})
	}
	groups = near.distributed(own, groups)
	closeGaps(groups)
	return groups
}

func (d *derivation) endpoint(e *Endpoint, target uint32) *endpointv3.LbEndpoint {
	if len(e.Addresses) == 0 {
		return &endpointv3.LbEndpoint{
			HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(e.Hostname, target)}},
			LoadBalancingWeight: uintValue(e.weight()),
		}
	}
	addr := netip.AddrPortFrom(e.Addresses[0], uint16(target))
	health := corev3.HealthStatus_HEALTHY
	if !e.Healthy {
		health = corev3.HealthStatus_UNHEALTHY
	}
	metadata := map[string]*structpb.Struct{"istio": fields(map[string]*structpb.Value{
		"workload": text(workloadName(e, d.in.Mesh.ClusterID)),
		"identity": text(e.identity()),
		"uid":      text(e.UID),
		"app":      text(e.Labels["app"]),
		"version":  text(e.Labels["version"]),
	})}
	address := socketAddress(addr.Addr().String(), target)
	if e.HBONE {
		address = internalAddress(ConnectOriginate, addr.String())
		metadata[originalDstKey] = fields(map[string]*structpb.Value{"local": text(addr.String())})
	}
	return &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
		HealthStatus:        health,
		Metadata:            &corev3.Metadata{FilterMetadata: metadata},
		LoadBalancingWeight: uintValue(e.weight()),
	}
}

// workloadName is Istio's compact form for telemetry: name;namespace;canonical name;revision;cluster.
func workloadName(e *Endpoint, cluster string) string {
	revision := e.CanonicalRevision
	if revision == "latest" {
		revision = ""
	}
	return e.Name + ";" + e.Namespace + ";" + e.CanonicalName + ";" + revision + ";" + cluster
}

func firstAddress(e Endpoint) netip.Addr {
	if len(e.Addresses) == 0 {
		return netip.Addr{}
	}
	return e.Addresses[0]
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}
