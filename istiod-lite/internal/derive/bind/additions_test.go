package bind

import (
	"testing"

	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ingress"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// TestBothKindsGetAdditions: waypoints and gateways get Telemetry objects and policies on TLS to backends, and of ConfigMaps elsewhere
// only those that such a policy of their own namespace refers to.
func TestBothKindsGetAdditions(t *testing.T) {
	at := func(namespace, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name}
	}
	w := World{Objects: Objects{
		Gateways:    []*gatewayv1.Gateway{{ObjectMeta: at("shop", "waypoint"), Spec: gatewayv1.GatewaySpec{GatewayClassName: kube.WaypointClass}}},
		Telemetries: []*telemetryv1.Telemetry{{ObjectMeta: at("shop", "t")}},
		BackendTLS: []*gatewayv1.BackendTLSPolicy{{ObjectMeta: at("vault", "p"), Spec: gatewayv1.BackendTLSPolicySpec{
			Validation: gatewayv1.BackendTLSPolicyValidation{CACertificateRefs: []gatewayv1.LocalObjectReference{{Kind: "ConfigMap", Name: "roots"}}},
		}}},
		ConfigMaps: []*corev1.ConfigMap{{ObjectMeta: at("vault", "roots")}, {ObjectMeta: at("vault", "private")}, {ObjectMeta: at("bank", "roots")}},
	}}
	edge := types.NamespacedName{Namespace: "edge", Name: "front"}
	all := map[string]waypoint.Input{
		"waypoint": Inputs(w)[types.NamespacedName{Namespace: "shop", Name: "waypoint"}],
		"gateway":  Edges(w, ingress.Output{Edges: map[types.NamespacedName]*waypoint.Edge{edge: {}}})[edge],
	}
	for kind, in := range all {
		if len(in.Telemetries) != 1 || len(in.BackendTLS.Policies) != 1 || (in.Edge != nil) != (kind == "gateway") {
			t.Errorf("%s: %d Telemetry objects, %d policies, edge %v", kind, len(in.Telemetries), len(in.BackendTLS.Policies), in.Edge)
		}
		if r := in.BackendTLS.Roots; len(r) != 1 || r[0].Namespace != "vault" || r[0].Name != "roots" || len(in.ConfigMaps) != 0 {
			t.Errorf("%s: roots %v, ConfigMaps %v", kind, r, in.ConfigMaps)
		}
	}
}
