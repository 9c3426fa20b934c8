package waypoint

import (
	"cmp"
	"slices"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// ranked is a route with what decides its place among the routes of other objects.
type ranked struct {
	route      *routev3.Route
	owner      metav1.Object
	index      int // position in the owner
	pathKind   int // 3 exact, 2 prefix, 1 expression, 0 none
	pathLength int
	method     bool
	headers    int
	queries    int
}

// precedence orders routes of all objects: the more exact first, then the older object, then as written.
func precedence(a, b ranked) int {
	return cmp.Or(
		cmp.Compare(b.pathKind, a.pathKind),
		cmp.Compare(b.pathLength, a.pathLength),
		compareBool(b.method, a.method),
		cmp.Compare(b.headers, a.headers),
		cmp.Compare(b.queries, a.queries),
		compareAge(a.owner, b.owner),
		cmp.Compare(a.index, b.index),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// gatewayRoutes are the routes that HTTPRoutes and GRPCRoutes give to a service port.
func (d *derivation) gatewayRoutes(s *Service, p Port) []*routev3.Route {
	var all []ranked
	for _, r := range d.in.HTTPRoutes {
		if d.attached(r.Spec.ParentRefs, r.Namespace, s, p) {
			all = append(all, d.markRoutes(r, d.httpRoute(r, p))...)
		}
	}
	for _, r := range d.in.GRPCRoutes {
		if d.attached(r.Spec.ParentRefs, r.Namespace, s, p) {
			all = append(all, d.grpcRoute(r, p)...)
		}
	}
	slices.SortStableFunc(all, precedence)
	out := make([]*routev3.Route, 0, len(all))
	for _, r := range all {
		out = append(out, r.route)
	}
	return out
}

// attached says whether a route of the given namespace speaks about the service port. Only routes of the service's
// owner and of the waypoint's count: a client cannot reroute others.
func (d *derivation) attached(refs []gatewayv1.ParentReference, namespace string, s *Service, p Port) bool {
	if namespace != s.Namespace && namespace != d.in.Gateway.Namespace {
		return false
	}
	return slices.ContainsFunc(refs, func(ref gatewayv1.ParentReference) bool {
		return refersTo(ref, namespace, s) && refPort(ref, p)
	})
}

func refPort(ref gatewayv1.ParentReference, p Port) bool {
	if ref.Port != nil && uint32(*ref.Port) != p.Number {
		return false
	}
	return ref.SectionName == nil || string(*ref.SectionName) == p.Name
}

func refersTo(ref gatewayv1.ParentReference, namespace string, s *Service) bool {
	group, kind := parentKind(ref)
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	return kind == s.Kind && group == serviceGroup(s.Kind) && namespace == s.Namespace && string(ref.Name) == s.Name
}

func parentKind(ref gatewayv1.ParentReference) (group, kind string) {
	group, kind = gatewayv1.GroupName, "Gateway"
	if ref.Group != nil {
		group = string(*ref.Group)
	}
	if ref.Kind != nil {
		kind = string(*ref.Kind)
	}
	if group == "core" {
		group = ""
	}
	return group, kind
}

func serviceGroup(kind string) string {
	if kind == "ServiceEntry" {
		return "networking.istio.io"
	}
	return ""
}

// backendHost is the hostname that a backend reference means, or a reason why it means none.
func (d *derivation) backendHost(ref gatewayv1.BackendObjectReference, namespace string) (host string, port uint32, reason, message string) {
	group, kind := "", "Service"
	if ref.Group != nil && *ref.Group != "core" {
		group = string(*ref.Group)
	}
	if ref.Kind != nil {
		kind = string(*ref.Kind)
	}
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	if ref.Port != nil {
		port = uint32(*ref.Port)
	}
	name := string(ref.Name)
	switch {
	case group == "" && kind == "Service" && port == 0:
		return "", 0, string(gatewayv1.RouteReasonUnsupportedValue), "backend Service " + namespace + "/" + name + " needs a port"
	case group == "" && kind == "Service":
		host = name + "." + namespace + ".svc." + d.in.Mesh.ClusterDomain
	case group == "networking.istio.io" && kind == "Hostname":
		host = name
	default:
		return "", 0, string(gatewayv1.RouteReasonInvalidKind),
			"a backend of kind " + kind + " (group " + quoted(group) + ") is not supported; use a Service"
	}
	if s := d.services[host]; s == nil {
		return "", 0, string(gatewayv1.RouteReasonBackendNotFound), "backend " + host + " does not exist"
	} else if _, ok := s.port(port); !ok && port != 0 {
		return "", 0, string(gatewayv1.RouteReasonBackendNotFound), "backend " + host + " has no port " + decimal(port)
	}
	return host, port, "", ""
}

// gatewayBackend resolves one weighted reference; a broken one keeps its share of the
// traffic and answers 500. http tells requests from bytes.
func (d *derivation) gatewayBackend(owner routeOwner, ref gatewayv1.BackendRef, requestPort uint32, http bool) backend {
	host, port, reason, message := d.permittedHost(owner, ref.BackendObjectReference)
	b := backend{cluster: UnknownService}
	if reason == "" {
		b = d.backendFor(host, "", port, requestPort, http)
	} else {
		d.report(owner.kind, owner.namespace, owner.name, reason, message)
	}
	b.weight = 1
	if ref.Weight != nil {
		b.weight = uint32(max(*ref.Weight, 0))
	}
	return b
}

type routeOwner struct{ kind, namespace, name string }

func ownerOf(kind string, o metav1.Object) routeOwner {
	return routeOwner{kind: kind, namespace: o.GetNamespace(), name: o.GetName()}
}

func (d *derivation) reportRoute(o routeOwner, reason gatewayv1.RouteConditionReason, message string) {
	d.report(o.kind, o.namespace, o.name, string(reason), message)
}

// positive drops backends that get nothing.
func positive(backends []backend) []backend {
	return slices.DeleteFunc(backends, func(b backend) bool { return b.weight == 0 })
}

// send finishes a route that forwards: with nobody to send to it answers 500, as the Gateway API wants.
func (f forward) send(r *routev3.Route) {
	f.backends = positive(f.backends)
	f.missing = routev3.RouteAction_INTERNAL_SERVER_ERROR
	if len(f.backends) == 0 {
		respond(r, 500, "")
		return
	}
	f.onRoute(r)
}

// consistentHash applies a route's only destination's hashing.
func (d *derivation) consistentHash(r *routev3.Route, backends []backend) {
	a := r.GetRoute()
	if a == nil || len(backends) == 0 || backends[0].service == nil {
		return
	}
	b := backends[0]
	a.HashPolicy = hashPolicy(d.rules.forService(b.service).policy(b.port.Number, b.subset).GetLoadBalancer())
	if len(a.GetHashPolicy()) > 0 && a.GetRetryPolicy() != nil {
		// Trying elsewhere would break the affinity that somebody asked for.
		a.RetryPolicy.RetryHostPredicate, a.RetryPolicy.HostSelectionRetryMaxAttempts = nil, 0
	}
}

// gatewayDuration reads a Gateway API duration ("10s", "1h30m"); the API server has checked its form.
func gatewayDuration(v *gatewayv1.Duration) time.Duration {
	if v == nil {
		return 0
	}
	t, err := time.ParseDuration(string(*v))
	if err != nil || t < 0 {
		return 0
	}
	return t
}

func routeName(rule *gatewayv1.SectionName, o metav1.Object, index int) string {
	if rule != nil && *rule != "" {
		return string(*rule)
	}
	return strings.Join([]string{o.GetNamespace(), o.GetName(), decimal(uint32(index))}, ".")
}
