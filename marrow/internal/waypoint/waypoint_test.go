package waypoint_test

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/marrow/internal/waypoint"
)

func pod(name, app, account string, owned bool) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", Labels: map[string]string{"app": app}}, Spec: corev1.PodSpec{ServiceAccountName: account}}
	if owned {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet"}}
	}
	return p
}

func service(name string, selector map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}, Spec: corev1.ServiceSpec{Selector: selector}}
}

func TestEnrolServiceAccount(t *testing.T) {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "catalog", Namespace: "shop"}}
	d.Spec.Template.Labels = map[string]string{"app": "catalog"}
	d.Spec.Template.Spec.ServiceAccountName = "catalog"
	m := waypoint.Members{
		Services: []*corev1.Service{
			service("catalog", map[string]string{"app": "catalog"}), service("web", map[string]string{"app": "web"}),
			service("all", map[string]string{"tier": "x"}), service("none", nil), service("mixed", map[string]string{"app": "mixed"}),
		},
		Pods: []*corev1.Pod{
			pod("catalog-1", "catalog", "catalog", true), pod("lone", "lone", "catalog", false), pod("web-1", "web", "web", true),
			pod("m1", "mixed", "catalog", true), pod("m2", "mixed", "", true),
		},
		Deployments: []*appsv1.Deployment{d},
	}
	for trafficFor, want := range map[string]string{
		"":         "service/shop/catalog",
		"service":  "service/shop/catalog",
		"workload": "deployment.apps/shop/catalog* pod/shop/lone",
		"all":      "service/shop/catalog deployment.apps/shop/catalog* pod/shop/lone",
		"none":     "",
	} {
		var got []string
		for _, r := range waypoint.Enrol(m, "catalog", "w", trafficFor) {
			if r.Set[waypoint.UseLabel] != "w" {
				t.Errorf("%s: %+v", trafficFor, r)
			}
			text := r.Ref.String()
			if r.Template {
				text += "*"
			}
			got = append(got, text)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("for %q: %v, want %s", trafficFor, got, want)
		}
	}
	if r := waypoint.Enrol(m, "catalog", "", "service"); len(r) != 1 || fmt.Sprint(r[0].Remove) != "[istio.io/use-waypoint]" {
		t.Errorf("un-enrol: %+v", r)
	}
	if r := waypoint.Enrol(m, "default", "w", "service"); len(r) != 0 {
		t.Errorf("an account that shares its Service: %+v", r)
	}
}

func TestGateway(t *testing.T) {
	raw, err := manifest.Encode(waypoint.Spec{Name: "waypoint", Namespace: "shop", For: "all", Revision: "r1"}.Gateway())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"gatewayClassName: istio-waypoint", "port: 15008", "protocol: HBONE", "name: mesh", "istio.io/waypoint-for: all", "istio.io/rev: r1", "namespace: shop"} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%s\nmisses %s", raw, want)
		}
	}
	if g := (waypoint.Spec{Name: "w"}).Gateway(); len(g.Labels) != 0 || !waypoint.Is(g) {
		t.Errorf("%+v", g.Labels)
	}
	for _, bad := range []waypoint.Spec{{Name: "none"}, {Name: "w", For: "everything"}} {
		if bad.Check() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

func TestOnlyWaypoints(t *testing.T) {
	g := &gatewayv1.Gateway{Spec: gatewayv1.GatewaySpec{GatewayClassName: "istio"}}
	if waypoint.Is(g) {
		t.Error("an ingress gateway is a waypoint")
	}
	if c := waypoint.Programmed(g); c.Status != metav1.ConditionUnknown {
		t.Errorf("%+v", c)
	}
}
