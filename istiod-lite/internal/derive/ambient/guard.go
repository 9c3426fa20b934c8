package ambient

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	apinetworking "istio.io/api/networking/v1alpha3"
	apisecurity "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/collect"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// guardPrefix begins the names of guards. No object of Kubernetes can have such a name.
const guardPrefix = "marrow_waypoint_required_"

// guardTables hold what keeps traffic from passing by a waypoint that has to judge it (ADR 16): for each service with a policy that
// only a waypoint can enforce, a DENY at its workloads for everybody but the proxies of its waypoint. Keys are "namespace/hostname".
type guardTables struct {
	kube, external *collect.Table[string, *security.Authorization]
	byTarget       *collect.Index[policyTarget, name, *clientsecurity.AuthorizationPolicy]
	proxies        *collect.Index[name, name, *corev1.Pod] // of waypoints, by Gateway
}

// policyTarget is what a policy's targetRef names.
type policyTarget struct{ kind, namespace, name string }

func compareTargets(a, b policyTarget) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
}

func newGuardTables(t *rows, g gatewayTables, s serviceTables) guardTables {
	var out guardTables
	out.byTarget = collect.NewIndex(t.policies, compareTargets, func(k name, ap *clientsecurity.AuthorizationPolicy) []policyTarget {
		return targetsOf(k.Namespace, ap)
	})
	out.proxies = collect.NewIndex(t.pods, kube.CompareNames, func(k name, pod *corev1.Pod) []name {
		if gateway := pod.Labels[kube.LabelGatewayName]; gateway != "" {
			return []name{{Namespace: k.Namespace, Name: gateway}}
		}
		return nil
	})
	out.kube = collect.Derive(t.engine, "guards of services", s.shapes, strings.Compare, equalAuthorizations,
		func(r *collect.Run, k name, emit func(string, *security.Authorization)) {
			svc, _ := collect.Get(r, t.services, k)
			shape, _ := collect.Get(r, s.shapes, k)
			if ownWaypoint(svc.Labels) {
				return
			}
			if out.required(r, t, policyTarget{"Service", k.Namespace, k.Name}, svc.Labels) {
				emit(hostKey{k.Namespace, shape.host}.String(),
					out.guard(r, t, k.Namespace, k.Name, t.attachKube(r, g, svc), targetPorts(shape.ports)))
			}
		})
	out.external = collect.Derive(t.engine, "guards of entries", s.winners, strings.Compare, equalAuthorizations,
		func(r *collect.Run, k hostKey, emit func(string, *security.Authorization)) {
			w, _ := collect.Get(r, s.winners, k)
			e, ok := collect.Get(r, s.entries, w.entry)
			if ok && out.required(r, t, policyTarget{"ServiceEntry", w.entry.Namespace, w.entry.Name}, e.object.Labels) {
				emit(k.String(), out.guard(r, t, k.namespace, k.host, t.attachEntry(r, g, e), entryPorts(e.object.Spec.GetPorts())))
			}
		})
	return out
}

