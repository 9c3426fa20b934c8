package ambient

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// Protocols of Gateway listeners beside those of the Gateway API.
const (
	protocolHBONE = "HBONE"
	protocolPROXY = "istio.io/PROXY"
)

// traffic is the kind of address that is bound to a waypoint.
type traffic string

const (
	serviceTraffic  traffic = "service"
	workloadTraffic traffic = "workload"
	allTraffic      traffic = "all"
)

// Waypoint is a Gateway that has an address, so that others may be bound to it.
type Waypoint struct {
	Name    types.NamespacedName
	Address *workload.GatewayAddress // nil: none of its addresses can be used
	traffic traffic
	binding *kube.InboundBinding
	admits  admission
}

// admission says which namespaces may bind.
type admission struct {
	from     gatewayv1.FromNamespaces
	selector labels.Selector // for Selector
}

func (a admission) allows(own, ns string, nsLabels map[string]string) bool {
	switch a.from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSelector:
		return a.selector != nil && a.selector.Matches(labels.Set(nsLabels))
	case gatewayv1.NamespacesFromSame:
		return own == ns
	case gatewayv1.NamespacesFromNone:
	}
	return false
}

func (a admission) String() string {
	if a.selector == nil {
		return string(a.from)
	}
	return string(a.from) + " " + a.selector.String()
}

func (w *Waypoint) serves(t traffic) bool { return w.traffic == allTraffic || w.traffic == t }

// newWaypoint reads a Gateway; classLabels and classAnnotations are those of its class. It returns nil while the Gateway
// has no address.
func newWaypoint(g *gatewayv1.Gateway, class *gatewayv1.GatewayClass, network string) *Waypoint {
	if len(g.Status.Addresses) == 0 {
		return nil
	}
	var classLabels, classAnnotations map[string]string
	if class != nil {
		classLabels, classAnnotations = class.Labels, class.Annotations
	}
	w := &Waypoint{Name: kube.NameOf(g), Address: gatewayAddress(g, network), traffic: serviceTraffic}
	if t := first(g.Labels[kube.LabelWaypointFor], classLabels[kube.LabelWaypointFor]); t != "" {
		w.traffic = traffic(t)
	}
	if text := first(g.Annotations[kube.AnnotationInboundBinding], classAnnotations[kube.AnnotationInboundBinding]); text != "" {
		if b, ok := kube.InboundBindingOf(text); ok {
			w.binding = &b
		}
	}
	w.admits = admissionOf(bindingListener(g, w.binding))
	return w
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// gatewayAddress picks the first name, else the first IP address that can be parsed.
func gatewayAddress(g *gatewayv1.Gateway, network string) *workload.GatewayAddress {
	out := &workload.GatewayAddress{HboneMtlsPort: kube.HBONEPort}
	for _, a := range g.Status.Addresses {
		if a.Type != nil && *a.Type == gatewayv1.HostnameAddressType {
			out.Destination = &workload.GatewayAddress_Hostname{
				Hostname: &workload.NamespacedHostname{Namespace: g.Namespace, Hostname: a.Value},
			}
			return out
		}
	}
	for _, a := range g.Status.Addresses {
		if a.Type != nil && *a.Type != gatewayv1.IPAddressType {
			continue
		}
		if ip, err := netip.ParseAddr(a.Value); err == nil {
			out.Destination = &workload.GatewayAddress_Address{
				Address: &workload.NetworkAddress{Network: network, Address: ip.AsSlice()},
			}
			return out
		}
	}
	return nil
}

// bindingListener finds the listener whose allowedRoutes say who may bind: that of the inbound binding, else HBONE on its
// usual port.
func bindingListener(g *gatewayv1.Gateway, b *kube.InboundBinding) *gatewayv1.Listener {
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		if b == nil {
			break
		}
		if b.Port != 0 && int(l.Port) == int(b.Port) || b.Port == 0 && b.Proxy && l.Protocol == protocolPROXY {
			return l
		}
	}
	for i := range g.Spec.Listeners {
		if l := &g.Spec.Listeners[i]; l.Protocol == protocolHBONE && l.Port == kube.HBONEPort {
			return l
		}
	}
	return nil
}

