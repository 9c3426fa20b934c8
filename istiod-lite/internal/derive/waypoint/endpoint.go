package waypoint

import (
	"cmp"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

type locality struct{ region, zone, subzone string }

// assignment lists the endpoints of a cluster, by locality and address.
func (d *derivation) assignment(name string, want clusterWant) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	rules := d.rules.forService(want.service)
	if originatesTLS(rules.policy(want.port.Number, want.subset)) {
		return out
	}
	var labels map[string]string
	if want.subset != "" {
		labels = rules.subset(want.subset).GetLabels()
	}
	endpoints := slices.Clone(want.service.Endpoints)
	slices.SortFunc(endpoints, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Subzone, b.Subzone),
			firstAddress(a).Compare(firstAddress(b)), cmp.Compare(a.UID, b.UID))
	})
	var last locality
	for i := range endpoints {
		e := &endpoints[i]
		target, served := e.Targets[want.port.Number]
		if !served || len(e.Addresses) == 0 || !hasLabels(e.Labels, labels) {
			continue
		}
		at := locality{e.Region, e.Zone, e.Subzone}
		if len(out.GetEndpoints()) == 0 || at != last {
			out.Endpoints = append(out.Endpoints, &endpointv3.LocalityLbEndpoints{
				Locality: &corev3.Locality{Region: at.region, Zone: at.zone, SubZone: at.subzone},
			})
			last = at
		}
		group := out.GetEndpoints()[len(out.GetEndpoints())-1]
		group.LbEndpoints = append(group.LbEndpoints, d.endpoint(e, target))
		group.LoadBalancingWeight = uintValue(uint32(len(group.GetLbEndpoints())))
	}
	return out
}

func (d *derivation) endpoint(e *Endpoint, target uint32) *endpointv3.LbEndpoint {
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
		LoadBalancingWeight: uintValue(1),
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
