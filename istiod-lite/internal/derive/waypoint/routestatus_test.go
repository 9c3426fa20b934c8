package waypoint

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
)

const statusRoutes = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: good, namespace: shop, generation: 3}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: no-backend, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: lost, port: 80}, {name: web, port: 81}, {kind: Secret, name: x, port: 1}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: no-parent, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: lost}, {group: "", kind: Service, name: web, port: 99}, {name: waypoint}]
  rules: [{}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: bad-match, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{matches: [{path: {type: PathPrefix, value: "/a?b"}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ingress, namespace: shop}
spec: {parentRefs: [{name: gateway}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: rpc, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]}]
`

// TestRouteStatuses: each parent gets two conditions; what is not the mesh's is left to others.
func TestRouteStatuses(t *testing.T) {
	web := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
	web.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
	in := parseWorld(t, nil, []byte(statusRoutes))
	rows := RouteRows{Mesh: in.Mesh, Services: []*corev1.Service{web}, HTTPRoutes: in.HTTPRoutes, GRPCRoutes: in.GRPCRoutes}
	got := map[string]string{}
	for k, s := range RouteStatuses(rows) {
		var words []string
		for _, p := range s.Parents {
			for _, c := range p.Conditions {
				words = append(words, c.Type+"="+string(c.Status)+"/"+c.Reason)
			}
		}
		got[k.Name] = strings.Join(words, " ")
	}
	want := map[string]string{
		"good":       "Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs",
		"no-backend": "Accepted=True/Accepted ResolvedRefs=False/BackendNotFound",
		"no-parent":  "Accepted=False/NoMatchingParent ResolvedRefs=True/ResolvedRefs Accepted=False/NoMatchingParent ResolvedRefs=True/ResolvedRefs",
		"bad-match":  "Accepted=False/UnsupportedValue ResolvedRefs=True/ResolvedRefs",
		"rpc":        "Accepted=True/Accepted ResolvedRefs=False/InvalidFilter",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestRouteStatusKeepsOthers: entries of other controllers stay, ours for a parent that is gone goes.
func TestRouteStatusKeepsOthers(t *testing.T) {
	in := parseWorld(t, nil, []byte(statusRoutes))
	route := in.HTTPRoutes[4] // ingress
	foreign := gatewayv1.RouteParentStatus{ControllerName: "example.com/other", ParentRef: gatewayv1.ParentReference{Name: "gateway"}}
	route.Status.Parents = []gatewayv1.RouteParentStatus{foreign, {ControllerName: RouteController, ParentRef: gatewayv1.ParentReference{Name: "old"}}}
	out := RouteStatuses(RouteRows{Mesh: in.Mesh, HTTPRoutes: in.HTTPRoutes[4:5]})
	s, ours := out[manifest.KeyOf(route)]
	if diff := cmp.Diff([]gatewayv1.RouteParentStatus{foreign}, s.Parents); !ours || diff != "" {
		t.Error(ours, diff)
	}
}
