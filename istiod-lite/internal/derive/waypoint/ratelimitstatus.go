package waypoint

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/policy"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// Types of the conditions of a RateLimitPolicy.
const (
	LimitAccepted = "Accepted"
	LimitResolved = "ResolvedRefs"
)

// LimitRows is what the conditions of rate limits depend on.
type LimitRows struct {
	Mesh       Mesh
	Services   []*corev1.Service
	HTTPRoutes []*gatewayv1.HTTPRoute
	Gateways   []*gatewayv1.Gateway
	Policies   []*policy.RateLimitPolicy
}

// LimitCondition is one condition of a policy.
type LimitCondition struct {
	Type, Reason, Message string
	True                  bool
	Generation            int64
}

// LimitConditions says of each policy whether one of its targets exists (Accepted), and whether all that it refers to does
// (ResolvedRefs).
func LimitConditions(in LimitRows) map[types.NamespacedName][]LimitCondition {
	found := map[string]bool{}
	for _, s := range in.Services {
		found["Service "+kube.NameOf(s).String()] = true
	}
	for _, r := range in.HTTPRoutes {
		found["HTTPRoute "+kube.NameOf(r).String()] = true
	}
	for _, g := range in.Gateways {
		if g.Spec.GatewayClassName == kube.WaypointClass || g.Spec.GatewayClassName == kube.IngressClass {
			found["Gateway "+kube.NameOf(g).String()] = true
		}
	}
	d := newDerivation(Input{Mesh: in.Mesh, Services: limitServices(in)})
	out := make(map[types.NamespacedName][]LimitCondition, len(in.Policies))
	for _, p := range in.Policies {
		accepted := LimitCondition{Type: LimitAccepted, True: true, Reason: "Accepted", Message: "Policy was valid", Generation: p.Generation}
		resolved := LimitCondition{Type: LimitResolved, True: true, Reason: "ResolvedRefs", Message: "All references resolved", Generation: p.Generation}
		var lost []string
		for _, ref := range p.Spec.TargetRefs {
			if name := ref.Kind + " " + p.Namespace + "/" + ref.Name; !found[name] {
				lost = append(lost, name+" does not exist"+map[bool]string{true: " or is no gateway of this mesh"}[ref.Kind == "Gateway"])
			}
		}
		if len(lost) == len(p.Spec.TargetRefs) {
			accepted.True, accepted.Reason, accepted.Message = false, "TargetNotFound", strings.Join(lost, "; ")
		}
		if p.Spec.Service != nil {
			if _, _, problem := d.resolveLimitService(p); problem != "" {
				verdict := "requests pass uncounted"
				if p.Spec.Service.Failure == policy.FailureDeny {
					verdict = "requests are refused"
				}
				lost = append(lost, "service: "+problem+"; until then "+verdict)
			}
		}
		if len(lost) > 0 {
			resolved.True, resolved.Reason, resolved.Message = false, "RefNotFound", strings.Join(lost, "; ")
		}
		out[kube.NameOf(p)] = []LimitCondition{accepted, resolved}
	}
	return out
}

// limitServices are the Services with what a rate limit asks of their ports.
func limitServices(in LimitRows) []Service {
	out := routeServices(RouteRows{Mesh: in.Mesh, Services: in.Services})
	for i, s := range in.Services {
		for j, p := range s.Spec.Ports {
			switch kube.ServicePortProtocol(p) {
			case kube.GRPC, kube.HTTP2, kube.GRPCWeb:
				out[i].Ports[j].Protocol = HTTP2
			default:
			}
		}
	}
	return out
}
