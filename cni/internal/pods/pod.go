package pods

import (
	"net/netip"
	"slices"
)

// The words between the mesh and pods.
const (
	AnnotationRedirection = "ambient.istio.io/redirection"
	LabelMode             = "istio.io/dataplane-mode"
	StateEnabled          = "enabled"
	StatePending          = "pending"
	annotationSidecar     = "sidecar.istio.io/status"
	modeAmbient           = "ambient"
	modeNone              = "none"
)

// Pod is what this room needs to know of a pod.
type Pod struct {
	UID            string
	Name           string
	Namespace      string
	ServiceAccount string
	HostNetwork    bool
	Ended          bool // phase Succeeded or Failed
	Labels         map[string]string
	Annotations    map[string]string
	IPs            []netip.Addr
	Netns          string // path of its network namespace; empty: not known yet
}

// String names the pod in texts.
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Selection says which pods are captured.
type Selection struct {
	SystemNamespace   string   // where the node proxy runs
	ExcludeNamespaces []string // never captured
}

// Judge says whether the pod belongs into the mesh, given the labels of its
// namespace, and why.
func (s Selection) Judge(p Pod, namespace map[string]string) (wanted bool, why string) {
	mode := p.Labels[LabelMode]
	switch {
	case p.HostNetwork:
		return false, "it uses the node's network"
	case p.Ended:
		return false, "it has ended"
	case p.Labels["app"] == "ztunnel" && p.Namespace == s.SystemNamespace:
		return false, "it is the node proxy"
	case slices.Contains(s.ExcludeNamespaces, p.Namespace):
		return false, "its namespace is excluded"
	case p.Annotations[annotationSidecar] != "":
		return false, "it has a sidecar"
	case mode == modeAmbient:
		return true, "its label " + LabelMode + " says ambient"
	case mode == modeNone:
		return false, "its label " + LabelMode + " says none"
	case namespace[LabelMode] == modeAmbient:
		return true, "its namespace's label " + LabelMode + " says ambient"
	}
	return false, "no label " + LabelMode + "=ambient on it or its namespace"
}
