package plan

import (
	"fmt"
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func labelSet(m map[string]string) labels.Set { return labels.Set(m) }

// HostnameLabel is the label by which a pod asks for a node.
const HostnameLabel = corev1.LabelHostname

// IsReady reports the pod's Ready condition.
func IsReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// IsTerminal reports a pod that will not run again.
func IsTerminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Defaulted reports whether DefaultPod would leave the pod as it is.
func Defaulted(p *corev1.Pod) bool {
	return p.Spec.ServiceAccountName != "" && p.Spec.RestartPolicy != "" && p.Spec.TerminationGracePeriodSeconds != nil
}

// DefaultPod fills in what the API server would, as far as the lab reads it.
func DefaultPod(p *corev1.Pod) {
	s := &p.Spec
	if s.ServiceAccountName == "" {
		s.ServiceAccountName = s.DeprecatedServiceAccount
	}
	if s.ServiceAccountName == "" {
		s.ServiceAccountName = "default"
	}
	if s.RestartPolicy == "" {
		s.RestartPolicy = corev1.RestartPolicyAlways
	}
	if s.TerminationGracePeriodSeconds == nil {
		grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
		s.TerminationGracePeriodSeconds = &grace
	}
	for i := range s.Containers {
		for j := range s.Containers[i].Ports {
			if s.Containers[i].Ports[j].Protocol == "" {
				s.Containers[i].Ports[j].Protocol = corev1.ProtocolTCP
			}
		}
	}
}

// IsWaypointImage recognises the image that the lab runs with its waypoint
// command, whatever its tag.
func IsWaypointImage(image string) bool {
	repo, _, _ := splitImage(image)
	return repo == "marrowmesh/waypoint"
}

func splitImage(image string) (repo, tag string, ok bool) {
	base := path.Base(image)
	for i := range base {
		if base[i] == ':' || base[i] == '@' {
			return path.Join(path.Dir(image), base[:i]), base[i+1:], true
		}
	}
	return image, "", false
}

// CheckPod refuses a pod that the lab cannot run, with what to change.
func CheckPod(where string, s *corev1.PodSpec) error {
	if len(s.Containers) == 0 {
		return fmt.Errorf("%s: spec.containers is empty; a pod needs a container", where)
	}
	var seen []string
	for i, c := range s.Containers {
		field := fmt.Sprintf("%s: spec.containers[%d]", where, i)
		if c.Name == "" {
			return fmt.Errorf("%s.name is missing", field)
		}
		if slices.Contains(seen, c.Name) {
			return fmt.Errorf("%s.name %q is used twice", field, c.Name)
		}
		seen = append(seen, c.Name)
		if len(c.Command) == 0 && !IsWaypointImage(c.Image) {
			return fmt.Errorf("%s.command is missing: the lab runs no images (image %q); give the command to run", field, c.Image)
		}
	}
	if len(s.InitContainers) > 0 {
		for i, c := range s.InitContainers {
			if len(c.Command) == 0 {
				return fmt.Errorf("%s: spec.initContainers[%d].command is missing: the lab runs no images", where, i)
			}
		}
	}
	return nil
}

// Node is what scheduling knows of a node.
type Node struct {
	Name          string
	Labels        map[string]string
	Unschedulable bool
}

// Schedule picks the pod's node: the named one, else among those that its
// nodeSelector allows the one with the fewest pods of the same namespace, then
// the fewest pods, then the first name.
func Schedule(p *corev1.Pod, nodes []Node, pods []*corev1.Pod) (string, error) {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName, nil
	}
	sel := labels.SelectorFromSet(p.Spec.NodeSelector)
	peers, all := map[string]int{}, map[string]int{}
	for _, other := range pods {
		if other.DeletionTimestamp != nil || IsTerminal(other) || other.Spec.NodeName == "" {
			continue
		}
		all[other.Spec.NodeName]++
		if other.Namespace == p.Namespace && similar(other, p) {
			peers[other.Spec.NodeName]++
		}
	}
	best := ""
	for _, n := range nodes {
		if n.Unschedulable || !sel.Matches(labelSet(n.Labels)) {
			continue
		}
		if best == "" || less(peers, all, n.Name, best) {
			best = n.Name
		}
	}
	if best == "" {
		return "", fmt.Errorf("pod %s/%s: no node matches spec.nodeSelector %v", p.Namespace, p.Name, p.Spec.NodeSelector)
	}
	return best, nil
}

// similar pods should not share a node when they can help it.
func similar(a, b *corev1.Pod) bool {
	ownerA, okA := OwnerDeployment(a)
	ownerB, okB := OwnerDeployment(b)
	if okA && okB {
		return ownerA == ownerB
	}
	return okA == okB
}

func less(peers, all map[string]int, a, b string) bool {
	if peers[a] != peers[b] {
		return peers[a] < peers[b]
	}
	if all[a] != all[b] {
		return all[a] < all[b]
	}
	return a < b
}

// DataplaneLabel is the enrolment label of namespaces and pods.
const DataplaneLabel = "istio.io/dataplane-mode"

// Enrolled reports whether a pod's labels, else its namespace's, ask for the
// mesh. The agent decides about enrolment; the lab needs the label only to
// know whether a pod may start while the agent cannot be asked.
func Enrolled(p *corev1.Pod, ns *corev1.Namespace) bool {
	if p.Spec.HostNetwork {
		return false
	}
	if mode, ok := p.Labels[DataplaneLabel]; ok {
		return mode == "ambient"
	}
	return ns != nil && ns.Labels[DataplaneLabel] == "ambient"
}
