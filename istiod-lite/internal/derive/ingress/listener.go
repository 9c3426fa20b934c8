package ingress

import (
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// listener is one listener of a Gateway while its plan is made.
type listener struct {
	Listener
	spec  *gatewayv1.Listener
	host  string
	tls   *waypoint.EdgeTLS
	works bool // it is served
	// hosts are those of an HTTP listener with what is bound to them; opaque those of another.
	hosts  map[string]*waypoint.EdgeHost
	opaque []opaque
}

// opaque is a route of a listener whose bytes are not read.
type opaque struct {
	names    []string
	backends []waypoint.EdgeBackend
}

func (l *listener) passthrough() bool {
	return l.spec.Protocol == gatewayv1.TLSProtocolType && l.spec.TLS != nil && l.spec.TLS.Mode != nil && *l.spec.TLS.Mode == gatewayv1.TLSModePassthrough
}

func (l *listener) isHTTP() bool {
	return l.spec.Protocol == gatewayv1.HTTPProtocolType || l.spec.Protocol == gatewayv1.HTTPSProtocolType
}

// judgeListeners decides which of a Gateway's listeners are served, before anything is bound to them.
func (d *derivation) judgeListeners(g *gateway) {
	if g.object == nil {
		return
	}
	for i := range g.object.Spec.Listeners {
		spec := &g.object.Spec.Listeners[i]
		l := &listener{spec: spec, hosts: map[string]*waypoint.EdgeHost{}, host: anyHost}
		if spec.Hostname != nil {
			l.host = host(string(*spec.Hostname))
		}
		l.Name, l.Port = spec.Name, spec.Port
		l.Accepted, l.Resolved = good(string(gatewayv1.ListenerReasonAccepted)), good(string(gatewayv1.ListenerReasonResolvedRefs))
		l.Conflicted = Verdict{Reason: string(gatewayv1.ListenerReasonNoConflicts), Message: "No errors found"}
		l.works = true
		d.judgeKinds(l)
		if l.works {
			d.judgeTLS(g, l)
		}
		d.judgeConflict(g, l)
		g.listeners = append(g.listeners, l)
	}
}

// kindsOf are the kinds of routes that a protocol can serve.
func (l *listener) kindsOf() []string {
	switch l.spec.Protocol {
	case gatewayv1.HTTPProtocolType, gatewayv1.HTTPSProtocolType:
		return []string{"HTTPRoute", "GRPCRoute"}
	case gatewayv1.TCPProtocolType:
		return []string{"TCPRoute"}
	case gatewayv1.TLSProtocolType:
		if l.passthrough() {
			return []string{"TLSRoute"}
		}
		return []string{"TLSRoute", "TCPRoute"}
	case gatewayv1.UDPProtocolType:
	}
	return nil
}

func (d *derivation) judgeKinds(l *listener) {
	supported := l.kindsOf()
	l.Kinds = []gatewayv1.RouteGroupKind{}
	if supported == nil {
		l.works = false
		text := fmt.Sprintf("protocol %s is not supported by a gateway; use HTTP, HTTPS, TLS or TCP", l.spec.Protocol)
		if upper := strings.ToUpper(string(l.spec.Protocol)); upper != string(l.spec.Protocol) {
			text += "; names of protocols are in capitals"
		}
		l.Accepted = Verdict{Reason: string(gatewayv1.ListenerReasonUnsupportedProtocol), Message: text}
		return
	}
	group := gatewayv1.Group(gatewayv1.GroupName)
	add := func(kind string) {
		l.Kinds = append(l.Kinds, gatewayv1.RouteGroupKind{Group: &group, Kind: gatewayv1.Kind(kind)})
	}
	if l.spec.AllowedRoutes == nil || len(l.spec.AllowedRoutes.Kinds) == 0 {
		for _, k := range supported {
			add(k)
		}
		return
	}
	for _, k := range l.spec.AllowedRoutes.Kinds {
		if (k.Group == nil || string(*k.Group) == gatewayv1.GroupName) && slices.Contains(supported, string(k.Kind)) {
			add(string(k.Kind))
			continue
		}
		l.Resolved = Verdict{Reason: string(gatewayv1.ListenerReasonInvalidRouteKinds), Message: fmt.Sprintf(
			"allowedRoutes.kinds: %s cannot be served by protocol %s; want %s", k.Kind, l.spec.Protocol, strings.Join(supported, ", "))}
	}
}

// judgeConflict compares with the listeners before: of two that claim the same the first one stands.
func (d *derivation) judgeConflict(g *gateway, l *listener) {
	if !l.Accepted.OK {
		return
	}
	for _, o := range g.listeners {
		if !o.Accepted.OK || o.spec.Port != l.spec.Port {
			continue
		}
		reason := ""
		tcp := l.spec.Protocol == gatewayv1.TCPProtocolType || o.spec.Protocol == gatewayv1.TCPProtocolType
		switch {
		case tcp:
			reason = string(gatewayv1.ListenerReasonProtocolConflict)
		case l.host != o.host:
			continue
		case l.spec.Protocol == o.spec.Protocol:
			reason = string(gatewayv1.ListenerReasonHostnameConflict)
		default:
			reason = string(gatewayv1.ListenerReasonProtocolConflict)
		}
		text := fmt.Sprintf("listener %s has port %d and hostname %s already", o.Name, o.spec.Port, o.host)
		l.works = false
		l.Accepted = Verdict{Reason: reason, Message: text}
		l.Conflicted = Verdict{OK: true, Reason: reason, Message: text}
		return
	}
}

func (d *derivation) judgeTLS(g *gateway, l *listener) {
	switch l.spec.Protocol {
	case gatewayv1.HTTPSProtocolType, gatewayv1.TLSProtocolType:
	default:
		return
	}
	if l.passthrough() {
		return
	}
	t := l.spec.TLS
	if t == nil || len(t.CertificateRefs) == 0 {
		l.works = false
		l.Resolved = Verdict{Reason: string(gatewayv1.ListenerReasonInvalidCertificateRef), Message: "tls.certificateRefs is empty; name a Secret"}
		return
	}
	if l.spec.Protocol == gatewayv1.HTTPSProtocolType && t.Mode != nil && *t.Mode == gatewayv1.TLSModePassthrough {
		l.works = false
		l.Accepted = Verdict{Reason: string(gatewayv1.ListenerReasonUnsupportedProtocol), Message: "tls.mode Passthrough needs protocol TLS"}
		return
	}
	out := &waypoint.EdgeTLS{HTTP: l.isHTTP()}
	const most = 2
	for i, ref := range t.CertificateRefs {
		name, v := d.certificate(g, ref)
		if v.OK && i >= most {
			v = Verdict{Reason: string(gatewayv1.ListenerReasonInvalidCertificateRef), Message: "more than two certificates are not supported"}
		}
		if !v.OK {
			l.works, l.Resolved = false, v
			return
		}
		out.Certificates = append(out.Certificates, name)
	}
	if v := d.options(g, l, out); !v.OK {
		l.works, l.Accepted = false, v
		return
	}
	if v := d.frontend(g, l, out); !v.OK {
		l.works, l.Resolved = false, v
		l.Accepted = Verdict{Reason: "NoValidCACertificate", Message: v.Message}
		return
	}
	l.tls = out
}

const (
	terminateMode = "gateway.istio.io/tls-terminate-mode"
	cipherSuites  = "gateway.istio.io/tls-cipher-suites"
)

// options reads Istio's own settings of a listener's TLS. The older form of client verification takes its roots from the
// first certificate's Secret, or one beside it.
func (d *derivation) options(g *gateway, l *listener, out *waypoint.EdgeTLS) Verdict {
	for k, v := range l.spec.TLS.Options {
		value := string(v)
		switch string(k) {
		case cipherSuites:
			for c := range strings.SplitSeq(value, ",") {
				out.Ciphers = append(out.Ciphers, strings.TrimSpace(c))
			}
		case terminateMode:
			switch value {
			case "SIMPLE", "ISTIO_SIMPLE":
				continue
			case "MUTUAL", "OPTIONAL_MUTUAL":
				ref := l.spec.TLS.CertificateRefs[0]
				namespace := g.key.Namespace
				if ref.Namespace != nil {
					namespace = string(*ref.Namespace)
				}
				roots, problem := d.clientRoots(g, namespace, string(ref.Name), "")
				if problem != "" {
					return Verdict{Reason: "NoValidCACertificate", Message: problem}
				}
				out.Client = &waypoint.EdgeClient{Roots: roots, Optional: value == "OPTIONAL_MUTUAL"}
				continue
			}
			return Verdict{Reason: string(gatewayv1.ListenerReasonInvalid), Message: fmt.Sprintf("tls.options[%s]: %q is not supported; use MUTUAL or OPTIONAL_MUTUAL", k, value)}
		}
	}
	return good(string(gatewayv1.ListenerReasonAccepted))
}

// frontend reads what the Gateway asks of the clients of a port.
func (d *derivation) frontend(g *gateway, l *listener, out *waypoint.EdgeTLS) Verdict {
	ok := good(string(gatewayv1.ListenerReasonResolvedRefs))
	if g.object.Spec.TLS == nil || g.object.Spec.TLS.Frontend == nil {
		return ok
	}
	f := g.object.Spec.TLS.Frontend
	v := f.Default.Validation
	for _, p := range f.PerPort {
		if p.Port == l.spec.Port {
			v = p.TLS.Validation
		}
	}
	if v == nil {
		return ok
	}
	if len(v.CACertificateRefs) == 0 {
		return Verdict{Reason: "InvalidCACertificateRef", Message: "spec.tls.frontend: caCertificateRefs is empty"}
	}
	ref := v.CACertificateRefs[0]
	namespace := g.key.Namespace
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	if string(ref.Kind) != "ConfigMap" && string(ref.Kind) != "Secret" || ref.Group != "" && ref.Group != "core" {
		return Verdict{Reason: "InvalidCACertificateKind", Message: fmt.Sprintf("spec.tls.frontend: %s is no ConfigMap or Secret", ref.Kind)}
	}
	if namespace != g.key.Namespace && !d.permitted("Gateway", g.key.Namespace, string(ref.Kind), namespace, string(ref.Name)) {
		return Verdict{Reason: string(gatewayv1.ListenerReasonRefNotPermitted), Message: fmt.Sprintf(
			"spec.tls.frontend: no ReferenceGrant of namespace %s permits %s %s", namespace, ref.Kind, ref.Name)}
	}
	name, problem := d.roots(g, string(ref.Kind), namespace, string(ref.Name))
	if problem != "" {
		return Verdict{Reason: "InvalidCACertificateRef", Message: "spec.tls.frontend: " + problem}
	}
	out.Client = &waypoint.EdgeClient{Roots: name}
	if v.Mode == gatewayv1.AllowInsecureFallback {
		out.Client.Optional, out.Client.Insecure = true, true
		d.out.Insecure[g.key] = true
	}
	return ok
}
