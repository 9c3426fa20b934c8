package gateway

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
)

const shopWaypoint = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, uid: u1, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {labels: {team: a, gateway.networking.k8s.io/x: dropped}}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`

// world is an Input that objects are applied to, as a store would.
type world struct{ in Input }

func newWorld(t *testing.T, text string) *world {
	t.Helper()
	w := &world{in: Input{Config: Config{
		ClusterDomain: "cluster.local", ClusterID: "Kubernetes", TrustDomain: "cluster.local",
		XDSAddress: "istiod.istio-system.svc:15012", CAAddress: "istiod.istio-system.svc:15012", Image: "marrowmesh/waypoint:latest",
	}}}
	objects, err := manifest.Decode("world.yaml", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		w.put(t, o)
	}
	return w
}

func (w *world) put(t *testing.T, o manifest.Object) {
	t.Helper()
	switch o := o.(type) {
	case *gatewayv1.Gateway:
		w.in.Gateways = replace(w.in.Gateways, o)
	case *gatewayv1.GatewayClass:
		w.in.Classes = replace(w.in.Classes, o)
	case *corev1.ServiceAccount:
		w.in.ServiceAccounts = replace(w.in.ServiceAccounts, o)
	case *corev1.Service:
		w.in.Services = replace(w.in.Services, o)
	case *appsv1.Deployment:
		w.in.Deployments = replace(w.in.Deployments, o)
	case *corev1.Pod:
		w.in.Pods = replace(w.in.Pods, o)
	default:
		t.Fatalf("a store has no place for %T", o)
	}
}

func replace[T manifest.Object](list []T, o T) []T {
	for i := range list {
		if manifest.KeyOf(list[i]) == manifest.KeyOf(o) {
			list[i] = o
			return list
		}
	}
	return append(list, o)
}

// settle applies answers until there are none.
func (w *world) settle(t *testing.T) Output {
	t.Helper()
	for range 5 {
		out := Derive(w.in)
		again := len(out.Objects) > 0
		for _, o := range out.Objects {
			// What is stored has gone through YAML.
			text, err := manifest.Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			read, err := manifest.Decode("stored", bytes.NewReader(text))
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			w.put(t, read[0])
		}
		for _, g := range w.in.Gateways {
			if s, ok := out.Gateways[types.NamespacedName{Namespace: g.Namespace, Name: g.Name}]; ok {
				again = again || !cmp.Equal(g.Status, s)
				g.Status = s
			}
		}
		if !again {
			return out
		}
	}
	t.Fatal("the answer never becomes empty")
	return Output{}
}

func gatewayCondition(g *gatewayv1.Gateway, kind gatewayv1.GatewayConditionType) string {
	c := meta.FindStatusCondition(g.Status.Conditions, string(kind))
	if c == nil {
		return "absent"
	}
	return string(c.Status) + " " + c.Reason
}

// TestDeriveSettles: a waypoint Gateway gets its three objects once, and then nothing is left to do.
func TestDeriveSettles(t *testing.T) {
	w := newWorld(t, shopWaypoint)
	w.settle(t)
	if len(w.in.Classes) != 3 || len(w.in.ServiceAccounts) != 1 || len(w.in.Services) != 1 || len(w.in.Deployments) != 1 {
		t.Fatalf("objects: %+v", w.in)
	}
	d := w.in.Deployments[0]
	if ref := d.OwnerReferences[0]; ref.UID != "u1" || ref.Kind != "Gateway" {
		t.Errorf("owner %+v", ref)
	}
	labels := d.Spec.Template.Labels
	if labels["istio.io/dataplane-mode"] != "none" || labels["team"] != "a" || labels["gateway.networking.k8s.io/gateway-name"] != "waypoint" {
		t.Errorf("pod labels %v", labels)
	}
	if _, leaked := labels["gateway.networking.k8s.io/x"]; leaked {
		t.Error("a reserved infrastructure label reached the pods")
	}
	g := w.in.Gateways[0]
	if got := gatewayCondition(g, gatewayv1.GatewayConditionAccepted); got != "True Accepted" {
		t.Error(got)
	}
	if got := gatewayCondition(g, gatewayv1.GatewayConditionProgrammed); got != "False AddressNotAssigned" {
		t.Error(got)
	}
	// Somebody scales it, and the platform gives it an address: both stay.
	three := int32(3)
	d.Spec.Replicas = &three
	w.in.Services[0].Spec.ClusterIP = "10.96.0.7"
	w.settle(t)
	if *w.in.Deployments[0].Spec.Replicas != 3 || w.in.Services[0].Spec.ClusterIP != "10.96.0.7" {
		t.Error("what others set was lost")
	}
	// Somebody breaks it: it is repaired.
	w.in.Deployments[0].Spec.Template.Spec.Containers[0].Image = "evil"
	w.settle(t)
	if got := w.in.Deployments[0].Spec.Template.Spec.Containers[0].Image; got != "marrowmesh/waypoint:latest" {
		t.Error(got)
	}
}

// TestAddresses: they come with the first ready pod and do not go with the last.
func TestAddresses(t *testing.T) {
	w := newWorld(t, shopWaypoint)
	w.settle(t)
	w.in.Services[0].Spec.ClusterIPs = []string{"10.96.0.7", "fd00:10:96::7"}
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "waypoint-1", "shop"
	pod.Labels = map[string]string{"gateway.networking.k8s.io/gateway-name": "waypoint"}
	w.in.Pods = []*corev1.Pod{pod}
	g := w.in.Gateways[0]
	if w.settle(t); len(g.Status.Addresses) != 0 {
		t.Fatalf("addresses without a ready pod: %v", g.Status.Addresses)
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	w.settle(t)
	var got []string
	for _, a := range g.Status.Addresses {
		got = append(got, string(*a.Type)+" "+a.Value)
	}
	want := []string{"Hostname waypoint.shop.svc.cluster.local", "IPAddress 10.96.0.7", "IPAddress fd00:10:96::7"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := gatewayCondition(g, gatewayv1.GatewayConditionProgrammed); got != "True Programmed" {
		t.Error(got)
	}
	w.in.Pods = nil
	w.settle(t)
	if len(g.Status.Addresses) != 3 || gatewayCondition(g, gatewayv1.GatewayConditionProgrammed) != "False AddressNotAssigned" {
		t.Errorf("after the last pod: %v %v", g.Status.Addresses, gatewayCondition(g, gatewayv1.GatewayConditionProgrammed))
	}
}

// TestConflicts: what belongs to somebody else is left alone, and the Gateway says so.
func TestConflicts(t *testing.T) {
	cases := map[string]struct{ extra, accepted, programmed string }{
		"foreign Deployment": {
			"---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: waypoint, namespace: shop}\n",
			"True Accepted", "False NoResources",
		},
		"foreign Service": {
			"---\napiVersion: v1\nkind: Service\nmetadata: {name: waypoint, namespace: shop}\n",
			"True Accepted", "False NoResources",
		},
		"foreign class": {
			"---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: istio-waypoint}\n" +
				"spec: {controllerName: example.com/other}\n",
			"absent", "absent",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, shopWaypoint+c.extra)
			w.settle(t)
			g := w.in.Gateways[0]
			if got := gatewayCondition(g, gatewayv1.GatewayConditionAccepted); got != c.accepted {
				t.Error("Accepted:", got)
			}
			if got := gatewayCondition(g, gatewayv1.GatewayConditionProgrammed); got != c.programmed {
				t.Error("Programmed:", got)
			}
			if len(w.in.ServiceAccounts) != 0 {
				t.Error("something was made all the same")
			}
		})
	}
}

// TestIneligible: Gateways that are not deployed say why.
func TestIneligible(t *testing.T) {
	cases := map[string]struct {
		spec, accepted, programmed string
		addresses                  int
		deployed                   bool
	}{
		"wrong listener": {
			"{gatewayClassName: istio-waypoint, listeners: [{name: x, port: 80, protocol: HTTP}]}",
			"False ListenersNotValid", "False AddressNotAssigned", 0, true,
		},
		"one wrong listener": {
			"{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}, {name: x, port: 80, protocol: HTTP}]}",
			"True ListenersNotValid", "False AddressNotAssigned", 0, true,
		},
		"by hand": {
			"{gatewayClassName: istio-waypoint, addresses: [{type: Hostname, value: w.example}], listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
			"True Accepted", "True Programmed", 1, false,
		},
		"parameters": {
			"{gatewayClassName: istio-waypoint, infrastructure: {parametersRef: {group: \"\", kind: ConfigMap, name: c}}, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
			"False InvalidParameters", "False Invalid", 0, false,
		},
		"ingress": {
			"{gatewayClassName: istio, infrastructure: {parametersRef: {group: \"\", kind: ConfigMap, name: c}}, listeners: [{name: x, port: 80, protocol: HTTP}]}",
			"False InvalidParameters", "False Invalid", 0, false,
		},
		"remote": {
			"{gatewayClassName: istio-remote, addresses: [{value: 192.0.2.1}], listeners: [{name: x, port: 15008, protocol: HBONE}]}",
			"True Accepted", "True Programmed", 1, false,
		},
		"other class": {
			"{gatewayClassName: nginx, listeners: [{name: x, port: 80, protocol: HTTP}]}",
			"absent", "absent", 0, false,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: shop}\nspec: "+c.spec+"\n")
			w.settle(t)
			g := w.in.Gateways[0]
			if got := gatewayCondition(g, gatewayv1.GatewayConditionAccepted); got != c.accepted {
				t.Error("Accepted:", got)
			}
			if got := gatewayCondition(g, gatewayv1.GatewayConditionProgrammed); got != c.programmed {
				t.Error("Programmed:", got)
			}
			if len(g.Status.Addresses) != c.addresses || (len(w.in.Deployments) == 1) != c.deployed {
				t.Errorf("addresses %v, deployments %d", g.Status.Addresses, len(w.in.Deployments))
			}
		})
	}
}

// TestServiceAccountAnnotation: an account that exists is used and not changed.
func TestServiceAccountAnnotation(t *testing.T) {
	text := strings.Replace(shopWaypoint, "labels: {", "annotations: {gateway.istio.io/service-account: catalog}, labels: {", 1)
	w := newWorld(t, text+"---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: catalog, namespace: shop}\n")
	w.settle(t)
	if len(w.in.ServiceAccounts) != 1 || len(w.in.ServiceAccounts[0].OwnerReferences) != 0 {
		t.Errorf("accounts %+v", w.in.ServiceAccounts)
	}
	if got := w.in.Deployments[0].Spec.Template.Spec.ServiceAccountName; got != "catalog" {
		t.Error(got)
	}
}
