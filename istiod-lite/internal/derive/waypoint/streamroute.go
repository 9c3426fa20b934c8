package waypoint

import (
	"slices"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// tcpTarget is a share of a port's connections.
type tcpTarget struct {
	cluster string
	weight  uint32
}

// tcpTargets are where a TCP chain sends. A route for TLS comes before one for any bytes; of several the Gateway API's and then the
// oldest counts; without any the service itself is meant. Nobody to send to is a route too: it ends connections.
func (d *derivation) tcpTargets(s *Service, p Port) []tcpTarget {
	for _, find := range []func(*Service, Port) ([]tcpTarget, bool){
		d.gatewayTLS, d.istioTLS, d.gatewayTCP, d.istioTCP,
	} {
		if out, ok := find(s, p); ok {
			return out
		}
	}
	return []tcpTarget{{cluster: d.cluster(s, p, "", false), weight: 1}}
}

// gatewayTLS is the first TLSRoute for the service. Connections to a service's address can only ask for that service, so its
// hostname, or none, is what the route has to name.
func (d *derivation) gatewayTLS(s *Service, p Port) ([]tcpTarget, bool) {
	for _, r := range d.in.TLSRoutes {
		if !d.attached(r.Spec.ParentRefs, r.Namespace, s, p) || !namesAlone(r.Spec.Hostnames, s) {
			continue
		}
		for _, rule := range r.Spec.Rules {
			return d.streamBackends(ownerOf("TLSRoute", r), rule.BackendRefs, p), true
		}
	}
	return nil, false
}

func namesAlone(hosts []gatewayv1.Hostname, s *Service) bool {
	return len(hosts) == 0 || len(hosts) == 1 && string(hosts[0]) == s.Hostname
}

func (d *derivation) gatewayTCP(s *Service, p Port) ([]tcpTarget, bool) {
	for _, r := range d.in.TCPRoutes {
		if !d.attached(r.Spec.ParentRefs, r.Namespace, s, p) {
			continue
		}
		for _, rule := range r.Spec.Rules {
			return d.streamBackends(ownerOf("TCPRoute", r), rule.BackendRefs, p), true
		}
	}
	return nil, false
}

// streamBackends are a rule's backends; a broken one keeps its share, and its connections end.
func (d *derivation) streamBackends(owner routeOwner, refs []gatewayv1.BackendRef, p Port) []tcpTarget {
	var out []tcpTarget
	for _, ref := range refs {
		b := d.gatewayBackend(owner, ref, p.Number, false)
		if b.weight > 0 {
			out = append(out, tcpTarget{cluster: b.cluster, weight: b.weight})
		}
	}
	return orNobody(out)
}

func orNobody(out []tcpTarget) []tcpTarget {
	if len(out) == 0 {
		return []tcpTarget{{cluster: UnknownService, weight: 1}}
	}
	return out
}

// istioTLS is the first VirtualService's tls route whose only name is the service's.
func (d *derivation) istioTLS(s *Service, p Port) ([]tcpTarget, bool) {
	for _, v := range d.virtualServices(s) {
		for _, rule := range v.Spec.GetTls() {
			holds := slices.ContainsFunc(rule.GetMatch(), func(m *networkingapi.TLSMatchAttributes) bool {
				return len(m.GetSniHosts()) == 1 && m.GetSniHosts()[0] == s.Hostname && d.streamHolds(streamMatch{
					m.GetDestinationSubnets(), "", m.GetSourceLabels(), m.GetGateways(), m.GetSourceNamespace(), m.GetPort(),
				}, p)
			})
			if holds {
				return d.istioStream(v, rule.GetRoute(), p), true
			}
		}
	}
	return nil, false
}

func (d *derivation) istioTCP(s *Service, p Port) ([]tcpTarget, bool) {
	for _, v := range d.virtualServices(s) {
		for _, rule := range v.Spec.GetTcp() {
			holds := len(rule.GetMatch()) == 0 || slices.ContainsFunc(rule.GetMatch(), func(m *networkingapi.L4MatchAttributes) bool {
				return d.streamHolds(streamMatch{
					m.GetDestinationSubnets(), m.GetSourceSubnet(), m.GetSourceLabels(), m.GetGateways(), m.GetSourceNamespace(), m.GetPort(),
				}, p)
			})
			if holds {
				return d.istioStream(v, rule.GetRoute(), p), true
			}
		}
	}
	return nil, false
}

// istioStream resolves destinations; those with weight 0 vanish unless they are alone.
func (d *derivation) istioStream(v *networkingv1.VirtualService, route []*networkingapi.RouteDestination, p Port) []tcpTarget {
	var out []tcpTarget
	for _, dest := range route {
		if len(route) > 1 && dest.GetWeight() <= 0 {
			continue
		}
		b := d.istioBackend(v, dest.GetDestination(), p, false)
		out = append(out, tcpTarget{cluster: b.cluster, weight: uint32(max(dest.GetWeight(), 1))})
	}
	return orNobody(out)
}

// streamMatch is what a VirtualService may ask of a connection.
type streamMatch struct {
	destinations []string
	source       string
	labels       map[string]string
	gateways     []string
	namespace    string
	port         uint32
}

// streamHolds decides what is known before any connection; what only a client's own proxy could tell never holds here.
func (d *derivation) streamHolds(m streamMatch, p Port) bool {
	switch {
	case len(m.labels) > 0, len(m.destinations) > 0, m.source != "":
		return false
	case m.port != 0 && m.port != p.Number:
		return false
	case len(m.gateways) > 0 && !slices.Contains(m.gateways, meshGateway):
		return false
	}
	return m.namespace == "" || m.namespace == d.in.Gateway.Namespace
}
