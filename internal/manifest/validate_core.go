package manifest

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func validateService(s *corev1.Service, p *problems) {
	oneOf("spec.type", &s.Spec.Type, p, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)
	seen := map[string]bool{}
	for i := range s.Spec.Ports {
		port := &s.Spec.Ports[i]
		at := fmt.Sprintf("spec.ports[%d]", i)
		validatePortNumber(at+".port", int64(port.Port), p)
		oneOf(at+".protocol", &port.Protocol, p, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		if t := port.TargetPort; t.Type == intstr.Int && t.IntVal != 0 {
			validatePortNumber(at+".targetPort", int64(t.IntVal), p)
		}
		if len(s.Spec.Ports) > 1 && port.Name == "" {
			p.add(at+".name", "is empty; several ports need names")
		}
		if seen[port.Name] {
			p.add(at+".name", "value %q is used by another port; names are unique", port.Name)
		}
		seen[port.Name] = true
	}
}

func validatePod(spec *corev1.PodSpec, at string, p *problems) {
	oneOf(at+".restartPolicy", &spec.RestartPolicy, p, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	for _, list := range []struct {
		field      string
		containers []corev1.Container
	}{{"containers", spec.Containers}, {"initContainers", spec.InitContainers}} {
		for i := range list.containers {
			c := &list.containers[i]
			field := fmt.Sprintf("%s.%s[%d]", at, list.field, i)
			if c.Name == "" {
				p.add(field+".name", "is empty; name the container")
			}
			for j, port := range c.Ports {
				validatePortNumber(fmt.Sprintf("%s.ports[%d].containerPort", field, j), int64(port.ContainerPort), p)
			}
		}
	}
}
