package bind

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ingress"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// Edges returns one input for each gateway at the mesh's border. It may send to every service.
func Edges(w World, plans ingress.Output) map[types.NamespacedName]waypoint.Input {
	if len(plans.Edges) == 0 {
		return nil
	}
	j := newJoin(w)
	var services []waypoint.Service
	for _, s := range j.services {
		out := j.service(s, false)
		if s.GetIngressUseWaypoint() && s.GetWaypoint() != nil {
			out.Waypoint = j.waypointPods(s.GetWaypoint())
		}
		services = append(services, out)
	}
	out := map[types.NamespacedName]waypoint.Input{}
	for key, edge := range plans.Edges {
		in := waypoint.Input{
			Mesh: w.Mesh, Gateway: key, Additions: j.additions(), Services: services, Labels: plans.Labels[key],
			VirtualServices:  w.Objects.VirtualServices, // delegates among them
			DestinationRules: w.Objects.DestinationRules, Policies: w.Objects.Policies,
			Authentications: w.Objects.Authentications,
			Secrets:         within(w.Objects.Secrets, key.Namespace), ConfigMaps: within(w.Objects.ConfigMaps, key.Namespace),
		}
		in.Edge = edge
		j.settle(&in)
		out[key] = in
	}
	return out
}

// waypointPods are the pods of the waypoint that a service names. It is not nil: a waypoint without pods is not gone around.
func (j *join) waypointPods(a *workload.GatewayAddress) []waypoint.Endpoint {
	out := []waypoint.Endpoint{}
	switch d := a.GetDestination().(type) {
	case *workload.GatewayAddress_Hostname:
		return append(out, j.endpoints[d.Hostname.GetNamespace()+"/"+d.Hostname.GetHostname()]...)
	case *workload.GatewayAddress_Address:
		ip, ok := netip.AddrFromSlice(d.Address.GetAddress())
		for _, s := range j.services {
			for _, v := range s.GetAddresses() {
				if vip, fine := netip.AddrFromSlice(v.GetAddress()); ok && fine && vip == ip {
					return append(out, j.endpoints[s.GetNamespace()+"/"+s.GetHostname()]...)
				}
			}
		}
	}
	return out
}

// settle says where the gateway's pods run, and whether they have IPv6.
func (j *join) settle(in *waypoint.Input) {
	seen := map[waypoint.Place]bool{}
	for _, w := range j.workloads {
		p := j.pods[types.NamespacedName{Namespace: w.GetNamespace(), Name: w.GetName()}]
		if p == nil || !strings.Contains(w.GetUid(), "//Pod/") || !instance(p, in.Gateway) {
			continue
		}
		l := w.GetLocality()
		seen[waypoint.Place{Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubzone()}] = true
		in.Network = w.GetNetwork()
		for _, a := range addresses(w.GetAddresses()) {
			in.Mesh.IPv6 = in.Mesh.IPv6 || a.Is6()
		}
	}
	in.Places = slices.SortedFunc(maps.Keys(seen), func(a, b waypoint.Place) int { return strings.Compare(a.String(), b.String()) })
}

func instance(p *corev1.Pod, of types.NamespacedName) bool {
	if name := p.Labels[kube.LabelGatewayName]; name != "" {
		return p.Namespace == of.Namespace && name == of.Name
	}
	return ingress.InstanceName(p) == of
}
