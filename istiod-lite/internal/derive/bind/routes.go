package bind

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// MeshController is who writes the status of routes whose parents are Services or waypoints.
const MeshController = gatewayv1.GatewayController("istio.io/mesh-controller")

// Route is a HTTPRoute or GRPCRoute as far as its status goes.
type Route struct {
	Namespace  string
	Generation int64
	Parents    []gatewayv1.ParentReference
	// Before is the stored status; what other controllers wrote stays.
	Before gatewayv1.RouteStatus
}

// RouteStatus tells the owner of a route, parent by parent, whether it is in
// force and whether its backends were found. ours is false when no parent is
// this controller's: then nothing is to be written.
func RouteStatus(w World, r Route, findings []waypoint.Finding) (s gatewayv1.RouteStatus, ours bool) {
	s.Parents = slices.DeleteFunc(slices.Clone(r.Before.Parents), func(p gatewayv1.RouteParentStatus) bool { return p.ControllerName == MeshController })
	for _, ref := range r.Parents {
		accepted, mine := w.accept(r, ref)
		if !mine {
			continue
		}
		ours = true
		accepted.ObservedGeneration = r.Generation
		resolved := resolve(findings)
		resolved.ObservedGeneration = r.Generation
		s.Parents = append(s.Parents, gatewayv1.RouteParentStatus{
			ParentRef: ref, ControllerName: MeshController, Conditions: []metav1.Condition{accepted, resolved},
		})
	}
	return s, ours
}

func accepted(message string) metav1.Condition {
	return metav1.Condition{Type: string(gatewayv1.RouteConditionAccepted), Status: metav1.ConditionTrue, Reason: string(gatewayv1.RouteReasonAccepted), Message: message}
}

func notAccepted(message string) metav1.Condition {
	return metav1.Condition{Type: string(gatewayv1.RouteConditionAccepted), Status: metav1.ConditionFalse, Reason: string(gatewayv1.RouteReasonNoMatchingParent), Message: message}
}

// accept judges one parent; mine is false for parents of other controllers.
func (w World) accept(r Route, ref gatewayv1.ParentReference) (c metav1.Condition, mine bool) {
	ns := r.Namespace
	if ref.Namespace != nil {
		ns = string(*ref.Namespace)
	}
	group, kind := gatewayv1.GroupName, "Gateway"
	if ref.Group != nil {
		group = string(*ref.Group)
	}
	if ref.Kind != nil {
		kind = string(*ref.Kind)
	}
	name := string(ref.Name)
	switch {
	case group == "" && kind == "Service":
		return w.acceptService(ns, name, ref.Port), true
	case group == gatewayv1.GroupName && kind == "Gateway":
		for _, g := range w.Objects.Gateways {
			if g.Namespace == ns && g.Name == name {
				return accepted("in force at the waypoint " + ns + "/" + name), g.Spec.GatewayClassName == kube.WaypointClass
			}
		}
	}
	return metav1.Condition{}, false
}

func (w World) acceptService(ns, name string, port *gatewayv1.PortNumber) metav1.Condition {
	a := w.Addresses[ns+"/"+kube.Hostname(name, ns, w.Mesh.ClusterDomain)].GetService()
	switch {
	case a == nil:
		return notAccepted("Service " + ns + "/" + name + " does not exist")
	case port != nil && !servesPort(w, ns, name, *port):
		return notAccepted("Service " + ns + "/" + name + " has no such port")
	case a.GetWaypoint() == nil && len(a.GetWeightedWaypoints()) == 0:
		return accepted("Service " + ns + "/" + name + " is bound to no waypoint: the route has no effect until it is (label " + kube.LabelUseWaypoint + ")")
	}
	return accepted("in force at the waypoint of Service " + ns + "/" + name)
}

func servesPort(w World, ns, name string, port gatewayv1.PortNumber) bool {
	for _, s := range w.Objects.Services {
		if s.Namespace == ns && s.Name == name {
			for _, p := range s.Spec.Ports {
				if p.Port == port {
					return true
				}
			}
		}
	}
	return false
}

// resolve tells whether the backends were found, from what the derivation reported.
func resolve(findings []waypoint.Finding) metav1.Condition {
	c := metav1.Condition{Type: string(gatewayv1.RouteConditionResolvedRefs), Status: metav1.ConditionTrue, Reason: string(gatewayv1.RouteReasonResolvedRefs), Message: "all references are resolved"}
	var texts []string
	for _, f := range findings {
		if c.Status == metav1.ConditionTrue {
			c.Status, c.Reason = metav1.ConditionFalse, f.Reason
		}
		if !slices.Contains(texts, f.Message) {
			texts = append(texts, f.Message)
		}
	}
	if len(texts) > 0 {
		c.Message = strings.Join(texts, "; ")
	}
	return c
}
