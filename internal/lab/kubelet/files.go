package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab/components"
	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/lab/proc"
	"github.com/marrowmesh/marrow/internal/lab/tokens"
)

// tokenLife is what Istio's charts ask the API server for.
const tokenLife = 12 * time.Hour

// Where Istio's charts put a pod's files.
const (
	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	tokenFile  = "/var/run/secrets/tokens/istio-token"
	rootFile   = "/var/run/secrets/istio/root-cert.pem"
)

// isComponent reports one of the mesh's own pods.
func (w *worker) isComponent() bool { return w.pod.Namespace == components.Namespace }

func (w *worker) subject() tokens.Subject {
	return tokens.Subject{
		Namespace: w.pod.Namespace, ServiceAccount: w.pod.Spec.ServiceAccountName,
		Pod: w.pod.Name, PodUID: string(w.pod.UID), Node: w.pod.Spec.NodeName,
	}
}

// files are what every container finds below /var/run.
func (w *worker) files() ([]proc.File, error) {
	out := []proc.File{{Path: accountDir + "/namespace", Data: []byte(w.pod.Namespace)}}
	for path, audience := range map[string]string{tokenFile: tokens.Audience, accountDir + "/token": tokens.KubernetesAudience} {
		token, err := w.cfg.Tokens.Token(w.subject(), audience, time.Now(), tokenLife)
		if err != nil {
			return nil, err
		}
		out = append(out, proc.File{Path: path, Data: []byte(token), Mode: 0o600})
	}
	root, err := os.ReadFile(filepath.Join(w.cfg.State.CA(), "root-cert.pem"))
	switch {
	case err == nil:
		out = append(out, proc.File{Path: rootFile, Data: root}, proc.File{Path: accountDir + "/ca.crt", Data: root})
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("read the mesh's root certificate: %w", err)
	}
	return out, nil
}

func resolvConf(p *corev1.Pod) []byte {
	var b strings.Builder
	if c := p.Spec.DNSConfig; c != nil && p.Spec.DNSPolicy == corev1.DNSNone {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Searches, " "))
		for _, n := range c.Nameservers {
			fmt.Fprintf(&b, "nameserver %s\n", n)
		}
		return []byte(b.String())
	}
	fmt.Fprintf(&b, "search %s.svc.cluster.local svc.cluster.local cluster.local\nnameserver %s\noptions ndots:5\n", p.Namespace, fabric.DNS4())
	return []byte(b.String())
}

// mounts are a container's volumes, and for the mesh's own pods the lab's
// directory, where the objects are.
func (w *worker) mounts(c *corev1.Container, src plan.Sources) ([]proc.Mount, error) {
	var out []proc.Mount
	if w.isComponent() {
		out = append(out, proc.Mount{Source: w.cfg.State.Dir, Target: w.cfg.State.Dir})
	}
	volumes := map[string]*corev1.Volume{}
	for i := range w.pod.Spec.Volumes {
		volumes[w.pod.Spec.Volumes[i].Name] = &w.pod.Spec.Volumes[i]
	}
	for _, m := range c.VolumeMounts {
		v, ok := volumes[m.Name]
		if !ok {
			return nil, fmt.Errorf("container %s: volumeMounts names volume %q, which spec.volumes does not have", c.Name, m.Name)
		}
		source, err := w.volume(v, src)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		if m.SubPath != "" {
			source = filepath.Join(source, m.SubPath)
		}
		out = append(out, proc.Mount{Source: source, Target: m.MountPath, ReadOnly: m.ReadOnly})
	}
	return out, nil
}

