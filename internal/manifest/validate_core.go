package manifest

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
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
			validateLabelName(field+".name", c.Name, "container", p)
			for j, m := range c.VolumeMounts {
				if slices.Contains(strings.Split(m.SubPath, "/"), "..") {
					p.add(fmt.Sprintf("%s.volumeMounts[%d].subPath", field, j), "value %q leads out of the volume; leave \"..\" out", m.SubPath)
				}
			}
			for j, port := range c.Ports {
				validatePortNumber(fmt.Sprintf("%s.ports[%d].containerPort", field, j), int64(port.ContainerPort), p)
			}
		}
	}
	for i := range spec.Volumes {
		validateLabelName(fmt.Sprintf("%s.volumes[%d].name", at, i), spec.Volumes[i].Name, "volume", p)
	}
}

// validateLabelName is for names that become parts of paths as well.
func validateLabelName(field, name, what string, p *problems) {
	switch {
	case name == "":
		p.add(field, "is empty; name the %s", what)
	case len(validation.IsDNS1123Label(name)) > 0:
		p.add(field, "value %q is no name of a %s; use lower-case letters, digits and '-'", name, what)
	}
}