func admissionOf(l *gatewayv1.Listener) admission {
	same := admission{from: gatewayv1.NamespacesFromSame}
	if l == nil || l.AllowedRoutes == nil || l.AllowedRoutes.Namespaces == nil || l.AllowedRoutes.Namespaces.From == nil {
		return same
	}
	a := admission{from: *l.AllowedRoutes.Namespaces.From}
	if a.from == gatewayv1.NamespacesFromSelector {
		sel, err := metav1.LabelSelectorAsSelector(l.AllowedRoutes.Namespaces.Selector)
		if err == nil {
			a.selector = sel // else nobody matches
		}
	}
	return a
}

// Reasons of the condition WaypointBound.
const (
	ReasonWaypointAccepted       = "WaypointAccepted"
	ReasonWaypointNotReady       = "WaypointIsNotReady"
	ReasonAttachmentDenied       = "AttachmentDenied"
	ReasonUnsupportedTrafficType = "UnsupportedTrafficType"
	ReasonCrossNamespace         = "CrossNamespaceWaypointForbidden"
)

// refusal says why an object is not bound to the waypoint that it names.
type refusal struct{ reason, message string }

// subject is an object that may name a waypoint.
type subject struct {
	namespace string
	nsLabels  map[string]string
	traffic   traffic
	// confined forbids waypoints of other namespaces.
	confined bool
}

// admit decides whether the subject may be bound to w, the waypoint called name (nil: there is none).
func admit(s subject, name types.NamespacedName, w *Waypoint) *refusal {
	switch {
	case w == nil:
		return &refusal{ReasonWaypointNotReady, "waypoint " + name.String() + " does not exist or has no address yet"}
	case s.confined && name.Namespace != s.namespace:
		return &refusal{ReasonCrossNamespace, "visibility is limited to namespace " + s.namespace +
			", so waypoint " + name.String() + " of another namespace cannot be used"}
	case !w.admits.allows(w.Name.Namespace, s.namespace, s.nsLabels):
		return &refusal{ReasonAttachmentDenied, "waypoint " + name.String() + " does not allow namespace " + s.namespace}
	case !w.serves(s.traffic):
		return &refusal{ReasonUnsupportedTrafficType, "waypoint " + name.String() + " is for " + string(w.traffic) +
			" traffic, not for " + string(s.traffic) + " traffic"}
	}
	return nil
}

// Attachment is the outcome of the waypoint labels of a service.
type Attachment struct {
	Waypoint *Waypoint // nil: none
	Canary   *Waypoint // nil: none; needs Waypoint
	Weight   uint32    // of the canary, in percent
	refused  *refusal  // a waypoint is named, but not bound
	noCanary string    // a canary is named, but not bound: why
}

// attach binds a service. primary and canary are the waypoints of the binding's names, nil if they do not exist.
func attach(s subject, b kube.Binding, primary, canary *Waypoint, annotations, nsAnnotations map[string]string) Attachment {
	if !b.Wanted {
		return Attachment{}
	}
	if r := admit(s, b.Waypoint, primary); r != nil {
		return Attachment{refused: r}
	}
	out := Attachment{Waypoint: primary}
	if !b.CanaryWanted {
		return out
	}
	weight, text, ok := kube.CanaryWeight(annotations, nsAnnotations)
	switch {
	case b.Canary == b.Waypoint:
		out.noCanary = "it is the primary waypoint too"
	case !ok:
		out.noCanary = "weight \"" + text + "\" is no integer from 0 to 100"
	default:
		if r := admit(s, b.Canary, canary); r != nil {
			out.noCanary = r.message
			break
		}
		out.Canary, out.Weight = canary, weight
	}
	return out
}

// fill writes the attachment into a service.
func (a Attachment) fill(s *workload.Service) {
	if a.Waypoint == nil {
		return
	}
	s.Waypoint = a.Waypoint.Address
	if a.Canary == nil || a.Waypoint.Address == nil || a.Canary.Address == nil {
		return
	}
	s.WeightedWaypoints = []*workload.WeightedWaypoint{
		{Destination: a.Waypoint.Address, Weight: 100 - a.Weight},
		{Destination: a.Canary.Address, Weight: a.Weight},
	}
}

// ownWaypoint says that a Service is the front of a waypoint or east-west gateway, which never has one itself.
func ownWaypoint(labels map[string]string) bool {
	managed := labels[kube.LabelManaged]
	return strings.HasSuffix(managed, "mesh-controller") || strings.HasSuffix(managed, "eastwest-controller") ||
		strings.HasSuffix(managed, "waypoint-controller")
}
