package gateway

import (
	"maps"
	"net/netip"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// plan is one waypoint Gateway with the names of its objects.
type plan struct {
	*rows
	g       *gatewayv1.Gateway
	name    string // of the Deployment and the Service
	account string
	// edge is a gateway at the mesh's border and not a waypoint.
	edge bool
}

func (r *rows) waypoint(g *gatewayv1.Gateway) ([]manifest.Object, *gatewayv1.GatewayStatus) {
	p := plan{rows: r, g: g, name: g.Name, account: g.Name}
	if v := g.Annotations[nameOverride]; v != "" {
		p.name, p.account = v, v
	}
	if v := g.Annotations[kube.AnnotationGatewayServiceAccount]; v != "" {
		p.account = v
	}
	if ok, _ := managed(g); !ok {
		return nil, r.unmanaged(g, "its addresses say that it is deployed by hand")
	}
	s := newStatus(g)
	valid := p.listeners(s)
	return p.deployed(s, func() { p.accepted(s, valid) })
}

// deployed is what a Gateway's own objects and conditions come to; accepted sets those of a Gateway that can be served.
func (p plan) deployed(s *statusBuilder, accepted func()) ([]manifest.Object, *gatewayv1.GatewayStatus) {
	if p.g.Spec.Infrastructure != nil && p.g.Spec.Infrastructure.ParametersRef != nil {
		s.set(gatewayv1.GatewayConditionAccepted, false, string(gatewayv1.GatewayReasonInvalidParameters),
			"spec.infrastructure.parametersRef is not supported; remove it")
		s.set(gatewayv1.GatewayConditionProgrammed, false, string(gatewayv1.GatewayReasonInvalid), "the Gateway is not accepted")
		return nil, s.done()
	}
	accepted()
	if conflict := p.conflict(); conflict != "" {
		s.set(gatewayv1.GatewayConditionProgrammed, false, string(gatewayv1.GatewayReasonNoResources),
			conflict+" exists and is not owned by this Gateway; rename one of them or use the annotation "+nameOverride)
		return nil, s.done()
	}
	p.programmed(s)
	return changed(p.objects()), s.done()
}

// managed says whether this control plane deploys the Gateway; with a hostname or several addresses a person does.
func managed(g *gatewayv1.Gateway) (ok bool, ip string) {
	switch {
	case len(g.Spec.Addresses) == 0:
		return true, ""
	case len(g.Spec.Addresses) > 1:
		return false, ""
	}
	a := g.Spec.Addresses[0]
	if a.Type != nil && *a.Type != gatewayv1.IPAddressType {
		return false, ""
	}
	return true, a.Value
}

func (p plan) key(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: p.g.Namespace, Name: name}
}

func (p plan) conflict() string {
	if d := p.deployments[p.key(p.name)]; d != nil && !owned(d, p.g) {
		return "Deployment " + p.g.Namespace + "/" + p.name
	}
	if s := p.services[p.key(p.name)]; s != nil && !owned(s, p.g) {
		return "Service " + p.g.Namespace + "/" + p.name
	}
	return ""
}

func (p plan) objects() []pair {
	var out []pair
	// An account that exists is used as it is, whoever made it: several waypoints may share one.
	if p.accounts[p.key(p.account)] == nil {
		out = append(out, pair{wanted: &corev1.ServiceAccount{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
			ObjectMeta: p.meta(p.account, nil),
		}})
	}
	service := pair{wanted: p.service(p.services[p.key(p.name)])}
	if stored := p.services[p.key(p.name)]; stored != nil {
		service.stored = stored
	}
	deployment := pair{wanted: p.deployment(p.deployments[p.key(p.name)])}
	if stored := p.deployments[p.key(p.name)]; stored != nil {
		deployment.stored = stored
	}
	return append(out, service, deployment)
}

// labels are the Gateway's own, or those that its infrastructure section asks for, and the ones by which the objects are
// found.
func (p plan) labels() map[string]string {
	out := map[string]string{}
	if i := p.g.Spec.Infrastructure; i != nil && len(i.Labels) > 0 {
		for k, v := range i.Labels {
			if !reserved(string(k)) {
				out[string(k)] = string(v)
			}
		}
	} else {
		maps.Copy(out, p.g.Labels)
	}
	out[kube.LabelGatewayName] = p.g.Name
	out[kube.LabelManaged] = managedValue
	if p.edge {
		out[kube.LabelManaged] = managedIngress
	}
	out["gateway.networking.k8s.io/gateway-class-name"] = string(p.g.Spec.GatewayClassName)
	return out
}

func reserved(key string) bool {
	const prefix = "gateway.networking.k8s.io/"
	return len(key) >= len(prefix) && key[:len(prefix)] == prefix
}

func (p plan) annotations() map[string]string {
	out := map[string]string{}
	if i := p.g.Spec.Infrastructure; i != nil && len(i.Annotations) > 0 {
		for k, v := range i.Annotations {
			if !reserved(string(k)) {
				out[string(k)] = string(v)
			}
		}
		return out
	}
	for k, v := range p.g.Annotations {
		// What says how the Gateway is deployed, and what kubectl remembers of it, is not the pods' business.
		switch k {
		case nameOverride, kube.AnnotationGatewayServiceAccount, serviceType, addressType, "kubectl.kubernetes.io/last-applied-configuration":
		default:
			out[k] = v
		}
	}
	return out
}

