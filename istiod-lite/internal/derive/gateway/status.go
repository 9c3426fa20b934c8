package gateway

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// statusBuilder starts from the stored status, so that what others wrote stays.
type statusBuilder struct {
	g      *gatewayv1.Gateway
	status gatewayv1.GatewayStatus
}

func newStatus(g *gatewayv1.Gateway) *statusBuilder {
	s := &statusBuilder{g: g, status: *g.Status.DeepCopy()}
	// The API server's defaults for a new Gateway say that it waits for a controller.
	s.status.Conditions = slices.DeleteFunc(s.status.Conditions, func(c metav1.Condition) bool {
		return c.Message == "Waiting for controller"
	})
	return s
}

func (s *statusBuilder) set(kind gatewayv1.GatewayConditionType, ok bool, reason, message string) {
	s.status.Conditions = setCondition(s.status.Conditions, condition(string(kind), ok, reason, message, s.g.Generation))
}

func (s *statusBuilder) done() *gatewayv1.GatewayStatus { return &s.status }

func condition(kind string, ok bool, reason, message string, generation int64) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: generation}
	if ok {
		c.Status = metav1.ConditionTrue
	}
	return c
}

// setCondition replaces the condition of c's type. Its transition time stays while the status stays.
func setCondition(list []metav1.Condition, c metav1.Condition) []metav1.Condition {
	for i := range list {
		if list[i].Type != c.Type {
			continue
		}
		if list[i].Status == c.Status {
			c.LastTransitionTime = list[i].LastTransitionTime
		}
		list[i] = c
		return list
	}
	return append(list, c)
}

// listeners judges each listener and counts the valid ones. Nothing attaches to a waypoint's listener.
func (p plan) listeners(s *statusBuilder) (valid int) {
	old := map[gatewayv1.SectionName]gatewayv1.ListenerStatus{}
	for _, l := range s.status.Listeners {
		old[l.Name] = l
	}
	ready := len(p.addresses()) > 0
	var out []gatewayv1.ListenerStatus
	for _, l := range p.g.Spec.Listeners {
		st := gatewayv1.ListenerStatus{
			Name: l.Name, SupportedKinds: []gatewayv1.RouteGroupKind{}, Conditions: slices.Clone(old[l.Name].Conditions),
		}
		set := func(kind gatewayv1.ListenerConditionType, ok bool, reason gatewayv1.ListenerConditionReason, message string) {
			st.Conditions = setCondition(st.Conditions, condition(string(kind), ok, string(reason), message, p.g.Generation))
		}
		problem := listenerProblem(l)
		if problem == "" {
			valid++
			set(gatewayv1.ListenerConditionAccepted, true, gatewayv1.ListenerReasonAccepted, "No errors found")
		} else {
			set(gatewayv1.ListenerConditionAccepted, false, gatewayv1.ListenerReasonUnsupportedProtocol,
				fmt.Sprintf("protocol %s on port %d: %s", l.Protocol, l.Port, problem))
		}
		set(gatewayv1.ListenerConditionConflicted, false, gatewayv1.ListenerReasonNoConflicts, "No errors found")
		set(gatewayv1.ListenerConditionResolvedRefs, true, gatewayv1.ListenerReasonResolvedRefs, "No errors found")
		switch {
		case problem != "":
			set(gatewayv1.ListenerConditionProgrammed, false, gatewayv1.ListenerReasonInvalid, problem)
		case !ready:
			set(gatewayv1.ListenerConditionProgrammed, false, gatewayv1.ListenerReasonPending, "the waypoint has no ready pod yet")
		default:
			set(gatewayv1.ListenerConditionProgrammed, true, gatewayv1.ListenerReasonProgrammed, "No errors found")
		}
		out = append(out, st)
	}
	s.status.Listeners = out
	return valid
}

func (p plan) accepted(s *statusBuilder, valid int) {
	total := len(p.g.Spec.Listeners)
	switch {
	case valid == total && total > 0:
		s.set(gatewayv1.GatewayConditionAccepted, true, string(gatewayv1.GatewayReasonAccepted), "Resource accepted")
	case valid > 0:
		s.set(gatewayv1.GatewayConditionAccepted, true, string(gatewayv1.GatewayReasonListenersNotValid),
			fmt.Sprintf("%d of %d listeners are not valid, see their conditions", total-valid, total))
	default:
		s.set(gatewayv1.GatewayConditionAccepted, false, string(gatewayv1.GatewayReasonListenersNotValid),
			"no listener is valid: a waypoint's has port 15008 and protocol HBONE; it works all the same on 15008")
	}
}

// programmed reports the addresses and whether somebody answers there.
func (p plan) programmed(s *statusBuilder) {
	s.status.Addresses = p.addresses()
	host := kube.Hostname(p.name, p.g.Namespace, p.ClusterDomain)
	switch {
	case p.services[p.key(p.name)] == nil:
		s.set(gatewayv1.GatewayConditionProgrammed, false, string(gatewayv1.GatewayReasonPending), "the Service "+host+" is being made")
	case !p.podReady():
		s.set(gatewayv1.GatewayConditionProgrammed, false, string(gatewayv1.GatewayReasonAddressNotAssigned),
			"no pod of Deployment "+p.g.Namespace+"/"+p.name+" is ready")
	case len(s.status.Addresses) == 0:
		s.set(gatewayv1.GatewayConditionProgrammed, false, string(gatewayv1.GatewayReasonAddressNotAssigned),
			"the Service "+host+" has no cluster address yet")
	default:
		var at []string
		for _, a := range s.status.Addresses {
			for _, port := range p.reachable() {
				at = append(at, fmt.Sprintf("%s:%d", a.Value, port))
			}
		}
		s.set(gatewayv1.GatewayConditionProgrammed, true, string(gatewayv1.GatewayReasonProgrammed),
			"Resource programmed, reachable at "+strings.Join(at, ", "))
	}
}

// unmanaged copies the addresses that a person gave.
func (r *rows) unmanaged(g *gatewayv1.Gateway, why string) *gatewayv1.GatewayStatus {
	s := newStatus(g)
	s.status.Addresses = nil
	for _, a := range g.Spec.Addresses {
		kind := gatewayv1.IPAddressType
		if a.Type != nil {
			kind = *a.Type
		}
		s.status.Addresses = append(s.status.Addresses, gatewayv1.GatewayStatusAddress{Type: &kind, Value: a.Value})
	}
	s.set(gatewayv1.GatewayConditionAccepted, true, string(gatewayv1.GatewayReasonAccepted), "Resource accepted; "+why)
	if len(s.status.Addresses) == 0 {
		s.set(gatewayv1.GatewayConditionProgrammed, false, string(gatewayv1.GatewayReasonAddressNotAssigned),
			"spec.addresses is empty; say where the gateway is")
		return s.done()
	}
	s.set(gatewayv1.GatewayConditionProgrammed, true, string(gatewayv1.GatewayReasonProgrammed), "Resource programmed; "+why)
	return s.done()
}
