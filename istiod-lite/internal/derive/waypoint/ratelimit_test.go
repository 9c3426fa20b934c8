package waypoint

import (
	"strings"
	"testing"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/policy"
)

// chainFilters are the names of a chain's HTTP filters.
func chainFilters(t *testing.T, r Resources, chain string) []string {
	t.Helper()
	for _, c := range r.Listeners[MainInternal].GetFilterChains() {
		if c.GetName() != chain {
			continue
		}
		m := &hcmv3.HttpConnectionManager{}
		if err := c.GetFilters()[len(c.GetFilters())-1].GetTypedConfig().UnmarshalTo(m); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, f := range m.GetHttpFilters() {
			out = append(out, f.GetName())
		}
		return out
	}
	t.Fatalf("no chain %s", chain)
	return nil
}

// TestLimitsComeAfterJudges: a request that a policy refuses takes nothing from a limit; without limits there is no filter for them.
func TestLimitsComeAfterJudges(t *testing.T) {
	r, _ := Derive(parseWorld(t, []byte(limitWorld), []byte(limitObjects)))
	for _, chain := range []string{vipName(80, true, "", "web.shop.svc.cluster.local"), vipName(80, true, "", "shared.shop.svc.cluster.local")} {
		names := strings.Join(chainFilters(t, r, chain), " ")
		limit := strings.Index(names, limitFilter)
		if judge := strings.Index(names, rbacAllow); limit < judge || judge < 0 || strings.Index(names, "envoy.filters.http.router") < limit {
			t.Errorf("%s: order %s", chain, names)
		}
	}
	if names := strings.Join(chainFilters(t, r, directHTTP), " "); strings.Contains(names, limitFilter) {
		t.Errorf("a chain without limits has %s", names)
	}
}

func TestLimitConditions(t *testing.T) {
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }
	service := func(name, port string) *corev1.Service {
		return &corev1.Service{ObjectMeta: meta(name), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: port, Port: 80}}}}
	}
	limit := func(target policy.TargetRef, s *policy.RateLimitService) *policy.RateLimitPolicy {
		p := &policy.RateLimitPolicy{ObjectMeta: meta("p"), Spec: policy.RateLimitPolicySpec{TargetRefs: []policy.TargetRef{target}, Service: s}}
		p.Generation = 7
		return p
	}
	web := policy.TargetRef{Kind: "Service", Name: "web"}
	gateway := func(name string) policy.TargetRef {
		return policy.TargetRef{Group: gatewayv1.GroupName, Kind: "Gateway", Name: name}
	}
	for _, tc := range []struct {
		name               string
		p                  *policy.RateLimitPolicy
		accepted, resolved string
		says               string
	}{
		{"good", limit(web, nil), "Accepted", "ResolvedRefs", ""},
		{"waypoint", limit(gateway("wp"), nil), "Accepted", "ResolvedRefs", ""},
		{"at the border", limit(gateway("edge"), nil), "Accepted", "ResolvedRefs", ""},
		{"another gateway", limit(gateway("foreign"), nil), "TargetNotFound", "RefNotFound", "is no gateway of this mesh"},
		{"route", limit(policy.TargetRef{Group: gatewayv1.GroupName, Kind: "HTTPRoute", Name: "r"}, nil), "Accepted", "ResolvedRefs", ""},
		{"lost target", limit(policy.TargetRef{Kind: "Service", Name: "gone"}, nil), "TargetNotFound", "RefNotFound", "Service shop/gone does not exist"},
		{"service", limit(web, &policy.RateLimitService{Name: "rls", Port: 80}), "Accepted", "ResolvedRefs", ""},
		{"lost service", limit(web, &policy.RateLimitService{Name: "gone", Port: 80}), "Accepted", "RefNotFound", "pass uncounted"},
		{"lost service, closed", limit(web, &policy.RateLimitService{Name: "gone", Port: 80, Failure: policy.FailureDeny}), "Accepted", "RefNotFound", "are refused"},
		{"no such port", limit(web, &policy.RateLimitService{Name: "rls", Port: 81}), "Accepted", "RefNotFound", "has no port 81"},
		{"no gRPC", limit(web, &policy.RateLimitService{Name: "web", Port: 80}), "Accepted", "RefNotFound", "does not declare gRPC"},
		{"another namespace", limit(web, &policy.RateLimitService{Name: "rls", Namespace: "other", Port: 80}), "Accepted", "RefNotFound", "neither of the policy's namespace"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := LimitConditions(LimitRows{
				Mesh: Mesh{ClusterDomain: "cluster.local", RootNamespace: "istio-system"}, Services: []*corev1.Service{service("web", "http"), service("rls", "grpc")},
				HTTPRoutes: []*gatewayv1.HTTPRoute{{ObjectMeta: meta("r")}},
				Gateways: []*gatewayv1.Gateway{
					{ObjectMeta: meta("wp"), Spec: gatewayv1.GatewaySpec{GatewayClassName: "istio-waypoint"}},
					{ObjectMeta: meta("edge"), Spec: gatewayv1.GatewaySpec{GatewayClassName: "istio"}},
					{ObjectMeta: meta("foreign"), Spec: gatewayv1.GatewaySpec{GatewayClassName: "other"}},
				},
				Policies: []*policy.RateLimitPolicy{tc.p},
			})[types.NamespacedName{Namespace: "shop", Name: "p"}]
			if len(got) != 2 || got[0].Type != LimitAccepted || got[1].Type != LimitResolved || got[0].Generation != 7 {
				t.Fatalf("conditions %+v", got)
			}
			if got[0].Reason != tc.accepted || got[0].True != (tc.accepted == "Accepted") || got[1].Reason != tc.resolved || got[1].True != (tc.resolved == "ResolvedRefs") {
				t.Errorf("conditions %+v", got)
			}
			if !strings.Contains(got[0].Message+got[1].Message, tc.says) {
				t.Errorf("messages %q, %q do not say %q", got[0].Message, got[1].Message, tc.says)
			}
		})
	}
}
