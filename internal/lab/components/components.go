package components

import (
	"fmt"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// Namespace is where the components live.
const Namespace = "istio-system"

// Version is what the components tell as ISTIO_META_ISTIO_VERSION.
const Version = "1.31.0"

// Config says what the components are made of.
type Config struct {
	Nodes []string
	// Command lines; see lab.Commands.
	Ztunnel, CNI, ControlPlane []string
	Env                        []string // added to all, NAME=value
	Objects                    string   // the store's directory
	CADir                      string
	JWKS                       string
	NodeDir                    func(node string) string // host side of a node's sockets
}

// ControlPlaneName is the pod's name.
const ControlPlaneName = "istiod-lite"

// ZtunnelName is the name of a node's proxy pod.
func ZtunnelName(node string) string { return "ztunnel-" + node }

// CNIName is the name of a node's agent pod.
func CNIName(node string) string { return "cni-" + node }

// Directories of a node's sockets inside the pods.
const (
	ZtunnelDir = "/var/run/ztunnel"
	CNIDir     = "/var/run/istio-cni"
)

// ZtunnelHostDir is the host side of ZtunnelDir.
func ZtunnelHostDir(nodeDir string) string { return filepath.Join(nodeDir, "ztunnel") }

// CNIHostDir is the host side of CNIDir.
func CNIHostDir(nodeDir string) string { return filepath.Join(nodeDir, "istio-cni") }

// PluginSocket is where the agent answers the CNI plugin, host side.
func PluginSocket(nodeDir string) string {
	return filepath.Join(CNIHostDir(nodeDir), "pluginevent.sock")
}

// Base are the namespace, accounts and Service of the components.
func Base() []manifest.Object {
	out := []manifest.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}}
	for _, sa := range []string{"istiod", "ztunnel", "istio-cni"} {
		out = append(out, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: sa, Namespace: Namespace}})
	}
	port := func(name string, n int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: n, TargetPort: intstr.FromInt32(n), Protocol: corev1.ProtocolTCP}
	}
	return append(out, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "istiod", Namespace: Namespace, Labels: map[string]string{"app": "istiod", "istio": "pilot"}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "istiod"},
			Ports:    []corev1.ServicePort{port("https-dns", 15012), port("http-monitoring", 15014)},
		},
	})
}

// ControlPlane is the control plane's pod.
func ControlPlane(c Config) *corev1.Pod {
	p := pod(ControlPlaneName, c.Nodes[0], "istiod", map[string]string{"app": "istiod", "istio": "pilot"})
	env := []corev1.EnvVar{
		value("MARROW_SOURCE", "file:"+c.Objects),
		value("MARROW_CA_DIR", c.CADir),
		value("MARROW_TOKEN_JWKS", c.JWKS),
		value("CLUSTER_ID", "Kubernetes"),
		value("CA_TRUSTED_NODE_ACCOUNTS", Namespace+"/ztunnel"),
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		field("INSTANCE_IP", "status.podIP"),
	}
	p.Spec.Containers = []corev1.Container{{
		Name: "discovery", Command: c.ControlPlane, Env: extra(env, c.Env),
		Ports: []corev1.ContainerPort{
			{Name: "https-dns", ContainerPort: 15012, Protocol: corev1.ProtocolTCP},
			{Name: "http-monitoring", ContainerPort: 15014, Protocol: corev1.ProtocolTCP},
			{Name: "http-ready", ContainerPort: 8080, Protocol: corev1.ProtocolTCP},
		},
		ReadinessProbe: httpProbe("/ready", 8080),
	}}
	return p
}