func (p plan) meta(name string, stored metav1.Object) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Name: name, Namespace: p.g.Namespace}
	if stored != nil {
		m.UID, m.ResourceVersion, m.Generation = stored.GetUID(), stored.GetResourceVersion(), stored.GetGeneration()
		m.CreationTimestamp, m.Finalizers = stored.GetCreationTimestamp(), stored.GetFinalizers()
		m.DeletionTimestamp, m.ManagedFields = stored.GetDeletionTimestamp(), stored.GetManagedFields()
		m.Labels, m.Annotations = maps.Clone(stored.GetLabels()), maps.Clone(stored.GetAnnotations())
	}
	m.Labels = over(m.Labels, p.labels())
	m.Annotations = over(m.Annotations, p.annotations())
	m.OwnerReferences = []metav1.OwnerReference{ownerReference(p.g)}
	return m
}

func over(base, top map[string]string) map[string]string {
	if len(base) == 0 && len(top) == 0 {
		return nil
	}
	if base == nil {
		base = map[string]string{}
	}
	maps.Copy(base, top)
	return base
}

func (p plan) service(stored *corev1.Service) *corev1.Service {
	out := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
	if stored != nil {
		out = stored.DeepCopy() // keeps the addresses that were given to it
		out.ObjectMeta = p.meta(p.name, stored)
	} else {
		out.ObjectMeta = p.meta(p.name, nil)
		dual := corev1.IPFamilyPolicyPreferDualStack
		out.Spec.IPFamilyPolicy = &dual
	}
	out.Spec.Type = corev1.ServiceTypeLoadBalancer
	if !p.edge {
		out.Annotations = over(out.Annotations, map[string]string{kube.AnnotationTrafficDistribution: "PreferClose"})
		out.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if v := p.g.Annotations[serviceType]; v != "" {
		out.Spec.Type = corev1.ServiceType(v)
	}
	if _, ip := managed(p.g); ip != "" {
		out.Spec.LoadBalancerIP = ip // it is how an address is asked for
	}
	out.Spec.Selector = map[string]string{kube.LabelGatewayName: p.g.Name}
	out.Spec.Ports = p.ports(out.Spec.Ports)
	return out
}

// ports keeps the node ports that the stored ports were given.
func (p plan) ports(stored []corev1.ServicePort) []corev1.ServicePort {
	hbone := "hbone"
	out := []corev1.ServicePort{{
		Name: "status-port", Port: statusPort, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(statusPort),
	}}
	name := "mesh"
	for _, l := range p.g.Spec.Listeners {
		if listenerProblem(l) == "" {
			name = string(l.Name)
			break
		}
	}
	if p.edge {
		out = append(out, p.edgePorts()...)
	} else {
		out = append(out, corev1.ServicePort{
			Name: name, Port: kube.HBONEPort, Protocol: corev1.ProtocolTCP, AppProtocol: &hbone,
			TargetPort: intstr.FromInt32(kube.HBONEPort),
		})
	}
	for i := range out {
		for _, s := range stored {
			if s.Port == out[i].Port {
				out[i].NodePort = s.NodePort
			}
		}
	}
	return out
}

func listenerProblem(l gatewayv1.Listener) string {
	if l.Protocol != waypointHBONE || l.Port != kube.HBONEPort {
		return "a waypoint's listener has port 15008 and protocol HBONE"
	}
	return ""
}

// addresses are the Service's name and cluster addresses once there is a pod to answer there. What was reported stays:
// clients that lose the waypoint from their sight would go around it.
func (p plan) addresses() []gatewayv1.GatewayStatusAddress {
	service := p.services[p.key(p.name)]
	if service == nil {
		return nil
	}
	if len(p.g.Status.Addresses) == 0 && !p.podReady() {
		return nil
	}
	ips := service.Spec.ClusterIPs
	if len(ips) == 0 && service.Spec.ClusterIP != "" {
		ips = []string{service.Spec.ClusterIP}
	}
	hostType, ipType := gatewayv1.HostnameAddressType, gatewayv1.IPAddressType
	var out []gatewayv1.GatewayStatusAddress
	for _, ip := range ips {
		if _, err := netip.ParseAddr(ip); err == nil {
			out = append(out, gatewayv1.GatewayStatusAddress{Type: &ipType, Value: ip})
		}
	}
	if len(out) == 0 {
		return p.g.Status.Addresses
	}
	if p.edge {
		return p.edgeAddresses(service, out)
	}
	host := gatewayv1.GatewayStatusAddress{Type: &hostType, Value: kube.Hostname(p.name, p.g.Namespace, p.ClusterDomain)}
	return append([]gatewayv1.GatewayStatusAddress{host}, out...)
}

func (p plan) podReady() bool {
	return slices.ContainsFunc(p.pods, func(pod *corev1.Pod) bool {
		return pod.Namespace == p.g.Namespace && pod.Labels[kube.LabelGatewayName] == p.g.Name &&
			pod.DeletionTimestamp == nil && !kube.Terminal(pod) && kube.Ready(pod)
	})
}

func (p plan) deployment(stored *appsv1.Deployment) *appsv1.Deployment {
	out := &appsv1.Deployment{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}}
	if stored != nil {
		out = stored.DeepCopy() // keeps its status and a number of replicas that somebody set
		out.ObjectMeta = p.meta(p.name, stored)
	} else {
		out.ObjectMeta = p.meta(p.name, nil)
	}
	out.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{kube.LabelGatewayName: p.g.Name}}
	out.Spec.Template = p.template()
	return out
}
