package ingress

import (
	"cmp"
	"slices"

	meshapi "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// Input is everything that the plans depend on. The order of the slices does not matter.
type Input struct {
	ClusterDomain string
	RootNamespace string
	// Gateways are those of class istio that this control plane owns.
	Gateways        []*gatewayv1.Gateway
	IstioGateways   []*networkingv1.Gateway
	Namespaces      []*corev1.Namespace
	Pods            []*corev1.Pod
	Services        []*corev1.Service
	Secrets         []*corev1.Secret
	ConfigMaps      []*corev1.ConfigMap
	Grants          []*gatewayv1.ReferenceGrant
	HTTPRoutes      []*gatewayv1.HTTPRoute
	GRPCRoutes      []*gatewayv1.GRPCRoute
	TLSRoutes       []*gatewayv1.TLSRoute
	TCPRoutes       []*gatewayv1.TCPRoute
	VirtualServices []*networkingv1.VirtualService
	// Topology is what the mesh says stands in front of all gateways; nil is nothing.
	Topology *meshapi.Topology
}

// Output is what was decided.
type Output struct {
	// Edges are the plans by gateway: a Gateway's name, or what stands for pods that only Istio Gateways select.
	Edges map[types.NamespacedName]*waypoint.Edge
	// Labels are those of the gateways' pods.
	Labels    map[types.NamespacedName]map[string]string
	Listeners map[types.NamespacedName][]Listener
	// Insecure are the Gateways that let clients in whose certificate nobody could verify.
	Insecure map[types.NamespacedName]bool
	Parents  map[manifest.Key][]Parent
	Findings []waypoint.Finding
	// Permitted says whether a route may send to a Service of another namespace.
	Permitted func(kind, namespace, toNamespace, service string) bool
}

// Verdict is one condition.
type Verdict struct {
	OK              bool
	Reason, Message string
}

func good(reason string) Verdict {
	return Verdict{OK: true, Reason: reason, Message: "No errors found"}
}

// Listener is what is to be said of one listener.
type Listener struct {
	Name       gatewayv1.SectionName
	Port       int32
	Accepted   Verdict
	Conflicted Verdict // OK is: there is a conflict
	Resolved   Verdict
	Kinds      []gatewayv1.RouteGroupKind
	Attached   int32
}

// Parent is what is to be said of a route at one of its parents.
type Parent struct {
	Ref      gatewayv1.ParentReference
	Accepted Verdict
}

// derivation is one run.
type derivation struct {
	in         Input
	namespaces map[string]*corev1.Namespace
	secrets    map[types.NamespacedName]*corev1.Secret
	configMaps map[types.NamespacedName]*corev1.ConfigMap
	gateways   map[types.NamespacedName]*gateway
	out        Output
}

// gateway is one proxy deployment while its plan is made.
type gateway struct {
	key       types.NamespacedName
	object    *gatewayv1.Gateway // nil for pods that only Istio Gateways select
	labels    map[string]string
	pod       *corev1.Pod // one of its pods; nil before there is any
	topology  waypoint.Topology
	listeners []*listener
	ports     map[uint32]*port
	secrets   map[string]waypoint.EdgeSecret
}

// Derive makes the plans of all gateways.
func Derive(in Input) Output {
	d := &derivation{
		in: canonical(in), namespaces: map[string]*corev1.Namespace{}, gateways: map[types.NamespacedName]*gateway{},
		secrets: byName(in.Secrets), configMaps: byName(in.ConfigMaps),
		out: Output{
			Edges: map[types.NamespacedName]*waypoint.Edge{}, Labels: map[types.NamespacedName]map[string]string{},
			Listeners: map[types.NamespacedName][]Listener{}, Insecure: map[types.NamespacedName]bool{}, Parents: map[manifest.Key][]Parent{},
		},
	}
	d.out.Permitted = func(kind, namespace, toNamespace, service string) bool {
		return d.permitted(kind, namespace, "Service", toNamespace, service)
	}
	for _, n := range in.Namespaces {
		d.namespaces[n.Name] = n
	}
	for _, g := range d.in.Gateways {
		d.addGateway(g)
	}
	d.selectedPods()
	for _, g := range d.ordered() {
		d.judgeListeners(g)
	}
	d.bindRoutes()
	for _, g := range d.ordered() {
		d.planListeners(g)
		d.istioServers(g)
		d.finish(g)
	}
	return d.out
}

func (d *derivation) ordered() []*gateway {
	var out []*gateway
	for _, g := range d.gateways {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *gateway) int { return kube.CompareNames(a.key, b.key) })
	return out
}

func (d *derivation) addGateway(o *gatewayv1.Gateway) {
	g := newGateway(kube.NameOf(o))
	g.object, g.labels = o, o.Labels
	for _, p := range d.in.Pods {
		if p.Namespace == o.Namespace && p.Labels[kube.LabelGatewayName] == o.Name && !kube.Terminal(p) {
			g.labels, g.pod = p.Labels, p
		}
	}
	g.topology = d.topology(o.Annotations, infrastructure(o))
	d.gateways[g.key] = g
}

func infrastructure(o *gatewayv1.Gateway) map[string]string {
	out := map[string]string{}
	if i := o.Spec.Infrastructure; i != nil {
		for k, v := range i.Annotations {
			out[string(k)] = string(v)
		}
	}
	return out
}

func newGateway(key types.NamespacedName) *gateway {
	return &gateway{key: key, ports: map[uint32]*port{}, secrets: map[string]waypoint.EdgeSecret{}}
}

// finish turns a gateway's ports into its plan.
func (d *derivation) finish(g *gateway) {
	e := &waypoint.Edge{Topology: g.topology, Permitted: d.out.Permitted}
	for _, p := range g.ports {
		if out, ok := p.plan(); ok {
			e.Ports = append(e.Ports, out)
		}
	}
	slices.SortFunc(e.Ports, func(a, b waypoint.EdgePort) int { return cmp.Compare(a.Number, b.Number) })
	for _, s := range g.secrets {
		e.Secrets = append(e.Secrets, s)
	}
	slices.SortFunc(e.Secrets, func(a, b waypoint.EdgeSecret) int { return cmp.Compare(a.Name, b.Name) })
	d.out.Edges[g.key], d.out.Labels[g.key] = e, g.labels
	for _, l := range g.listeners {
		d.out.Listeners[g.key] = append(d.out.Listeners[g.key], l.Listener)
	}
}

func byName[T metav1.Object](list []T) map[types.NamespacedName]T {
	out := map[types.NamespacedName]T{}
	for _, o := range list {
		out[kube.NameOf(o)] = o
	}
	return out
}

// canonical puts the rows into the one order from which everything is decided: older objects first.
func canonical(in Input) Input {
	in.Gateways, in.IstioGateways, in.Pods = byAge(in.Gateways), byAge(in.IstioGateways), byAge(in.Pods)
	in.HTTPRoutes, in.GRPCRoutes, in.TLSRoutes, in.TCPRoutes = byAge(in.HTTPRoutes), byAge(in.GRPCRoutes), byAge(in.TLSRoutes), byAge(in.TCPRoutes)
	in.VirtualServices, in.Services = byAge(in.VirtualServices), byAge(in.Services)
	return in
}

func byAge[T metav1.Object](objects []T) []T {
	out := slices.Clone(objects)
	slices.SortStableFunc(out, func(a, b T) int {
		return cmp.Or(a.GetCreationTimestamp().Compare(b.GetCreationTimestamp().Time),
			cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return out
}
