package ambient

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	apitype "istio.io/api/type/v1beta1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/collect"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// policyTables hold what node proxies enforce.
type policyTables struct {
	authorizations *collect.Table[name, *security.Authorization] // from AuthorizationPolicies
	byLabel        *collect.Index[kube.Anchor, name, *clientsecurity.AuthorizationPolicy]
	peersByLabel   *collect.Index[kube.Anchor, name, *clientsecurity.PeerAuthentication]
	modes          *collect.Table[string, mode]                  // of namespaces, for workloads
	ports          *collect.Table[name, *security.Authorization] // from PeerAuthentications
	static         *collect.Table[only, *security.Authorization]
	conditions     *collect.Table[name, []Condition]
}

func equalAuthorizations(a, b *security.Authorization) bool { return proto.Equal(a, b) }

func newPolicyTables(t *rows, g gatewayTables, s serviceTables) policyTables {
	var p policyTables
	p.authorizations = collect.Derive(t.engine, "authorizations", t.policies, kube.CompareNames, equalAuthorizations,
		func(r *collect.Run, k name, emit func(name, *security.Authorization)) {
			ap, _ := collect.Get(r, t.policies, k)
			if targeted(&ap.Spec) {
				return
			}
			if v := convertPolicy(ap, t.mesh(r).RootNamespace); v.auth != nil {
				emit(k, v.auth)
			}
		})
	sent := collect.Derive(t.engine, "selecting policies", p.authorizations, kube.CompareNames, identical[*clientsecurity.AuthorizationPolicy],
		func(r *collect.Run, k name, emit func(name, *clientsecurity.AuthorizationPolicy)) {
			if ap, ok := collect.Get(r, t.policies, k); ok {
				emit(k, ap)
			}
		})
	p.byLabel = collect.NewIndex(sent, compareAnchors, func(k name, v *clientsecurity.AuthorizationPolicy) []kube.Anchor {
		return anchorOf(k.Namespace, v.Spec.GetSelector().GetMatchLabels())
	})
	p.conditions = policyConditions(t, g, s)
	p.peerTables(t)
	return p
}

func (p *policyTables) peerTables(t *rows) {
	p.peersByLabel = collect.NewIndex(t.peers, compareAnchors, func(k name, v *clientsecurity.PeerAuthentication) []kube.Anchor {
		return anchorOf(k.Namespace, v.Spec.GetSelector().GetMatchLabels())
	})
	wide := func(loose bool) *collect.Index[string, name, *clientsecurity.PeerAuthentication] {
		return collect.NewIndex(t.peers, strings.Compare, func(k name, v *clientsecurity.PeerAuthentication) []string {
			if sel := v.Spec.GetSelector(); sel == nil || loose && len(sel.GetMatchLabels()) == 0 {
				return []string{k.Namespace}
			}
			return nil
		})
	}
	// An empty selector counts as none when workloads choose, but not for the mesh and not when ports are converted.
	loose, tight := wide(true), wide(false)
	p.modes = deriveModes(t, "modes", loose, tight)
	forPorts := deriveModes(t, "modes for ports", tight, tight)
	p.ports = collect.Derive(t.engine, "port policies", t.peers, kube.CompareNames, equalAuthorizations,
		func(r *collect.Run, k name, emit func(name, *security.Authorization)) {
			pa, _ := collect.Get(r, t.peers, k)
			root := t.mesh(r).RootNamespace
			if len(pa.Spec.GetSelector().GetMatchLabels()) == 0 || k.Namespace == root {
				return
			}
			if auth := portPolicy(pa, around(r, forPorts, root, k.Namespace)); auth != nil {
				emit(k, auth)
			}
		})
	any := collect.NewIndex(t.peers, compareOnly, func(name, *clientsecurity.PeerAuthentication) []only { return []only{{}} })
	p.static = collect.Derive(t.engine, "static strict", any, compareOnly, equalAuthorizations,
		func(r *collect.Run, k only, emit func(only, *security.Authorization)) {
			emit(k, staticStrict(t.mesh(r).RootNamespace))
		})
}

// deriveModes finds the mode of each namespace that has a policy of its own: that of the oldest one.
func deriveModes(t *rows, step string, own, mesh *collect.Index[string, name, *clientsecurity.PeerAuthentication]) *collect.Table[string, mode] {
	return collect.Derive(t.engine, step, own, cmp.Compare[string], identical[mode],
		func(r *collect.Run, ns string, emit func(string, mode)) {
			from := own
			if ns == t.mesh(r).RootNamespace {
				from = mesh
			}
			if list := collect.Rows(r, from, ns); len(list) > 0 {
				oldest := slices.MinFunc(list, func(a, b collect.Row[name, *clientsecurity.PeerAuthentication]) int {
					return kube.CompareAge(a.Value, b.Value)
				})
				emit(ns, peerMode(oldest.Value))
			}
		})
}

