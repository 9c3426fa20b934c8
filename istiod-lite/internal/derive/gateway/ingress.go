package gateway

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ingress"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// ingress deploys a gateway at the mesh's border.
func (r *rows) ingress(g *gatewayv1.Gateway) ([]manifest.Object, *gatewayv1.GatewayStatus) {
	name := g.Name + "-" + IngressClass
	p := plan{rows: r, g: g, name: name, account: name, edge: true}
	if v := g.Annotations[nameOverride]; v != "" {
		p.name, p.account = v, v
	}
	if v := g.Annotations[kube.AnnotationGatewayServiceAccount]; v != "" {
		p.account = v
	}
	ours, _ := managed(g)
	if !ours {
		s := r.unmanaged(g, "its addresses say that it is deployed by hand")
		b := &statusBuilder{g: g, status: *s}
		p.edgeListeners(b, len(s.Addresses) > 0)
		return nil, b.done()
	}
	s := newStatus(g)
	valid := p.edgeListeners(s, len(p.addresses()) > 0)
	return p.deployed(s, func() { p.edgeAccepted(s, valid) })
}

// role is what the pod's program is told to be.
func (p plan) role() string {
	if p.edge {
		return "router"
	}
	return "waypoint"
}

// edgePorts are the ports of the listeners, each once.
func (p plan) edgePorts() []corev1.ServicePort {
	var out []corev1.ServicePort
	seen := map[int32]bool{statusPort: true}
	for _, l := range p.g.Spec.Listeners {
		if seen[l.Port] || l.Protocol == gatewayv1.UDPProtocolType {
			continue
		}
		seen[l.Port] = true
		protocol := map[gatewayv1.ProtocolType]string{
			gatewayv1.HTTPProtocolType: "http", gatewayv1.HTTPSProtocolType: "https", gatewayv1.TLSProtocolType: "tls",
		}[l.Protocol]
		port := corev1.ServicePort{Name: string(l.Name), Port: l.Port, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(l.Port)}
		if protocol != "" {
			port.AppProtocol = &protocol
		}
		out = append(out, port)
	}
	return out
}

// reachable are the ports at which the gateway is reached.
func (p plan) reachable() []int32 {
	if !p.edge {
		return []int32{kube.HBONEPort}
	}
	var out []int32
	for _, port := range p.edgePorts() {
		out = append(out, port.Port)
	}
	return out
}

// edgeAddresses are what the load balancer gave, else the Service's name, or its own addresses where somebody asks for those.
func (p plan) edgeAddresses(s *corev1.Service, cluster []gatewayv1.GatewayStatusAddress) []gatewayv1.GatewayStatusAddress {
	hostType, ipType := gatewayv1.HostnameAddressType, gatewayv1.IPAddressType
	var out []gatewayv1.GatewayStatusAddress
	for _, in := range s.Status.LoadBalancer.Ingress {
		switch {
		case in.IP != "":
			out = append(out, gatewayv1.GatewayStatusAddress{Type: &ipType, Value: in.IP})
		case in.Hostname != "":
			out = append(out, gatewayv1.GatewayStatusAddress{Type: &hostType, Value: in.Hostname})
		}
	}
	switch {
	case len(out) > 0:
		return out
	case p.g.Annotations[addressType] == string(ipType):
		return cluster
	}
	return []gatewayv1.GatewayStatusAddress{{Type: &hostType, Value: kube.Hostname(p.name, p.g.Namespace, p.ClusterDomain)}}
}

// edgeListeners writes down what was decided about each listener and counts the valid ones.
func (p plan) edgeListeners(s *statusBuilder, ready bool) (valid int) {
	old := map[gatewayv1.SectionName]gatewayv1.ListenerStatus{}
	for _, l := range s.status.Listeners {
		old[l.Name] = l
	}
	s.status.Listeners = nil
	for _, l := range p.verdicts[kube.NameOf(p.g)] {
		st := gatewayv1.ListenerStatus{
			Name: l.Name, SupportedKinds: l.Kinds, AttachedRoutes: l.Attached, Conditions: slices.Clone(old[l.Name].Conditions),
		}
		set := func(kind gatewayv1.ListenerConditionType, v ingress.Verdict) {
			st.Conditions = setCondition(st.Conditions, condition(string(kind), v.OK, v.Reason, v.Message, p.g.Generation))
		}
		set(gatewayv1.ListenerConditionAccepted, l.Accepted)
		set(gatewayv1.ListenerConditionConflicted, l.Conflicted)
		set(gatewayv1.ListenerConditionResolvedRefs, l.Resolved)
		programmed := ingress.Verdict{OK: true, Reason: string(gatewayv1.ListenerReasonProgrammed), Message: "No errors found"}
		kindsOnly := l.Resolved.Reason == string(gatewayv1.ListenerReasonInvalidRouteKinds)
		switch {
		case !l.Accepted.OK:
			programmed = ingress.Verdict{Reason: string(gatewayv1.ListenerReasonInvalid), Message: l.Accepted.Message}
		case !l.Resolved.OK && !kindsOnly:
			programmed = ingress.Verdict{Reason: string(gatewayv1.ListenerReasonInvalid), Message: l.Resolved.Message}
		case !ready:
			programmed = ingress.Verdict{Reason: string(gatewayv1.ListenerReasonPending), Message: "the gateway has no ready pod yet"}
		}
		if l.Conflicted.OK {
			programmed.Reason = l.Conflicted.Reason
		}
		set(gatewayv1.ListenerConditionProgrammed, programmed)
		if l.Accepted.OK && (l.Resolved.OK || kindsOnly) {
			valid++
		}
		s.status.Listeners = append(s.status.Listeners, st)
	}
	return valid
}

func (p plan) edgeAccepted(s *statusBuilder, valid int) {
	total := len(p.g.Spec.Listeners)
	switch {
	case valid == total && total > 0:
		s.set(gatewayv1.GatewayConditionAccepted, true, string(gatewayv1.GatewayReasonAccepted), "Resource accepted")
	case valid > 0:
		s.set(gatewayv1.GatewayConditionAccepted, true, string(gatewayv1.GatewayReasonListenersNotValid),
			fmt.Sprintf("%d of %d listeners are not valid, see their conditions", total-valid, total))
	default:
		s.set(gatewayv1.GatewayConditionAccepted, false, string(gatewayv1.GatewayReasonListenersNotValid), "no listener is valid, see their conditions")
	}
	if p.insecure[kube.NameOf(p.g)] {
		s.set(gatewayv1.GatewayConditionInsecureFrontendValidationMode, true, "ConfigurationChanged",
			"AllowInsecureFallback lets clients in without a valid certificate")
		return
	}
	s.status.Conditions = slices.DeleteFunc(s.status.Conditions, func(c metav1.Condition) bool {
		return c.Type == string(gatewayv1.GatewayConditionInsecureFrontendValidationMode)
	})
}
