package kubelet

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// state is one container's situation.
type state struct {
	name, image string
	running     bool
	started     metav1.Time // of the running or last process
	ready       bool
	restarts    int32
	waiting     string // reason while it does not run and will again
	message     string
	terminated  *corev1.ContainerStateTerminated // last end
	done        bool                             // will not run again
}

// statusOf computes a pod's status from its containers' states. No states mean
// that the pod has a network and nothing else yet.
func statusOf(p *corev1.Pod, states []state, ending bool) corev1.PodStatus {
	s := corev1.PodStatus{Phase: phase(states), QOSClass: corev1.PodQOSBestEffort}
	ready := len(states) > 0
	for _, c := range states {
		ready = ready && c.running && c.ready
		s.ContainerStatuses = append(s.ContainerStatuses, containerStatus(c))
	}
	isReady := condition(ready)
	reason := ""
	switch {
	case s.Phase == corev1.PodSucceeded:
		reason = "PodCompleted"
	case s.Phase == corev1.PodFailed:
		reason = "PodFailed"
	case !ready:
		reason = "ContainersNotReady"
	}
	podReady := isReady
	if ending {
		// An ending pod takes no new connections; its containers still run.
		podReady = corev1.ConditionFalse
	}
	s.Conditions = []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
		{Type: corev1.PodInitialized, Status: condition(len(states) > 0 || len(p.Spec.InitContainers) == 0)},
		{Type: corev1.ContainersReady, Status: isReady, Reason: reason},
		{Type: corev1.PodReady, Status: podReady, Reason: reason},
	}
	now := metav1.Now()
	for i := range s.Conditions {
		s.Conditions[i].LastTransitionTime = now
	}
	return s
}

func condition(b bool) corev1.ConditionStatus {
	if b {
		return corev1.ConditionTrue
	}
	return corev1.ConditionFalse
}

func phase(states []state) corev1.PodPhase {
	running, done, failed := 0, 0, 0
	for _, c := range states {
		switch {
		case c.done:
			done++
			if c.terminated != nil && c.terminated.ExitCode != 0 {
				failed++
			}
		case c.running || c.restarts > 0:
			running++
		}
	}
	switch {
	case len(states) > 0 && done == len(states) && failed > 0:
		return corev1.PodFailed
	case len(states) > 0 && done == len(states):
		return corev1.PodSucceeded
	case running+done == len(states) && len(states) > 0:
		return corev1.PodRunning
	}
	return corev1.PodPending
}

func containerStatus(c state) corev1.ContainerStatus {
	started := c.running
	s := corev1.ContainerStatus{Name: c.name, Image: c.image, Ready: c.running && c.ready, RestartCount: c.restarts, Started: &started}
	if c.terminated != nil && !c.done {
		s.LastTerminationState.Terminated = c.terminated
	}
	switch {
	case c.running:
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: c.started}
	case c.done:
		s.State.Terminated = c.terminated
	default:
		reason := c.waiting
		if reason == "" {
			reason = "ContainerCreating"
		}
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: c.message}
	}
	return s
}

// sameStatus compares without the times of conditions, which keepTransitions
// carries over.
func sameStatus(a, b corev1.PodStatus) bool {
	a.Conditions, b.Conditions = withoutTimes(a.Conditions), withoutTimes(b.Conditions)
	return reflect.DeepEqual(a, b)
}

func withoutTimes(in []corev1.PodCondition) []corev1.PodCondition {
	out := make([]corev1.PodCondition, len(in))
	for i, c := range in {
		c.LastTransitionTime = metav1.Time{}
		out[i] = c
	}
	return out
}

// keepTransitions gives conditions that did not change their old times.
func keepTransitions(old, now []corev1.PodCondition) {
	for i := range now {
		for _, o := range old {
			if o.Type == now[i].Type && o.Status == now[i].Status && !o.LastTransitionTime.IsZero() {
				now[i].LastTransitionTime = o.LastTransitionTime
			}
		}
	}
}