// volume makes the host side of a volume and answers with its path.
func (w *worker) volume(v *corev1.Volume, src plan.Sources) (string, error) {
	dir := filepath.Join(w.dir(), "volumes", v.Name)
	switch {
	case v.HostPath != nil:
		if t := v.HostPath.Type; t != nil && *t == corev1.HostPathDirectoryOrCreate {
			if err := os.MkdirAll(v.HostPath.Path, 0o755); err != nil {
				return "", err
			}
		}
		return v.HostPath.Path, nil
	case v.EmptyDir != nil:
		return dir, os.MkdirAll(dir, 0o777)
	}
	data, err := w.content(v.VolumeSource, src)
	if err != nil {
		return "", err
	}
	return dir, writeAll(dir, data)
}

// content is what a volume made of objects holds, by file name.
func (w *worker) content(v corev1.VolumeSource, src plan.Sources) (map[string]string, error) {
	switch {
	case v.ConfigMap != nil:
		return configMap(v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, src)
	case v.Secret != nil:
		return secret(v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, src)
	case v.DownwardAPI != nil:
		return w.downward(v.DownwardAPI.Items)
	case v.Projected == nil:
		return nil, errors.New("this kind of volume is not known to the lab; use hostPath, emptyDir, configMap, secret, downwardAPI or projected")
	}
	all := map[string]string{}
	for _, p := range v.Projected.Sources {
		var part map[string]string
		var err error
		switch {
		case p.ServiceAccountToken != nil:
			part, err = w.token(p.ServiceAccountToken)
		case p.ConfigMap != nil:
			part, err = configMap(p.ConfigMap.Name, p.ConfigMap.Items, p.ConfigMap.Optional, src)
		case p.Secret != nil:
			part, err = secret(p.Secret.Name, p.Secret.Items, p.Secret.Optional, src)
		case p.DownwardAPI != nil:
			part, err = w.downward(p.DownwardAPI.Items)
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(all, part)
	}
	return all, nil
}

func (w *worker) token(p *corev1.ServiceAccountTokenProjection) (map[string]string, error) {
	life, audience := tokenLife, tokens.KubernetesAudience
	if p.ExpirationSeconds != nil {
		life = time.Duration(*p.ExpirationSeconds) * time.Second
	}
	if p.Audience != "" {
		audience = p.Audience
	}
	token, err := w.cfg.Tokens.Token(w.subject(), audience, time.Now(), life)
	return map[string]string{p.Path: token}, err
}

func (w *worker) downward(items []corev1.DownwardAPIVolumeFile) (map[string]string, error) {
	out := map[string]string{}
	for _, item := range items {
		if item.FieldRef == nil {
			return nil, fmt.Errorf("downwardAPI item %q has no fieldRef", item.Path)
		}
		value, err := plan.Field(w.pod, item.FieldRef.FieldPath)
		if err != nil {
			return nil, err
		}
		out[item.Path] = value
	}
	return out, nil
}

func configMap(name string, items []corev1.KeyToPath, optional *bool, src plan.Sources) (map[string]string, error) {
	cm, ok := src.ConfigMaps[name]
	if !ok {
		return nil, absent("ConfigMap", name, optional)
	}
	data := map[string]string{}
	for k, v := range cm.BinaryData {
		data[k] = string(v)
	}
	maps.Copy(data, cm.Data)
	return selected("ConfigMap", name, data, items)
}

func secret(name string, items []corev1.KeyToPath, optional *bool, src plan.Sources) (map[string]string, error) {
	s, ok := src.Secrets[name]
	if !ok {
		return nil, absent("Secret", name, optional)
	}
	return selected("Secret", name, plan.SecretData(s), items)
}

func absent(kind, name string, optional *bool) error {
	if optional != nil && *optional {
		return nil
	}
	return fmt.Errorf("%s %q does not exist", kind, name)
}

func selected(kind, name string, data map[string]string, items []corev1.KeyToPath) (map[string]string, error) {
	if len(items) == 0 {
		return data, nil
	}
	out := map[string]string{}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			return nil, fmt.Errorf("%s %q has no key %q", kind, name, item.Key)
		}
		out[item.Path] = v
	}
	return out, nil
}

func writeAll(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(dir, filepath.Clean("/"+name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			return err
		}
	}
	return nil
}
