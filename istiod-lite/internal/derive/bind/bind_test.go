package bind

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

const host = "web.shop.svc.cluster.local"

func byHost(ns, h string) *workload.GatewayAddress {
	return &workload.GatewayAddress{HboneMtlsPort: 15008, Destination: &workload.GatewayAddress_Hostname{Hostname: &workload.NamespacedHostname{Namespace: ns, Hostname: h}}}
}

func byIP(ip string) *workload.GatewayAddress {
	return &workload.GatewayAddress{HboneMtlsPort: 15008, Destination: &workload.GatewayAddress_Address{Address: &workload.NetworkAddress{Address: netip.MustParseAddr(ip).AsSlice()}}}
}

func gateway(ns, name, class string, addrs ...string) *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: gatewayv1.GatewaySpec{GatewayClassName: gatewayv1.ObjectName(class)}}
	for _, a := range addrs {
		g.Status.Addresses = append(g.Status.Addresses, gatewayv1.GatewayStatusAddress{Value: a})
	}
	return g
}

func world(edit func(s *workload.Service, w *workload.Workload)) World {
	s := &workload.Service{
		Name: "web", Namespace: "shop", Hostname: host, Addresses: []*workload.NetworkAddress{{Address: []byte{10, 96, 0, 1}}},
		Ports: []*workload.Port{{ServicePort: 80}, {ServicePort: 9000, TargetPort: 9001}},
	}
	w := &workload.Workload{
		Uid: "Kubernetes//Pod/shop/web-1", Name: "web-1", Namespace: "shop", WorkloadName: "web", Addresses: [][]byte{{10, 244, 1, 2}},
		TunnelProtocol: workload.TunnelProtocol_HBONE,
		Services:       map[string]*workload.PortList{"shop/" + host: {Ports: []*workload.Port{{ServicePort: 80, TargetPort: 8080}}}},
	}
	edit(s, w)
	return World{
		Mesh: waypoint.Mesh{TrustDomain: "cluster.local", ClusterDomain: "cluster.local"},
		Addresses: map[string]*workload.Address{
			"shop/" + host: {Type: &workload.Address_Service{Service: s}}, w.GetUid(): {Type: &workload.Address_Workload{Workload: w}},
		},
		Objects: Objects{
			Gateways: []*gatewayv1.Gateway{
				gateway("shop", "wp", "istio-waypoint", "wp.shop.svc.cluster.local", "10.96.0.9"), gateway("shop", "other", "istio-waypoint", "other.shop.svc.cluster.local"),
				gateway("shop", "ingress", "istio", "10.96.0.9"),
			},
			Pods: []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{"version": "v1"}}}},
			Services: []*corev1.Service{{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
				Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "tcp-raw", Port: 9000}}},
			}},
		},
	}
}

func TestBound(t *testing.T) {
	wp, other := types.NamespacedName{Namespace: "shop", Name: "wp"}, types.NamespacedName{Namespace: "shop", Name: "other"}
	for name, tc := range map[string]struct {
		edit                    func(s *workload.Service, w *workload.Workload)
		service, pod, elsewhere bool
	}{
		"not at all": {func(*workload.Service, *workload.Workload) {}, false, false, false},
		"service by host": {func(s *workload.Service, _ *workload.Workload) {
			s.Waypoint = byHost("shop", "wp.shop.svc.cluster.local")
		}, true, false, false},
		"service by IP": {func(s *workload.Service, _ *workload.Workload) { s.Waypoint = byIP("10.96.0.9") }, true, false, false},
		"foreign namespace": {func(s *workload.Service, _ *workload.Workload) {
			s.Waypoint = byHost("bank", "wp.shop.svc.cluster.local")
		}, false, false, false},
		"workload": {func(_ *workload.Service, w *workload.Workload) {
			w.Waypoint = byHost("shop", "wp.shop.svc.cluster.local")
		}, false, true, false},
		"canary": {func(s *workload.Service, _ *workload.Workload) {
			s.Waypoint = byHost("shop", "other.shop.svc.cluster.local")
			s.WeightedWaypoints = []*workload.WeightedWaypoint{{Destination: s.GetWaypoint(), Weight: 90}, {Destination: byHost("shop", "wp.shop.svc.cluster.local"), Weight: 10}}
		}, true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			in := Inputs(world(tc.edit))
			if len(in) != 2 {
				t.Fatalf("inputs for %d gateways, want the two waypoints", len(in))
			}
			if got := in[wp].Services[0].Bound; got != tc.service {
				t.Errorf("service bound: %v, want %v", got, tc.service)
			}
			if got := len(in[wp].Workloads) == 1; got != tc.pod {
				t.Errorf("workload bound: %v, want %v", got, tc.pod)
			}
			if got := in[other].Services[0].Bound; got != tc.elsewhere {
				t.Errorf("bound to the other waypoint: %v, want %v", got, tc.elsewhere)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	in := Inputs(world(func(*workload.Service, *workload.Workload) {}))
	s := in[types.NamespacedName{Namespace: "shop", Name: "wp"}].Services[0]
	if len(s.Endpoints) != 1 || s.Endpoints[0].Targets[80] != 8080 || s.Endpoints[0].Targets[9000] != 9001 {
		t.Fatalf("endpoints %+v; want 80 to the endpoint's 8080 and 9000 to the service's 9001", s.Endpoints)
	}
	e := s.Endpoints[0]
	if e.Labels["version"] != "v1" || !e.HBONE || !e.Healthy || e.ServiceAccount != "default" || e.TrustDomain != "cluster.local" {
		t.Fatalf("endpoint %+v", e)
	}
	if s.Ports[0].Protocol != waypoint.HTTP || s.Ports[1].Protocol != waypoint.TCP {
		t.Fatalf("ports %+v", s.Ports)
	}
}

func TestEmptyWaypoint(t *testing.T) {
	w := world(func(*workload.Service, *workload.Workload) {})
	w.Addresses = nil
	if _, ok := Inputs(w)[types.NamespacedName{Namespace: "shop", Name: "wp"}]; !ok {
		t.Fatal("a waypoint with nothing bound has no input")
	}
}

// TestIPv6: the waypoint listens on IPv6 exactly where its own pods have such an address.
func TestIPv6(t *testing.T) {
	w := world(func(*workload.Service, *workload.Workload) {})
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "wp-1", Labels: map[string]string{"gateway.networking.k8s.io/gateway-name": "wp"},
	}}
	pod.Status.PodIPs = []corev1.PodIP{{IP: "10.244.1.9"}, {IP: "fd00:10:244:1::9"}}
	w.Objects.Pods = append(w.Objects.Pods, pod)
	in := Inputs(w)
	if !in[types.NamespacedName{Namespace: "shop", Name: "wp"}].Mesh.IPv6 || in[types.NamespacedName{Namespace: "shop", Name: "other"}].Mesh.IPv6 {
		t.Error("IPv6 does not follow the waypoint's pods")
	}
}
