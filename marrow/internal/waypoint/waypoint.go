package waypoint

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/lab"
)

// The names that Istio gave these things.
const (
	Class       = "istio-waypoint"
	ForLabel    = "istio.io/waypoint-for"
	UseLabel    = "istio.io/use-waypoint"
	RevLabel    = "istio.io/rev"
	DefaultName = "waypoint"

	port     = 15008
	protocol = "HBONE"
)

// Spec is what a user asks for.
type Spec struct {
	Name, Namespace string
	For             string // service, workload, all, none; "" = the control plane's default, service
	Revision        string
}

// NameFor is the name of the waypoint of a service account.
func NameFor(serviceAccount string) string { return DefaultName + "-" + serviceAccount }

// Check refuses what the control plane would not understand.
func (s Spec) Check() error {
	if s.Name == "none" {
		return fmt.Errorf("waypoint name %q means \"no waypoint\" in labels; choose another --name", s.Name)
	}
	if !slices.Contains([]string{"", "service", "workload", "all", "none"}, s.For) {
		return fmt.Errorf("--for %q: use service, workload, all or none", s.For)
	}
	return nil
}

// Gateway is the waypoint's object.
func (s Spec) Gateway() *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{
		TypeMeta:   metav1.TypeMeta{APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway"},
		ObjectMeta: metav1.ObjectMeta{Name: s.Name, Namespace: s.Namespace},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: Class,
			Listeners:        []gatewayv1.Listener{{Name: "mesh", Port: port, Protocol: protocol}},
		},
	}
	set := map[string]string{}
	if s.For != "" {
		set[ForLabel] = s.For
	}
	if s.Revision != "" {
		set[RevLabel] = s.Revision
	}
	if len(set) > 0 {
		g.Labels = set
	}
	return g
}

// Is reports a Gateway that is a waypoint.
func Is(g *gatewayv1.Gateway) bool { return g.Spec.GatewayClassName == Class }

// Programmed is the condition that says that the waypoint runs.
func Programmed(g *gatewayv1.Gateway) metav1.Condition {
	for _, c := range g.Status.Conditions {
		if c.Type == string(gatewayv1.GatewayConditionProgrammed) {
			return c
		}
	}
	return metav1.Condition{
		Type: string(gatewayv1.GatewayConditionProgrammed), Status: metav1.ConditionUnknown, Reason: "Pending",
		Message: "the control plane has not looked at it yet",
	}
}

// Use is the label request that leads an object's traffic to a waypoint; an
// empty name takes the label away.
func Use(ref lab.Ref, name string, template bool) lab.LabelRequest {
	r := lab.LabelRequest{Ref: ref, Template: template}
	if name == "" {
		r.Remove = []string{UseLabel}
	} else {
		r.Set = map[string]string{UseLabel: name}
	}
	return r
}

// Members is what runs in a namespace.
type Members struct {
	Services    []*corev1.Service
	Pods        []*corev1.Pod
	Deployments []*appsv1.Deployment
}

// Enrol decides the labels for the waypoint of a service account: on every
// Service whose pods all run as it (traffic to services), and on the pods and
// their templates (traffic to workloads), as far as the waypoint is for them.
func Enrol(m Members, serviceAccount, name, trafficFor string) []lab.LabelRequest {
	var out []lab.LabelRequest
	if trafficFor == "" || trafficFor == "service" || trafficFor == "all" {
		for _, s := range m.Services {
			if runsAs(s, m, serviceAccount) {
				out = append(out, Use(lab.Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name}, name, false))
			}
		}
	}
	if trafficFor != "workload" && trafficFor != "all" {
		return out
	}
	for _, d := range m.Deployments {
		if accountOf(d.Spec.Template.Spec) == serviceAccount {
			out = append(out, Use(lab.Ref{Group: "apps", Kind: "Deployment", Namespace: d.Namespace, Name: d.Name}, name, true))
		}
	}
	for _, p := range m.Pods {
		// A Deployment's pods are replaced when its template changes.
		if len(p.OwnerReferences) == 0 && accountOf(p.Spec) == serviceAccount {
			out = append(out, Use(lab.Ref{Kind: "Pod", Namespace: p.Namespace, Name: p.Name}, name, false))
		}
	}
	return out
}

func accountOf(s corev1.PodSpec) string {
	if s.ServiceAccountName == "" {
		return "default"
	}
	return s.ServiceAccountName
}

// runsAs reports that the Service has pods, or a template for some, and that
// all of them run as the service account.
func runsAs(s *corev1.Service, m Members, serviceAccount string) bool {
	if len(s.Spec.Selector) == 0 {
		return false
	}
	sel := labels.SelectorFromSet(s.Spec.Selector)
	some := false
	for _, p := range m.Pods {
		if p.DeletionTimestamp == nil && p.Namespace == s.Namespace && sel.Matches(labels.Set(p.Labels)) {
			if accountOf(p.Spec) != serviceAccount {
				return false
			}
			some = true
		}
	}
	for _, d := range m.Deployments {
		if t := d.Spec.Template; d.Namespace == s.Namespace && sel.Matches(labels.Set(t.Labels)) {
			if accountOf(t.Spec) != serviceAccount {
				return false
			}
			some = true
		}
	}
	return some
}