// targetsOf lists what a policy protects that only a waypoint can enforce. One that refuses nothing protects nothing.
func targetsOf(ns string, ap *clientsecurity.AuthorizationPolicy) (out []policyTarget) {
	dry, err := strconv.ParseBool(ap.Annotations[kube.AnnotationDryRun])
	if ap.Spec.GetAction() == apisecurity.AuthorizationPolicy_AUDIT || err == nil && dry {
		return nil
	}
	refs := ap.Spec.GetTargetRefs()
	if one := ap.Spec.GetTargetRef(); one != nil {
		refs = append(slices.Clip(refs), one)
	}
	for _, ref := range refs {
		if t, ok := targetOf(ns, ref); ok && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

func targetOf(ns string, ref *apitype.PolicyTargetReference) (policyTarget, bool) {
	group := ref.GetGroup()
	switch ref.GetKind() {
	case "Service":
		if group != "" && group != "core" {
			return policyTarget{}, false
		}
	case "ServiceEntry":
		if group != manifest.GroupNetworking {
			return policyTarget{}, false
		}
	case "Gateway", "GatewayClass":
	default:
		return policyTarget{}, false
	}
	return policyTarget{ref.GetKind(), ns, ref.GetName()}, true
}

// required says whether a policy has to be enforced by the waypoint of a service, whether or not there is one. The service's owner can
// say no: by wanting no waypoint at all, or by kube.LabelWaypointOptional.
func (g guardTables) required(r *collect.Run, t *rows, service policyTarget, labels map[string]string) bool {
	nsLabels := t.namespace(r, service.namespace).labels
	if t.cfg.Unguarded || labels[kube.LabelUseWaypoint] == "none" || first(labels[kube.LabelWaypointOptional], nsLabels[kube.LabelWaypointOptional]) == "true" {
		return false
	}
	if len(collect.Rows(r, g.byTarget, service)) > 0 {
		return true
	}
	b := kube.BindingOf(labels, nsLabels, service.namespace)
	if !b.Wanted {
		return false
	}
	targets := []policyTarget{{"Gateway", b.Waypoint.Namespace, b.Waypoint.Name}, {"GatewayClass", t.mesh(r).RootNamespace, kube.WaypointClass}}
	if b.CanaryWanted {
		targets = append(targets, policyTarget{"Gateway", b.Canary.Namespace, b.Canary.Name})
	}
	return slices.ContainsFunc(targets, func(p policyTarget) bool { return len(collect.Rows(r, g.byTarget, p)) > 0 })
}

// guard refuses all that does not come from the proxies of the service's waypoints, on the service's ports.
func (g guardTables) guard(r *collect.Run, t *rows, ns, service string, a Attachment, ports []uint32) *security.Authorization {
	m := &security.Match{DestinationPorts: ports}
	for _, w := range []*Waypoint{a.Waypoint, a.Canary} {
		if w == nil {
			continue
		}
		for _, account := range g.accounts(r, w.Name) {
			m.NotPrincipals = append(m.NotPrincipals, &security.StringMatch{MatchType: &security.StringMatch_Exact{
				Exact: t.mesh(r).TrustDomain + "/ns/" + w.Name.Namespace + "/sa/" + account,
			}})
		}
	}
	matches := []*security.Match{m}
	if len(m.GetNotPrincipals()) == 0 && len(ports) == 0 {
		// A match without conditions matches nothing: everybody is who has an identity and who has none.
		somebody := stringsOf([]string{"*"})
		matches = []*security.Match{{Principals: somebody}, {NotPrincipals: somebody}}
	}
	return &security.Authorization{
		Name: guardPrefix + service, Namespace: ns, Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY,
		Groups: []*security.Group{{Rules: []*security.Rules{{Matches: matches}}}},
	}
}

// accounts are the service accounts of a waypoint's pods, ordered.
func (g guardTables) accounts(r *collect.Run, gateway name) []string {
	var out []string
	for _, row := range collect.Rows(r, g.proxies, gateway) {
		out = append(out, first(row.Value.Spec.ServiceAccountName, "default"))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// targetPorts are the ports of pods behind a Service; none means any: a port by name may be another one at each pod.
func targetPorts(ports []corev1.ServicePort) []uint32 {
	var out []uint32
	for _, p := range ports {
		switch {
		case p.TargetPort.Type == intstr.String:
			return nil
		case p.TargetPort.IntVal > 0:
			out = append(out, uint32(p.TargetPort.IntVal))
		default:
			out = append(out, uint32(p.Port))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func entryPorts(ports []*apinetworking.ServicePort) []uint32 {
	var out []uint32
	for _, p := range ports {
		out = append(out, cmp.Or(p.GetTargetPort(), p.GetNumber()))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// attached fetches the names of the guards of a workload's services.
func (g guardTables) attached(r *collect.Run, services map[string]*workload.PortList) []string {
	var out []string
	for k := range services {
		for _, t := range []*collect.Table[string, *security.Authorization]{g.kube, g.external} {
			if a, ok := collect.Get(r, t, k); ok {
				out = append(out, a.GetNamespace()+"/"+a.GetName())
			}
		}
	}
	slices.Sort(out)
	return out
}
