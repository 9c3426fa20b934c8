package ingress

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// route is a route of any kind, as far as binding goes.
type route struct {
	kind   string
	object manifest.Object
	refs   []gatewayv1.ParentReference
	hosts  []gatewayv1.Hostname
	// bind attaches the route to a listener for some of its hosts.
	bind func(l *listener, hosts []string)
}

func (d *derivation) bindRoutes() {
	for _, r := range d.in.HTTPRoutes {
		d.bind(route{"HTTPRoute", r, r.Spec.ParentRefs, r.Spec.Hostnames, func(l *listener, hosts []string) {
			for _, h := range hosts {
				e := l.edgeHost(h)
				e.HTTPRoutes = append(e.HTTPRoutes, r)
			}
		}})
	}
	for _, r := range d.in.GRPCRoutes {
		d.bind(route{"GRPCRoute", r, r.Spec.ParentRefs, r.Spec.Hostnames, func(l *listener, hosts []string) {
			for _, h := range hosts {
				e := l.edgeHost(h)
				e.GRPCRoutes = append(e.GRPCRoutes, r)
			}
		}})
	}
	for _, r := range d.in.TLSRoutes {
		d.bind(route{"TLSRoute", r, r.Spec.ParentRefs, r.Spec.Hostnames, func(l *listener, hosts []string) {
			var refs []gatewayv1.BackendRef
			for _, rule := range r.Spec.Rules[:min(1, len(r.Spec.Rules))] {
				refs = rule.BackendRefs
			}
			l.opaque = append(l.opaque, opaque{names: hosts, backends: d.backends("TLSRoute", r, refs)})
		}})
	}
	for _, r := range d.in.TCPRoutes {
		d.bind(route{"TCPRoute", r, r.Spec.ParentRefs, nil, func(l *listener, hosts []string) {
			var refs []gatewayv1.BackendRef
			for _, rule := range r.Spec.Rules[:min(1, len(r.Spec.Rules))] {
				refs = rule.BackendRefs
			}
			l.opaque = append(l.opaque, opaque{names: hosts, backends: d.backends("TCPRoute", r, refs)})
		}})
	}
}

func (l *listener) edgeHost(domain string) *waypoint.EdgeHost {
	if l.hosts[domain] == nil {
		l.hosts[domain] = &waypoint.EdgeHost{Domain: domain}
	}
	return l.hosts[domain]
}

// backends are where a route of bytes leads. One that cannot be reached keeps its share, which is then refused.
func (d *derivation) backends(kind string, o metav1.Object, refs []gatewayv1.BackendRef) []waypoint.EdgeBackend {
	var out []waypoint.EdgeBackend
	for _, ref := range refs {
		b := waypoint.EdgeBackend{Weight: 1}
		if ref.Weight != nil {
			b.Weight = uint32(max(*ref.Weight, 0))
		}
		namespace := o.GetNamespace()
		if ref.Namespace != nil {
			namespace = string(*ref.Namespace)
		}
		service := (ref.Group == nil || *ref.Group == "" || *ref.Group == "core") && (ref.Kind == nil || *ref.Kind == "Service")
		if service && ref.Port != nil && (namespace == o.GetNamespace() ||
			d.permitted(kind, o.GetNamespace(), "Service", namespace, string(ref.Name))) {
			b.Host, b.Port = string(ref.Name)+"."+namespace+".svc."+d.in.ClusterDomain, uint32(*ref.Port)
		}
		out = append(out, b)
	}
	return out
}

// bind attaches a route to every listener of its parents that takes it, and notes for each parent whether one did.
func (d *derivation) bind(r route) {
	key := manifest.KeyOf(r.object)
	for _, ref := range r.refs {
		if ref.Group != nil && *ref.Group != gatewayv1.GroupName || ref.Kind != nil && *ref.Kind != "Gateway" {
			continue
		}
		at := types.NamespacedName{Namespace: r.object.GetNamespace(), Name: string(ref.Name)}
		if ref.Namespace != nil {
			at.Namespace = string(*ref.Namespace)
		}
		g := d.gateways[at]
		if g == nil || g.object == nil {
			continue // somebody else's, or nobody's
		}
		d.out.Parents[key] = append(d.out.Parents[key], Parent{Ref: ref, Accepted: d.bindTo(r, ref, g)})
	}
}

