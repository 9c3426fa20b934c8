package waypoint

import (
	"cmp"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// selectsEdge says that a policy without targets means the gateway's pods: all of its namespace or of the mesh, or those
// with the labels that it asks for.
func (d *derivation) selectsEdge(p *securityv1.AuthorizationPolicy) bool {
	if d.in.Edge == nil || len(targetsOf(p)) > 0 {
		return false
	}
	return (p.Namespace == d.in.Gateway.Namespace || p.Namespace == d.in.Mesh.RootNamespace) &&
		hasLabels(d.in.Labels, p.Spec.GetSelector().GetMatchLabels())
}

// tokensAtEdge says the same of rules on tokens.
func (d *derivation) tokensAtEdge(o *securityv1.RequestAuthentication) bool {
	if d.in.Edge == nil || len(o.Spec.GetTargetRefs()) > 0 || o.Spec.GetTargetRef() != nil {
		return false
	}
	return (o.Namespace == d.in.Gateway.Namespace || o.Namespace == d.in.Mesh.RootNamespace) &&
		hasLabels(d.in.Labels, o.Spec.GetSelector().GetMatchLabels())
}

// permittedHost is backendHost for a route that may be bound to a gateway: then the owner of a Service in another namespace
// has to agree.
func (d *derivation) permittedHost(owner routeOwner, ref gatewayv1.BackendObjectReference) (host string, port uint32, reason, message string) {
	if e := d.in.Edge; e != nil && e.Permitted != nil && ref.Namespace != nil && string(*ref.Namespace) != owner.namespace &&
		!e.Permitted(owner.kind, owner.namespace, string(*ref.Namespace), string(ref.Name)) {
		// Said before it is looked up, so that nobody learns what there is in foreign namespaces.
		return "", 0, string(gatewayv1.RouteReasonRefNotPermitted), "backend " + string(*ref.Namespace) + "/" + string(ref.Name) +
			" is in another namespace, where no ReferenceGrant permits " + owner.kind + "s of namespace " + owner.namespace
	}
	return d.backendHost(ref, owner.namespace)
}

// ingressWaypoint are the endpoints of a service that wants gateways to go through its waypoint: the waypoint's pods, asked
// for the service's own address. nil is a service without that wish.
func (d *derivation) ingressWaypoint(want clusterWant) []*endpointv3.LocalityLbEndpoints {
	s := want.service
	if d.in.Edge == nil || s.Waypoint == nil || len(s.VIPs) == 0 {
		return nil
	}
	vip := s.VIPs[0]
	for _, a := range s.VIPs {
		if a.Is4() {
			vip = a
			break
		}
	}
	local := netip.AddrPortFrom(vip, uint16(want.port.Number)).String()
	group := &endpointv3.LocalityLbEndpoints{Locality: &corev3.Locality{}, LoadBalancingWeight: uintValue(1)}
	pods := slices.Clone(s.Waypoint)
	slices.SortFunc(pods, func(a, b Endpoint) int {
		return cmp.Or(firstAddress(a).Compare(firstAddress(b)), cmp.Compare(a.UID, b.UID))
	})
	for i := range pods {
		e := &pods[i]
		if len(e.Addresses) == 0 {
			continue
		}
		out := d.endpoint(e, HBONEPort)
		hop := netip.AddrPortFrom(e.Addresses[0], HBONEPort).String()
		// Each endpoint has to have an address of its own: the service's is the same for all.
		out.GetEndpoint().Address = internalAddress(ConnectOriginate, local+"/"+hop)
		out.GetMetadata().FilterMetadata[originalDstKey] = fields(map[string]*structpb.Value{"local": text(local), waypointHop: text(hop)})
		group.LbEndpoints = append(group.LbEndpoints, out)
	}
	return []*endpointv3.LocalityLbEndpoints{group}
}
