package kube

import (
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// Binding is what labels ask for, before anybody looked whether the waypoints exist.
type Binding struct {
	// Waypoint is asked for if Wanted.
	Waypoint types.NamespacedName
	Wanted   bool
	// Inherited says that the namespace asked, not the object.
	Inherited bool
	// Canary is asked for if CanaryWanted, which needs Wanted.
	Canary       types.NamespacedName
	CanaryWanted bool
}

// BindingOf reads the waypoint labels of an object of namespace ns and of that Namespace. The object's own label ends
// the search, also when it says none; the namespace that a label names, or ns, goes with the level of the label. The
// canary of the namespace counts only for objects that take the namespace's waypoint.
func BindingOf(labels, nsLabels map[string]string, ns string) Binding {
	var b Binding
	source := labels
	name, ok := labels[LabelUseWaypoint]
	if !ok {
		source, b.Inherited = nsLabels, true
		name, ok = nsLabels[LabelUseWaypoint]
	}
	if !ok || name == "none" {
		return Binding{}
	}
	b.Wanted = true
	b.Waypoint = types.NamespacedName{Namespace: ns, Name: name}
	if other, ok := source[LabelUseWaypointNamespace]; ok {
		b.Waypoint.Namespace = other
	}
	canarySource := labels
	canary := labels[LabelUseWaypointCanary]
	if canary == "" && b.Inherited {
		canarySource = nsLabels
		if _, own := labels[LabelUseWaypointCanary]; !own {
			canary = nsLabels[LabelUseWaypointCanary]
		}
	}
	if canary == "" || canary == "none" {
		return b
	}
	b.CanaryWanted = true
	b.Canary = types.NamespacedName{Namespace: ns, Name: canary}
	if other, ok := canarySource[LabelUseWaypointCanaryNamespace]; ok {
		b.Canary.Namespace = other
	}
	return b
}

// CanaryWeight reads the share of the canary, 0 to 100, from the object's annotations, else from its namespace's.
func CanaryWeight(annotations, nsAnnotations map[string]string) (weight uint32, text string, ok bool) {
	text, there := annotations[AnnotationCanaryWeight]
	if !there {
		text, there = nsAnnotations[AnnotationCanaryWeight]
	}
	if !there {
		return 0, "", true
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n > 100 {
		return 0, text, false
	}
	return uint32(n), text, true
}

// IngressUsesWaypoint reads whether ingress gateways go through the waypoint. The object's label wins even when it is no
// boolean, which counts as false; present says that one of the labels is there.
func IngressUsesWaypoint(labels, nsLabels map[string]string) (use, present bool) {
	text, ok := labels[LabelIngressUseWaypoint]
	if !ok {
		if text, ok = nsLabels[LabelIngressUseWaypoint]; !ok {
			return false, false
		}
	}
	use, err := strconv.ParseBool(text)
	return use && err == nil, true
}

// InboundBinding is how a gateway's pods want to be reached behind their node proxy.
type InboundBinding struct {
	Proxy bool // with a PROXY protocol header
	Port  uint16
}

// InboundBindingOf parses "PROXY", "PROXY/<port>", "NONE" or "NONE/<port>".
func InboundBindingOf(text string) (InboundBinding, bool) {
	name, port, hasPort := strings.Cut(text, "/")
	var b InboundBinding
	switch name {
	case "PROXY":
		b.Proxy = true
	case "NONE":
	default:
		return InboundBinding{}, false
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return InboundBinding{}, false
		}
		b.Port = uint16(n)
	}
	return b, true
}