// bindTo says whether a parent takes the route; the reason is that of the listener that came nearest to it.
func (d *derivation) bindTo(r route, ref gatewayv1.ParentReference, g *gateway) Verdict {
	refusal := Verdict{Reason: string(gatewayv1.RouteReasonNoMatchingParent), Message: fmt.Sprintf("Gateway %s has no such listener", g.key)}
	nearest, taken := 0, 0
	deny := func(step int, reason gatewayv1.RouteConditionReason, format string, args ...any) {
		if step > nearest {
			nearest, refusal = step, Verdict{Reason: string(reason), Message: fmt.Sprintf(format, args...)}
		}
	}
	const (
		byHost = iota + 1
		byNamespace
		byKind
	)
	for _, l := range g.listeners {
		if ref.Port != nil && *ref.Port != l.spec.Port || ref.SectionName != nil && *ref.SectionName != l.Name {
			continue
		}
		hosts := d.commonHosts(g, l, r)
		switch {
		case len(hosts) == 0:
			deny(byHost, gatewayv1.RouteReasonNoMatchingListenerHostname, "no hostname of the route fits listener %s (%s)", l.Name, l.host)
		case !d.allowsNamespace(g, l, r.object.GetNamespace()):
			deny(byNamespace, gatewayv1.RouteReasonNotAllowedByListeners, "listener %s does not allow routes of namespace %s", l.Name, r.object.GetNamespace())
		case !slices.ContainsFunc(l.Kinds, func(k gatewayv1.RouteGroupKind) bool { return string(k.Kind) == r.kind }):
			deny(byKind, gatewayv1.RouteReasonNotAllowedByListeners, "listener %s does not allow routes of kind %s", l.Name, r.kind)
		default:
			taken++
			l.Attached++
			if l.works {
				r.bind(l, hosts)
			}
		}
	}
	if taken > 0 {
		return Verdict{OK: true, Reason: string(gatewayv1.RouteReasonAccepted), Message: "Route was valid"}
	}
	return refusal
}

// commonHosts are what the listener serves of the route's hosts. A host that another listener of the same port and protocol
// serves more exactly is that one's alone.
func (d *derivation) commonHosts(g *gateway, l *listener, r route) []string {
	if l.spec.Protocol == gatewayv1.TCPProtocolType || r.kind == "TCPRoute" {
		return []string{l.host}
	}
	wanted := make([]string, 0, len(r.hosts))
	for _, h := range r.hosts {
		wanted = append(wanted, host(string(h)))
	}
	if len(wanted) == 0 {
		wanted = []string{anyHost}
	}
	var out []string
	for _, w := range wanted {
		h, ok := intersect(l.host, w)
		if !ok || slices.Contains(out, h) {
			continue
		}
		isolated := slices.ContainsFunc(g.listeners, func(o *listener) bool {
			return o != l && o.works && o.spec.Port == l.spec.Port && o.spec.Protocol == l.spec.Protocol && moreSpecific(o.host, l.host) && covers(o.host, h)
		})
		if !isolated {
			out = append(out, h)
		}
	}
	return out
}

func (d *derivation) allowsNamespace(g *gateway, l *listener, namespace string) bool {
	from, selector := gatewayv1.NamespacesFromSame, (*metav1.LabelSelector)(nil)
	if a := l.spec.AllowedRoutes; a != nil && a.Namespaces != nil {
		if a.Namespaces.From != nil {
			from = *a.Namespaces.From
		}
		selector = a.Namespaces.Selector
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return namespace == g.key.Namespace
	case gatewayv1.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(selector)
		return err == nil && s.Matches(d.labelsOf(namespace))
	case gatewayv1.NamespacesFromNone:
	}
	return false
}

func (d *derivation) labelsOf(namespace string) labels.Set {
	out := labels.Set{}
	if n := d.namespaces[namespace]; n != nil {
		maps.Copy(out, n.Labels)
	}
	out[corev1.LabelMetadataName] = namespace
	return out
}
