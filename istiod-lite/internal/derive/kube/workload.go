package kube

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Locality is where a workload runs.
type Locality struct{ Region, Zone, Subzone string }

// NodeLocality reads a node's labels.
func NodeLocality(labels map[string]string) Locality {
	return Locality{
		Region:  labels["topology.kubernetes.io/region"],
		Zone:    labels["topology.kubernetes.io/zone"],
		Subzone: labels["topology.istio.io/subzone"],
	}
}

// ParseLocality reads "region/zone/subzone", of which later parts may be missing.
func ParseLocality(s string) Locality {
	var l Locality
	region, rest, _ := strings.Cut(s, "/")
	l.Region = region
	l.Zone, l.Subzone, _ = strings.Cut(rest, "/")
	return l
}

// CanonicalName is the telemetry name of a workload: the first of three labels that is there, else its own name.
func CanonicalName(labels map[string]string, workload string) string {
	for _, k := range []string{LabelCanonicalName, "app.kubernetes.io/name", "app"} {
		if v, ok := labels[k]; ok {
			return v
		}
	}
	return workload
}

// CanonicalRevision is the telemetry version of a workload, "latest" when no label says one.
func CanonicalRevision(labels map[string]string) string {
	for _, k := range []string{LabelCanonicalRevision, "app.kubernetes.io/version", "version"} {
		if v, ok := labels[k]; ok {
			return v
		}
	}
	return "latest"
}

// WorkloadName names the object that a person would say the pod belongs to: a Deployment rather than its ReplicaSet, a
// CronJob rather than its Job.
func WorkloadName(pod *corev1.Pod) string {
	if name := pod.Labels[LabelWorkloadName]; name != "" {
		return name
	}
	owner := metav1.GetControllerOf(pod)
	if pod.GenerateName == "" || owner == nil {
		return pod.Name
	}
	switch {
	case owner.Kind == "ReplicaSet":
		for _, label := range []string{"pod-template-hash", "rollouts-pod-template-hash"} {
			if hash := pod.Labels[label]; hash != "" && strings.HasSuffix(owner.Name, "-"+hash) {
				return strings.TrimSuffix(owner.Name, "-"+hash)
			}
		}
	case owner.Kind == "ReplicationController" && pod.Labels["deploymentconfig"] != "":
		return pod.Labels["deploymentconfig"]
	case owner.Kind == "Job":
		if i := strings.LastIndexByte(owner.Name, '-'); i > 0 && cronSuffix(owner.Name[i+1:]) {
			return owner.Name[:i]
		}
	}
	return owner.Name
}

// cronSuffix recognises the time that a CronJob appends to the names of its Jobs.
func cronSuffix(s string) bool {
	return len(s) >= 8 && len(s) <= 10 && strings.Trim(s, "0123456789") == ""
}

// Ready says that the pod's Ready condition is true.
func Ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Terminal says that the pod has ended for good.
func Terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// ContainerPort finds a TCP container port by name, in regular containers and in init containers that keep running.
func ContainerPort(pod *corev1.Pod, name string) (uint32, bool) {
	for i := range pod.Spec.Containers {
		if n, ok := namedPort(&pod.Spec.Containers[i], name); ok {
			return n, true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if n, ok := namedPort(c, name); ok {
			return n, true
		}
	}
	return 0, false
}

func namedPort(c *corev1.Container, name string) (uint32, bool) {
	for _, p := range c.Ports {
		if p.Name == name && (p.Protocol == corev1.ProtocolTCP || p.Protocol == "") {
			return uint32(p.ContainerPort), true
		}
	}
	return 0, false
}

// TargetPort finds where the pod serves the Service port; ok is false for a named port that the pod does not have.
func TargetPort(pod *corev1.Pod, p corev1.ServicePort) (uint32, bool) {
	if p.TargetPort.Type == intstr.String {
		return ContainerPort(pod, p.TargetPort.StrVal)
	}
	if p.TargetPort.IntVal == 0 {
		return uint32(p.Port), true // what an API server fills in
	}
	return uint32(p.TargetPort.IntVal), true
}