// Ztunnel is a node's proxy pod.
func Ztunnel(c Config, node string) *corev1.Pod {
	p := pod(ZtunnelName(node), node, "ztunnel", map[string]string{
		"app": "ztunnel", "istio.io/dataplane-mode": "none", "sidecar.istio.io/inject": "false",
	})
	p.Annotations = map[string]string{"prometheus.io/port": "15020", "prometheus.io/scrape": "true"}
	env := []corev1.EnvVar{
		value("CA_ADDRESS", "istiod.istio-system.svc:15012"),
		value("XDS_ADDRESS", "istiod.istio-system.svc:15012"),
		value("RUST_LOG", "info"),
		value("RUST_BACKTRACE", "1"),
		value("ISTIO_META_CLUSTER_ID", "Kubernetes"),
		value("ISTIO_META_ISTIO_VERSION", Version),
		value("ISTIO_META_DNS_CAPTURE", "true"),
		value("ISTIO_META_DNS_PROXY_ADDR", "127.0.0.1:15053"),
		value("INPOD_ENABLED", "true"),
		value("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
		value("ZTUNNEL_WORKER_THREADS", "2"),
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		field("NODE_NAME", "spec.nodeName"),
		field("INSTANCE_IP", "status.podIP"),
		field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
	}
	p.Spec.Containers = []corev1.Container{{
		Name: "istio-proxy", Command: c.Ztunnel, Args: []string{"proxy", "ztunnel"}, Env: extra(env, c.Env),
		Ports: []corev1.ContainerPort{
			{Name: "ztunnel-stats", ContainerPort: 15020, Protocol: corev1.ProtocolTCP},
		},
		ReadinessProbe: httpProbe("/healthz/ready", 15021),
		VolumeMounts:   []corev1.VolumeMount{{Name: "ztunnel", MountPath: ZtunnelDir}},
	}}
	p.Spec.Volumes = []corev1.Volume{hostPath("ztunnel", ZtunnelHostDir(c.NodeDir(node)))}
	return p
}

// CNI is a node's agent pod.
func CNI(c Config, node string) *corev1.Pod {
	p := pod(CNIName(node), node, "istio-cni", map[string]string{
		"k8s-app": "istio-cni-node", "istio.io/dataplane-mode": "none", "sidecar.istio.io/inject": "false",
	})
	p.Spec.HostNetwork = true
	env := []corev1.EnvVar{
		field("NODE_NAME", "spec.nodeName"),
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		value("ZTUNNEL_UDS_ADDRESS", ZtunnelDir+"/ztunnel.sock"),
		value("MARROW_CNI_SOURCE", "file:"+c.Objects),
		// Probes come from the lab's own process, which is uid 0 of its
		// user namespace.
		value("MARROW_KUBELET_UID", "0"),
		value("AMBIENT_ENABLED", "true"),
	}
	p.Spec.Containers = []corev1.Container{{
		Name: "install-cni", Command: c.CNI, Env: extra(env, c.Env),
		ReadinessProbe: httpProbe("/readyz", 8000),
		VolumeMounts: []corev1.VolumeMount{
			{Name: "ztunnel", MountPath: ZtunnelDir},
			{Name: "istio-cni", MountPath: CNIDir},
		},
	}}
	p.Spec.Volumes = []corev1.Volume{
		hostPath("ztunnel", ZtunnelHostDir(c.NodeDir(node))),
		hostPath("istio-cni", CNIHostDir(c.NodeDir(node))),
	}
	return p
}

func pod(name, node, account string, labels map[string]string) *corev1.Pod {
	// Kubernetes gives ztunnel 30 s; a lab that goes down need not wait that
	// long for a proxy whose pods are gone.
	grace := int64(10)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: Namespace, Labels: labels},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: account, RestartPolicy: corev1.RestartPolicyAlways,
			TerminationGracePeriodSeconds: &grace,
		},
	}
}

func value(name, v string) corev1.EnvVar { return corev1.EnvVar{Name: name, Value: v} }

func field(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
}

// extra adds the user's NAME=value pairs, which win over ours.
func extra(env []corev1.EnvVar, pairs []string) []corev1.EnvVar {
	for _, kv := range pairs {
		name, v, _ := strings.Cut(kv, "=")
		// $ starts an expansion in Kubernetes; a given value is taken as it is.
		env = append(env, value(name, strings.ReplaceAll(v, "$", "$$")))
	}
	return env
}

func httpProbe(path string, port int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:     corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(port)}},
		PeriodSeconds:    1,
		TimeoutSeconds:   1,
		FailureThreshold: 3,
	}
}

func hostPath(name, path string) corev1.Volume {
	kind := corev1.HostPathDirectoryOrCreate
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}}
}

// Programs answers the commands with ours where none was given, and refuses a
// program that is not there.
func Programs(binDir string, exists func(path string) bool, c *Config) error {
	var missing []string
	for name, command := range map[string]*[]string{"ztunnel": &c.Ztunnel, "cni": &c.CNI, "istiod-lite": &c.ControlPlane} {
		if len(*command) > 0 {
			continue
		}
		path := filepath.Join(binDir, name)
		if !exists(path) {
			missing = append(missing, path)
		}
		*command = []string{path}
	}
	if len(missing) > 0 {
		return fmt.Errorf("no program at %s; run `make build`, give the command (--ztunnel-command, --cni-command, --control-plane-command), or leave the mesh out (--no-mesh)", strings.Join(missing, ", "))
	}
	return nil
}
