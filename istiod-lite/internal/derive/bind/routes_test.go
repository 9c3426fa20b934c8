package bind

import (
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

func serviceRef(name string, port gatewayv1.PortNumber) gatewayv1.ParentReference {
	group, kind := gatewayv1.Group(""), gatewayv1.Kind("Service")
	return gatewayv1.ParentReference{Group: &group, Kind: &kind, Name: gatewayv1.ObjectName(name), Port: &port}
}

func TestRouteStatus(t *testing.T) {
	free := func(*workload.Service, *workload.Workload) {}
	bound := func(s *workload.Service, _ *workload.Workload) {
		s.Waypoint = byHost("shop", "wp.shop.svc.cluster.local")
	}
	for name, tc := range map[string]struct {
		edit     func(s *workload.Service, w *workload.Workload)
		parent   gatewayv1.ParentReference
		findings []waypoint.Finding
		accepted string // status and a part of the message; empty: not ours
		resolved string
	}{
		"bound":           {bound, serviceRef("web", 80), nil, "True in force", "True"},
		"no waypoint":     {free, serviceRef("web", 80), nil, "True no effect", "True"},
		"no such service": {bound, serviceRef("gone", 80), nil, "False does not exist", "True"},
		"no such port":    {bound, serviceRef("web", 81), nil, "False no such port", "True"},
		"missing backend": {bound, serviceRef("web", 80), []waypoint.Finding{{Reason: "BackendNotFound", Message: "Service shop/x does not exist"}}, "True in force", "False"},
		"waypoint":        {free, gatewayv1.ParentReference{Name: "wp"}, nil, "True in force", "True"},
		"ingress gateway": {free, gatewayv1.ParentReference{Name: "ingress"}, nil, "", ""},
		"unknown gateway": {free, gatewayv1.ParentReference{Name: "nobody"}, nil, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			foreign := gatewayv1.RouteParentStatus{ControllerName: "example.com/other"}
			stale := gatewayv1.RouteParentStatus{ControllerName: MeshController}
			s, ours := RouteStatus(world(tc.edit), Route{
				Namespace: "shop", Generation: 3, Parents: []gatewayv1.ParentReference{tc.parent},
				Before: gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{foreign, stale}},
			}, tc.findings)
			if ours != (tc.accepted != "") {
				t.Fatalf("ours %v, status %+v", ours, s)
			}
			if len(s.Parents) == 0 || s.Parents[0].ControllerName != foreign.ControllerName {
				t.Fatalf("another controller's entry is lost: %+v", s.Parents)
			}
			if !ours {
				return
			}
			if len(s.Parents) != 2 {
				t.Fatalf("parents %+v, want the foreign and ours", s.Parents)
			}
			a, r := s.Parents[1].Conditions[0], s.Parents[1].Conditions[1]
			status, text, _ := strings.Cut(tc.accepted, " ")
			if string(a.Status) != status || !strings.Contains(a.Message, text) || string(r.Status) != tc.resolved || a.ObservedGeneration != 3 {
				t.Errorf("accepted %s %q, resolved %s %q", a.Status, a.Message, r.Status, r.Message)
			}
		})
	}
}