// around fetches the mode that a workload of ns has when nothing selects it.
func around(r *collect.Run, modes *collect.Table[string, mode], root, ns string) mode {
	mesh, _ := collect.Get(r, modes, root)
	namespace, _ := collect.Get(r, modes, ns)
	return inherited(mesh, namespace)
}

// attached fetches the names of the policies that a workload carries.
func (p policyTables) attached(r *collect.Run, t *rows, ns string, labels map[string]string) []string {
	root := t.mesh(r).RootNamespace
	var out []string
	for _, from := range slices.Compact([]string{ns, root}) {
		for _, a := range kube.LabelAnchors(from, labels) {
			for _, row := range collect.Rows(r, p.byLabel, a) {
				if kube.Selects(row.Value.Spec.GetSelector().GetMatchLabels(), labels) {
					out = append(out, row.Key.String())
				}
			}
		}
	}
	slices.Sort(out)
	return append(out, peerPolicies(p.selecting(r, root, ns, labels), around(r, p.modes, root, ns), root)...)
}

// selecting fetches the oldest PeerAuthentication that selects a workload. In the root namespace none does.
func (p policyTables) selecting(r *collect.Run, root, ns string, labels map[string]string) *clientsecurity.PeerAuthentication {
	if ns == root {
		return nil
	}
	var oldest *clientsecurity.PeerAuthentication
	for _, a := range kube.LabelAnchors(ns, labels) {
		for _, row := range collect.Rows(r, p.peersByLabel, a) {
			if kube.Selects(row.Value.Spec.GetSelector().GetMatchLabels(), labels) &&
				(oldest == nil || kube.CompareAge(row.Value, oldest) < 0) {
				oldest = row.Value
			}
		}
	}
	return oldest
}

func policyConditions(t *rows, g gatewayTables, s serviceTables) *collect.Table[name, []Condition] {
	return collect.Derive(t.engine, "policy conditions", t.policies, kube.CompareNames, equalConditions,
		func(r *collect.Run, k name, emit func(name, []Condition)) {
			ap, _ := collect.Get(r, t.policies, k)
			if !targeted(&ap.Spec) {
				v := convertPolicy(ap, t.mesh(r).RootNamespace)
				emit(k, []Condition{{
					Type: ConditionZtunnelAccepted, True: v.auth != nil, Reason: v.reason, Message: v.message,
					ObservedGeneration: ap.Generation,
				}})
				return
			}
			refs := ap.Spec.GetTargetRefs()
			if one := ap.Spec.GetTargetRef(); one != nil {
				refs = append(slices.Clip(refs), one)
			}
			var targets []target
			for _, ref := range refs {
				targets = append(targets, resolve(r, t, g, s, k.Namespace, ref))
			}
			emit(k, []Condition{targetConditions(targets, ap.Generation)})
		})
}

// resolve fetches what a targetRef of a policy of namespace ns leads to.
func resolve(r *collect.Run, t *rows, g gatewayTables, s serviceTables, ns string, ref *apitype.PolicyTargetReference) target {
	group := ref.GetGroup()
	if group == "" {
		group = "core"
	}
	out := target{name: ref.GetKind() + "." + group + ":" + ns + "/" + ref.GetName()}
	k := name{Namespace: ns, Name: ref.GetName()}
	switch ref.GetKind() {
	case "Gateway":
		_, out.found = collect.Get(r, t.gateways, k)
		out.bound = out.found
	case "GatewayClass":
		out.found, out.bound = ref.GetName() == kube.WaypointClass, ref.GetName() == kube.WaypointClass
		switch {
		case ns != t.mesh(r).RootNamespace:
			out.invalid = "a GatewayClass can be targeted from the root namespace only"
		case !out.found:
			out.invalid = "the class is not one of waypoints; want " + kube.WaypointClass
		}
	case "Service":
		if svc, ok := collect.Get(r, t.services, k); ok {
			out.found, out.bound = true, t.attachKube(r, g, svc).Waypoint != nil
		}
	case "ServiceEntry":
		if e, ok := collect.Get(r, s.entries, k); ok && ref.GetGroup() == manifest.GroupNetworking {
			out.found, out.bound = true, t.attachEntry(r, g, e).Waypoint != nil
		}
	}
	return out
}
