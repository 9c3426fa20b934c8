package gateway

import (
	"cmp"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ingress"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// Names that users and other tools know.
const (
	WaypointClass = "istio-waypoint"
	IngressClass  = "istio"
	RemoteClass   = "istio-remote"

	WaypointController = "istio.io/mesh-controller"
	IngressController  = "istio.io/gateway-controller"
	RemoteController   = "istio.io/unmanaged-gateway"

	managedValue   = "istio.io-mesh-controller"
	managedIngress = "istio.io-gateway-controller"
	addressType    = "networking.istio.io/address-type"
	nameOverride   = "gateway.istio.io/name-override"
	serviceType    = "networking.istio.io/service-type"
	statusPort     = 15021
	metricsPort    = 15020
	waypointHBONE  = gatewayv1.ProtocolType("HBONE")
	containerName  = "istio-proxy"
	proxyPromPort  = 15090
	serverSideUser = 1337
)

// Config is what the objects say about the mesh.
type Config struct {
	ClusterDomain string // "cluster.local"
	ClusterID     string // "Kubernetes"
	TrustDomain   string // "cluster.local"
	XDSAddress    string // "istiod.istio-system.svc:15012"
	CAAddress     string // the same where the control plane signs
	Revision      string
	Image         string // "marrowmesh/waypoint:latest"
}

// Input is everything that the answer depends on. The order of the slices does not matter.
type Input struct {
	Config          Config
	Gateways        []*gatewayv1.Gateway
	Classes         []*gatewayv1.GatewayClass
	ServiceAccounts []*corev1.ServiceAccount
	Deployments     []*appsv1.Deployment
	Services        []*corev1.Service
	Pods            []*corev1.Pod
	// Listeners are what derive/ingress decided about the listeners of Gateways of class istio; Insecure are those that let
	// clients in whose certificate nobody could verify.
	Listeners map[types.NamespacedName][]ingress.Listener
	Insecure  map[types.NamespacedName]bool
}

// Output is what has to be written.
type Output struct {
	// Objects are to be created or replaced, in an order in which each may need the earlier ones.
	Objects []manifest.Object
	// Gateways and Classes are the whole statuses; what other controllers wrote into them is kept.
	Gateways map[types.NamespacedName]gatewayv1.GatewayStatus
	Classes  map[string]gatewayv1.GatewayClassStatus
}

type rows struct {
	Config
	classes     map[string]*gatewayv1.GatewayClass
	accounts    map[types.NamespacedName]*corev1.ServiceAccount
	deployments map[types.NamespacedName]*appsv1.Deployment
	services    map[types.NamespacedName]*corev1.Service
	pods        []*corev1.Pod
	verdicts    map[types.NamespacedName][]ingress.Listener
	insecure    map[types.NamespacedName]bool
}

// Derive computes what every Gateway of this control plane needs.
func Derive(in Input) Output {
	r := &rows{
		Config:      in.Config,
		classes:     map[string]*gatewayv1.GatewayClass{},
		accounts:    byName(in.ServiceAccounts),
		deployments: byName(in.Deployments),
		services:    byName(in.Services),
		pods:        in.Pods,
		verdicts:    in.Listeners,
		insecure:    in.Insecure,
	}
	for _, c := range in.Classes {
		r.classes[c.Name] = c
	}
	out := Output{
		Gateways: map[types.NamespacedName]gatewayv1.GatewayStatus{},
		Classes:  map[string]gatewayv1.GatewayClassStatus{},
	}
	r.deriveClasses(&out)
	gateways := slices.Clone(in.Gateways)
	slices.SortFunc(gateways, func(a, b *gatewayv1.Gateway) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, g := range gateways {
		if g.DeletionTimestamp != nil || kube.OtherRevision(g, in.Config.Revision) {
			continue
		}
		objects, status := r.gateway(g)
		out.Objects = append(out.Objects, objects...)
		if status != nil {
			out.Gateways[kube.NameOf(g)] = *status
		}
	}
	return out
}

func byName[T metav1.Object](list []T) map[types.NamespacedName]T {
	out := map[types.NamespacedName]T{}
	for _, o := range list {
		out[kube.NameOf(o)] = o
	}
	return out
}

// gateway is nil, nil for a Gateway that is somebody else's.
func (r *rows) gateway(g *gatewayv1.Gateway) ([]manifest.Object, *gatewayv1.GatewayStatus) {
	class := string(g.Spec.GatewayClassName)
	if c, exists := r.classes[class]; exists && string(c.Spec.ControllerName) != controllers()[class] {
		return nil, nil
	}
	switch class {
	case WaypointClass:
		return r.waypoint(g)
	case RemoteClass:
		return nil, r.unmanaged(g, "the gateway runs in another network or is deployed by hand")
	case IngressClass:
		return r.ingress(g)
	}
	return nil, nil
}

// controllers names the controller of each class that is ours.
func controllers() map[string]string {
	return map[string]string{
		WaypointClass: WaypointController, IngressClass: IngressController, RemoteClass: RemoteController,
	}
}

func (r *rows) deriveClasses(out *Output) {
	descriptions := map[string]string{
		WaypointClass: "A waypoint: routes and protects what is bound to it",
		IngressClass:  "An ingress gateway",
		RemoteClass:   "Stands for a gateway in another network; nothing is deployed",
	}
	for _, name := range []string{IngressClass, RemoteClass, WaypointClass} {
		class, exists := r.classes[name]
		if exists && string(class.Spec.ControllerName) != controllers()[name] {
			continue
		}
		if !exists {
			description := descriptions[name]
			class = &gatewayv1.GatewayClass{
				TypeMeta:   metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "GatewayClass"},
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec: gatewayv1.GatewayClassSpec{
					ControllerName: gatewayv1.GatewayController(controllers()[name]), Description: &description,
				},
			}
			out.Objects = append(out.Objects, class)
		}
		status := *class.Status.DeepCopy()
		status.Conditions = setCondition(status.Conditions, metav1.Condition{
			Type: string(gatewayv1.GatewayClassConditionStatusAccepted), Status: metav1.ConditionTrue,
			Reason: string(gatewayv1.GatewayClassReasonAccepted), Message: "Handled by istiod-lite",
			ObservedGeneration: class.Generation,
		})
		out.Classes[name] = status
	}
}

// owned says that g is among the object's owners.
func owned(o metav1.Object, g *gatewayv1.Gateway) bool {
	return slices.ContainsFunc(o.GetOwnerReferences(), func(ref metav1.OwnerReference) bool {
		if ref.Kind != "Gateway" || ref.Name != g.Name {
			return false
		}
		// A Gateway that was deleted and made again takes over what is left of the old one.
		return true
	})
}

func ownerReference(g *gatewayv1.Gateway) metav1.OwnerReference {
	yes := true
	return metav1.OwnerReference{
		APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", Name: g.Name, UID: g.UID, Controller: &yes,
	}
}

// changed is the part of list that differs from what is stored.
func changed(list []pair) []manifest.Object {
	var out []manifest.Object
	for _, p := range list {
		if p.stored == nil || !equality.Semantic.DeepEqual(p.stored, p.wanted) {
			out = append(out, p.wanted)
		}
	}
	return out
}

// pair is an object as it should be and as it is; stored is nil for a new one.
type pair struct{ wanted, stored manifest.Object }
