package waypoint

import (
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// RouteController signs the status entries of routes, as in every Istio mesh.
const RouteController = "istio.io/gateway-controller"

// RouteRows is what the status of routes depends on; whether a waypoint carries them out is not part of it.
type RouteRows struct {
	Mesh           Mesh
	Services       []*corev1.Service
	ServiceEntries []*networkingv1.ServiceEntry
	HTTPRoutes     []*gatewayv1.HTTPRoute
	GRPCRoutes     []*gatewayv1.GRPCRoute
	TLSRoutes      []*gatewayv1.TLSRoute
	TCPRoutes      []*gatewayv1.TCPRoute
	// Gateways are the verdicts of gateways at the border on routes that name them as parents.
	Gateways map[manifest.Key][]GatewayParent
	// Permitted is as in Edge.
	Permitted func(kind, namespace, toNamespace, service string) bool
}

// GatewayParent is what a gateway says of a route.
type GatewayParent struct {
	Ref             gatewayv1.ParentReference
	OK              bool
	Reason, Message string
}

// RouteStatuses says of each route that has a Service or ServiceEntry as parent whether it is accepted there and whether
// its references resolve. Entries of other controllers are kept; routes that are none of ours are not in the answer.
// Conditions have the transition time of the stored ones, or none.
func RouteStatuses(in RouteRows) map[manifest.Key]gatewayv1.RouteStatus {
	services := routeServices(in)
	out := map[manifest.Key]gatewayv1.RouteStatus{}
	judge := func(r manifest.Object, spec gatewayv1.CommonRouteSpec, old gatewayv1.RouteStatus, translate func(*derivation)) {
		if s, ours := routeStatus(in, services, r, spec, old, translate); ours {
			out[manifest.KeyOf(r)] = s
		}
	}
	for _, r := range in.HTTPRoutes {
		judge(r, r.Spec.CommonRouteSpec, r.Status.RouteStatus, func(d *derivation) { d.httpRoute(r, Port{Number: 1, Protocol: HTTP}) })
	}
	for _, r := range in.GRPCRoutes {
		judge(r, r.Spec.CommonRouteSpec, r.Status.RouteStatus, func(d *derivation) { d.grpcRoute(r, Port{Number: 1, Protocol: HTTP2}) })
	}
	stream := func(kind string, r manifest.Object, refs []gatewayv1.BackendRef) func(*derivation) {
		return func(d *derivation) { d.streamBackends(ownerOf(kind, r), refs, Port{Number: 1, Protocol: TCP}) }
	}
	for _, r := range in.TLSRoutes {
		var refs []gatewayv1.BackendRef
		for _, rule := range r.Spec.Rules {
			refs = append(refs, rule.BackendRefs...)
		}
		judge(r, r.Spec.CommonRouteSpec, r.Status.RouteStatus, stream("TLSRoute", r, refs))
	}
	for _, r := range in.TCPRoutes {
		var refs []gatewayv1.BackendRef
		for _, rule := range r.Spec.Rules {
			refs = append(refs, rule.BackendRefs...)
		}
		judge(r, r.Spec.CommonRouteSpec, r.Status.RouteStatus, stream("TCPRoute", r, refs))
	}
	return out
}

// routeServices are all destinations by name, without what only the data path needs.
func routeServices(in RouteRows) []Service {
	var out []Service
	for _, s := range in.Services {
		row := Service{
			Kind: "Service", Namespace: s.Namespace, Name: s.Name, Created: s.CreationTimestamp.Time,
			Hostname: kube.Hostname(s.Name, s.Namespace, in.Mesh.ClusterDomain),
		}
		for _, p := range s.Spec.Ports {
			row.Ports = append(row.Ports, Port{Number: uint32(p.Port), Name: p.Name})
		}
		out = append(out, row)
	}
	for _, e := range in.ServiceEntries {
		for _, host := range e.Spec.GetHosts() {
			row := Service{
				Kind: "ServiceEntry", Namespace: e.Namespace, Name: e.Name, Created: e.CreationTimestamp.Time, Hostname: host,
			}
			for _, p := range e.Spec.GetPorts() {
				row.Ports = append(row.Ports, Port{Number: p.GetNumber(), Name: p.GetName()})
			}
			out = append(out, row)
		}
	}
	return out
}

func routeStatus(in RouteRows, services []Service, r manifest.Object, spec gatewayv1.CommonRouteSpec, old gatewayv1.RouteStatus,
	translate func(*derivation),
) (gatewayv1.RouteStatus, bool) {
	out := gatewayv1.RouteStatus{Parents: slices.DeleteFunc(slices.Clone(old.Parents), func(p gatewayv1.RouteParentStatus) bool {
		return p.ControllerName == RouteController
	})}
	stale := len(out.Parents) != len(old.Parents)
	accepted, resolved := routeFindings(Input{Mesh: in.Mesh, Services: services}, translate)
	mine := false
	for _, ref := range spec.ParentRefs {
		group, kind := parentKind(ref)
		border := in.gatewayParent(r, ref)
		if border == nil && (group != serviceGroup(kind) || kind != "Service" && kind != "ServiceEntry") {
			continue // somebody else's affair
		}
		mine = true
		entry := gatewayv1.RouteParentStatus{ParentRef: ref, ControllerName: RouteController}
		for _, p := range old.Parents {
			if p.ControllerName == RouteController && sameParent(p.ParentRef, ref) {
				entry.Conditions = slices.Clone(p.Conditions)
			}
		}
		verdict, references := accepted, resolved
		if border != nil {
			edge := Input{Mesh: in.Mesh, Services: services, Edge: &Edge{Permitted: in.Permitted}}
			verdict, references = routeFindings(edge, translate)
			if !border.OK {
				verdict = metav1.Condition{Status: metav1.ConditionFalse, Reason: border.Reason, Message: border.Message}
			}
		} else if problem := parentProblem(services, ref, r.GetNamespace()); problem != "" {
			verdict = metav1.Condition{Status: metav1.ConditionFalse, Reason: string(gatewayv1.RouteReasonNoMatchingParent), Message: problem}
		}
		verdict.Type = string(gatewayv1.RouteConditionAccepted)
		references.Type = string(gatewayv1.RouteConditionResolvedRefs)
		for _, c := range []metav1.Condition{verdict, references} {
			c.ObservedGeneration = r.GetGeneration()
			entry.Conditions = putCondition(entry.Conditions, c)
		}
		out.Parents = append(out.Parents, entry)
	}
	return out, mine || stale
}

func (in RouteRows) gatewayParent(r manifest.Object, ref gatewayv1.ParentReference) *GatewayParent {
	for _, p := range in.Gateways[manifest.KeyOf(r)] {
		if sameParent(p.Ref, ref) {
			return &p
		}
	}
	return nil
}

// routeFindings translates the route beside a waypoint of its own and sorts what there is to say into the two conditions.
func routeFindings(in Input, translate func(*derivation)) (accepted, resolved metav1.Condition) {
	d := newDerivation(in)
	translate(d)
	accepted = metav1.Condition{
		Status: metav1.ConditionTrue, Reason: string(gatewayv1.RouteReasonAccepted), Message: "Route was valid",
	}
	resolved = metav1.Condition{
		Status: metav1.ConditionTrue, Reason: string(gatewayv1.RouteReasonResolvedRefs), Message: "All references resolved",
	}
	for _, f := range d.sortedFindings() {
		into := &resolved
		if f.Reason == string(gatewayv1.RouteReasonUnsupportedValue) {
			into = &accepted
		}
		if into.Status == metav1.ConditionTrue {
			*into = metav1.Condition{Status: metav1.ConditionFalse, Reason: f.Reason, Message: f.Message}
			continue
		}
		into.Message += "; " + f.Message
	}
	return accepted, resolved
}

func parentProblem(services []Service, ref gatewayv1.ParentReference, namespace string) string {
	_, kind := parentKind(ref)
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	name := kind + " " + namespace + "/" + string(ref.Name)
	problem := name + " does not exist"
	for i := range services {
		if !refersTo(ref, namespace, &services[i]) {
			continue
		}
		if slices.ContainsFunc(services[i].Ports, func(p Port) bool { return refPort(ref, p) }) {
			return ""
		}
		problem = name + " has no such port"
	}
	return problem
}

func sameParent(a, b gatewayv1.ParentReference) bool {
	groupA, kindA := parentKind(a)
	groupB, kindB := parentKind(b)
	return groupA == groupB && kindA == kindB && a.Name == b.Name && same(a.Namespace, b.Namespace) &&
		same(a.SectionName, b.SectionName) && same(a.Port, b.Port)
}

func same[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// putCondition replaces the condition of the same type; its transition time stays while the status stays.
func putCondition(list []metav1.Condition, c metav1.Condition) []metav1.Condition {
	i := slices.IndexFunc(list, func(o metav1.Condition) bool { return o.Type == c.Type })
	if i < 0 {
		return append(list, c)
	}
	if list[i].Status == c.Status {
		c.LastTransitionTime = list[i].LastTransitionTime
	}
	list[i] = c
	return list
}
