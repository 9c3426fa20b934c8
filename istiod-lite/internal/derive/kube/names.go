package kube

import (
	"cmp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Labels and annotations that users and controllers write.
const (
	LabelDataplaneMode              = "istio.io/dataplane-mode"
	LabelUseWaypoint                = "istio.io/use-waypoint"
	LabelWaypointOptional           = "policy.marrow.io/waypoint-optional" // of Services and Namespaces: "true" lets traffic pass by a waypoint's policies
	LabelUseWaypointNamespace       = "istio.io/use-waypoint-namespace"
	LabelUseWaypointCanary          = "istio.io/use-waypoint-canary"
	LabelUseWaypointCanaryNamespace = "istio.io/use-waypoint-canary-namespace"
	LabelIngressUseWaypoint         = "istio.io/ingress-use-waypoint"
	LabelWaypointFor                = "istio.io/waypoint-for"
	LabelRevision                   = "istio.io/rev"
	LabelGatewayName                = "gateway.networking.k8s.io/gateway-name"
	LabelManaged                    = "gateway.istio.io/managed"
	LabelTunnel                     = "networking.istio.io/tunnel"
	LabelNetwork                    = "topology.istio.io/network"
	LabelCanonicalName              = "service.istio.io/canonical-name"
	LabelCanonicalRevision          = "service.istio.io/canonical-revision"
	LabelWorkloadName               = "service.istio.io/workload-name"
	LabelServiceName                = "kubernetes.io/service-name"
	LabelAutoAllocate               = "networking.istio.io/enable-autoallocate-ip"

	AnnotationRedirection           = "ambient.istio.io/redirection"
	AnnotationCanaryWeight          = "istio.io/use-waypoint-canary-weight"
	AnnotationTrafficDistribution   = "networking.istio.io/traffic-distribution"
	AnnotationInboundBinding        = "ambient.istio.io/waypoint-inbound-binding"
	AnnotationAutoRegistrationGroup = "istio.io/autoRegistrationGroup"
	AnnotationGatewayServiceAccount = "gateway.istio.io/service-account"
	AnnotationDryRun                = "istio.io/dry-run"
	AnnotationConnectStrategy       = "istio.io/connect-strategy"
)

// HBONEPort is where waypoints accept tunnels.
const HBONEPort = 15008

// WaypointClass is the class of the waypoints that this control plane deploys, IngressClass that of gateways at the mesh's
// border, RemoteClass that of gateways which stand for another network.
const (
	WaypointClass = "istio-waypoint"
	IngressClass  = "istio"
	RemoteClass   = "istio-remote"
)

// Hostname is the full name of a Kubernetes Service.
func Hostname(name, namespace, domain string) string {
	return name + "." + namespace + ".svc." + domain
}

// NameOf returns the object's namespaced name.
func NameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// CompareNames orders namespaced names.
func CompareNames(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// CompareAge orders objects from the oldest to the youngest; those of one second by namespace and name.
func CompareAge(a, b metav1.Object) int {
	return cmp.Or(
		a.GetCreationTimestamp().Compare(b.GetCreationTimestamp().Time),
		CompareNames(NameOf(a), NameOf(b)),
	)
}

// OtherRevision says that o belongs to the control plane of another revision. A control plane without a revision reads
// everything.
func OtherRevision(o metav1.Object, revision string) bool {
	r := o.GetLabels()[LabelRevision]
	return revision != "" && r != "" && r != revision
}
