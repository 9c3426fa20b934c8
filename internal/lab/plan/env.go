package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Sources are the objects of the pod's namespace that its containers may
// refer to.
type Sources struct {
	ConfigMaps map[string]*corev1.ConfigMap
	Secrets    map[string]*corev1.Secret
}

// Env resolves a container's environment: envFrom, env with values, field
// references and keys of ConfigMaps and Secrets, and $(NAME) expansion.
// The answer is sorted as declared; a later name overrides an earlier one.
func Env(c *corev1.Container, p *corev1.Pod, src Sources) ([]string, error) {
	values := map[string]string{}
	var order []string
	set := func(name, value string) {
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = value
	}
	for _, from := range c.EnvFrom {
		data, err := envFrom(from, src)
		if err != nil {
			return nil, fmt.Errorf("pod %s/%s: container %s: envFrom: %w", p.Namespace, p.Name, c.Name, err)
		}
		for _, k := range slices.Sorted(maps.Keys(data)) {
			set(from.Prefix+k, data[k])
		}
	}
	for _, e := range c.Env {
		value := Expand(e.Value, values)
		if e.ValueFrom != nil {
			v, found, err := valueFrom(e.ValueFrom, p, src)
			if err != nil {
				return nil, fmt.Errorf("pod %s/%s: container %s: env %s: %w", p.Namespace, p.Name, c.Name, e.Name, err)
			}
			if !found {
				continue
			}
			value = v
		}
		set(e.Name, value)
	}
	out := make([]string, 0, len(order))
	for _, name := range order {
		out = append(out, name+"="+values[name])
	}
	return out, nil
}

func envFrom(from corev1.EnvFromSource, src Sources) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		cm, ok := src.ConfigMaps[from.ConfigMapRef.Name]
		if !ok {
			return nil, missing("ConfigMap", from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		s, ok := src.Secrets[from.SecretRef.Name]
		if !ok {
			return nil, missing("Secret", from.SecretRef.Name, from.SecretRef.Optional)
		}
		return SecretData(s), nil
	}
	return nil, nil
}

// SecretData is a Secret's content with stringData over data.
func SecretData(s *corev1.Secret) map[string]string {
	out := map[string]string{}
	for k, v := range s.Data {
		out[k] = string(v)
	}
	maps.Copy(out, s.StringData)
	return out
}

func missing(kind, name string, optional *bool) error {
	if optional != nil && *optional {
		return nil
	}
	return fmt.Errorf("%s %q does not exist", kind, name)
}

func valueFrom(v *corev1.EnvVarSource, p *corev1.Pod, src Sources) (value string, found bool, err error) {
	switch {
	case v.FieldRef != nil:
		value, err = Field(p, v.FieldRef.FieldPath)
		return value, err == nil, err
	case v.ConfigMapKeyRef != nil:
		ref := v.ConfigMapKeyRef
		if cm, ok := src.ConfigMaps[ref.Name]; ok {
			if value, ok = cm.Data[ref.Key]; ok {
				return value, true, nil
			}
		}
		return "", false, missing("ConfigMap key", ref.Name+"/"+ref.Key, ref.Optional)
	case v.SecretKeyRef != nil:
		ref := v.SecretKeyRef
		if s, ok := src.Secrets[ref.Name]; ok {
			if value, ok = SecretData(s)[ref.Key]; ok {
				return value, true, nil
			}
		}
		return "", false, missing("Secret key", ref.Name+"/"+ref.Key, ref.Optional)
	}
	return "", false, fmt.Errorf("valueFrom has no reference that the lab knows; use fieldRef, configMapKeyRef or secretKeyRef")
}

// Field answers a downward API path for the pod.
func Field(p *corev1.Pod, path string) (string, error) {
	if key, ok := subscript(path, "metadata.labels"); ok {
		return p.Labels[key], nil
	}
	if key, ok := subscript(path, "metadata.annotations"); ok {
		return p.Annotations[key], nil
	}
	switch path {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "spec.nodeName":
		return p.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return p.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return p.Status.HostIP, nil
	case "status.podIP":
		return p.Status.PodIP, nil
	case "status.podIPs":
		var all []string
		for _, ip := range p.Status.PodIPs {
			all = append(all, ip.IP)
		}
		return strings.Join(all, ","), nil
	}
	return "", fmt.Errorf("fieldPath %q is not known; use metadata.{name,namespace,uid,labels['x'],annotations['x']}, spec.{nodeName,serviceAccountName} or status.{podIP,podIPs,hostIP}", path)
}

func subscript(path, prefix string) (string, bool) {
	rest, ok := strings.CutPrefix(path, prefix+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

// Expand replaces $(NAME) by the variable's value; unknown names stay as they
// are and $$ is a dollar sign, as in Kubernetes.
func Expand(s string, values map[string]string) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if s[i+1] == '$' {
			b.WriteByte('$')
			i++
			continue
		}
		end := strings.IndexByte(s[i:], ')')
		if s[i+1] != '(' || end < 0 {
			b.WriteByte('$')
			continue
		}
		name := s[i+2 : i+end]
		if v, ok := values[name]; ok {
			b.WriteString(v)
		} else {
			b.WriteString(s[i : i+end+1])
		}
		i += end
	}
	return b.String()
}

// Argv is the container's command line with $(NAME) expanded. waypoint is the
// command that stands for the waypoint's image.
func Argv(c *corev1.Container, env, waypoint []string) []string {
	values := map[string]string{}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		values[k] = v
	}
	var out []string
	if len(c.Command) > 0 {
		for _, a := range c.Command {
			out = append(out, Expand(a, values))
		}
	} else {
		out = append(out, waypoint...) // a user's words, taken as they are
	}
	for _, a := range c.Args {
		out = append(out, Expand(a, values))
	}
	return out
}
