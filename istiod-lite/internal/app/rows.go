package app

import (
	"cmp"
	"slices"
	"sync"

	meshapi "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/policy"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/bind"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/gateway"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ingress"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
)

// rows holds the objects that the derivations without an engine of their own read.
type rows map[manifest.Key]manifest.Object

// apply takes a batch; it reports whether something that waypoints or gateways depend on changed.
func (r rows) apply(events []source.Event) {
	for _, e := range events {
		if e.Object == nil {
			delete(r, e.Key)
			continue
		}
		r[e.Key] = e.Object
	}
}

// of lists the objects of one Go type, in a stable order.
func of[T manifest.Object](r rows) []T {
	var out []T
	for _, o := range r {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b T) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return out
}

func (r rows) gatewayInput(cfg gateway.Config) gateway.Input {
	return gateway.Input{
		Config: cfg, Gateways: of[*gatewayv1.Gateway](r), Classes: of[*gatewayv1.GatewayClass](r), ServiceAccounts: of[*corev1.ServiceAccount](r),
		Deployments: of[*appsv1.Deployment](r), Services: of[*corev1.Service](r), Pods: of[*corev1.Pod](r),
	}
}

// ingressInput are the rows of gateways at the mesh's border.
func (r rows) ingressInput(domain, revision string, topology *meshapi.Topology) ingress.Input {
	gateways := of[*gatewayv1.Gateway](r)
	classes := map[string]string{}
	for _, c := range of[*gatewayv1.GatewayClass](r) {
		classes[c.Name] = string(c.Spec.ControllerName)
	}
	gateways = slices.DeleteFunc(gateways, func(g *gatewayv1.Gateway) bool {
		return g.Spec.GatewayClassName != gateway.IngressClass || g.DeletionTimestamp != nil ||
			cmp.Or(classes[gateway.IngressClass], gateway.IngressController) != gateway.IngressController
	})
	return ingress.Input{
		ClusterDomain: domain, Topology: topology, Gateways: gateways,
		IstioGateways: ours(of[*networkingv1.Gateway](r), revision), Namespaces: of[*corev1.Namespace](r), Pods: of[*corev1.Pod](r),
		Services: of[*corev1.Service](r), Secrets: of[*corev1.Secret](r), ConfigMaps: of[*corev1.ConfigMap](r),
		Grants:     of[*gatewayv1.ReferenceGrant](r),
		HTTPRoutes: ours(of[*gatewayv1.HTTPRoute](r), revision), GRPCRoutes: ours(of[*gatewayv1.GRPCRoute](r), revision),
		TLSRoutes: ours(of[*gatewayv1.TLSRoute](r), revision), TCPRoutes: ours(of[*gatewayv1.TCPRoute](r), revision),
		VirtualServices: ours(of[*networkingv1.VirtualService](r), revision),
	}
}

func (r rows) bindObjects(revision string) bind.Objects {
	return bind.Objects{
		Gateways: of[*gatewayv1.Gateway](r), Pods: of[*corev1.Pod](r), Services: of[*corev1.Service](r),
		ServiceEntries:   ours(of[*networkingv1.ServiceEntry](r), revision),
		HTTPRoutes:       ours(of[*gatewayv1.HTTPRoute](r), revision),
		GRPCRoutes:       ours(of[*gatewayv1.GRPCRoute](r), revision),
		TLSRoutes:        ours(of[*gatewayv1.TLSRoute](r), revision),
		TCPRoutes:        ours(of[*gatewayv1.TCPRoute](r), revision),
		VirtualServices:  ours(of[*networkingv1.VirtualService](r), revision),
		DestinationRules: ours(of[*networkingv1.DestinationRule](r), revision),
		Secrets:          of[*corev1.Secret](r),
		ConfigMaps:       of[*corev1.ConfigMap](r),
		Policies:         ours(of[*securityv1.AuthorizationPolicy](r), revision),
		Authentications:  ours(of[*securityv1.RequestAuthentication](r), revision),
		RateLimits:       ours(of[*policy.RateLimitPolicy](r), revision),
		Telemetries:      ours(of[*telemetryv1.Telemetry](r), revision),
		BackendTLS:       ours(of[*gatewayv1.BackendTLSPolicy](r), revision),
	}
}

func ours[T manifest.Object](list []T, revision string) []T {
	return slices.DeleteFunc(list, func(o T) bool { return kube.OtherRevision(o, revision) })
}

// podIndex is what the certificate authority and the gatekeeper ask about pods.
type podIndex struct {
	mu   sync.RWMutex
	pods map[manifest.Key]*corev1.Pod
	// nodes tells where they are.
	nodes map[string]kube.Locality
	// accounts counts the pods that have not ended, by where and who they are.
	accounts map[account]int
}

type account struct{ node, namespace, name string }

func newPodIndex() *podIndex {
	return &podIndex{pods: map[manifest.Key]*corev1.Pod{}, nodes: map[string]kube.Locality{}, accounts: map[account]int{}}
}

func accountOf(p *corev1.Pod) (account, bool) {
	sa := cmp.Or(p.Spec.ServiceAccountName, "default")
	return account{p.Spec.NodeName, p.Namespace, sa}, p.Spec.NodeName != "" && !kube.Terminal(p)
}

func (x *podIndex) apply(events []source.Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range events {
		if e.Key.Group == "" && e.Key.Kind == "Node" {
			delete(x.nodes, e.Key.Name)
			if n, ok := e.Object.(*corev1.Node); ok {
				x.nodes[n.Name] = kube.NodeLocality(n.Labels)
			}
		}
		if e.Key.Group != "" || e.Key.Kind != "Pod" {
			continue
		}
		if old := x.pods[e.Key]; old != nil {
			if a, counts := accountOf(old); counts {
				if x.accounts[a]--; x.accounts[a] == 0 {
					delete(x.accounts, a)
				}
			}
			delete(x.pods, e.Key)
		}
		p, ok := e.Object.(*corev1.Pod)
		if !ok {
			continue
		}
		x.pods[e.Key] = p
		if a, counts := accountOf(p); counts {
			x.accounts[a]++
		}
	}
}

func (x *podIndex) pod(namespace, name string) *corev1.Pod {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.pods[manifest.Key{Kind: "Pod", Namespace: namespace, Name: name}]
}

// Pod implements ca.Pods.
func (x *podIndex) Pod(namespace, name string) (uid, serviceAccount, node string, ok bool) {
	p := x.pod(namespace, name)
	if p == nil {
		return "", "", "", false
	}
	return string(p.UID), cmp.Or(p.Spec.ServiceAccountName, "default"), p.Spec.NodeName, true
}

// OnNode implements ca.Pods.
func (x *podIndex) OnNode(node, namespace, serviceAccount string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.accounts[account{node, namespace, serviceAccount}] > 0
}

// GatewayOf implements serve.Gateways.
func (x *podIndex) GatewayOf(namespace, pod string, router bool) (string, bool) {
	p := x.pod(namespace, pod)
	if p == nil {
		return "", false
	}
	name := p.Labels[kube.LabelGatewayName]
	if name == "" && router {
		name = ingress.InstanceName(p).Name
	}
	return name, name != ""
}

// PlaceOf implements serve.Gateways.
func (x *podIndex) PlaceOf(namespace, pod string) string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	p := x.pods[manifest.Key{Kind: "Pod", Namespace: namespace, Name: pod}]
	if p == nil {
		return ""
	}
	l := x.nodes[p.Spec.NodeName]
	return waypoint.Place{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}.String()
}
