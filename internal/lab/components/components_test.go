package components_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab/components"
)

func config() components.Config {
	c := components.Config{
		Nodes: []string{"node-1", "node-2"}, Objects: "/s/objects", CADir: "/s/ca", JWKS: "/s/jwks.json",
		NodeDir: func(n string) string { return "/s/nodes/" + n },
	}
	if err := components.Programs("/bin", func(string) bool { return true }, &c); err != nil {
		panic(err)
	}
	return c
}

func env(p *corev1.Pod) map[string]string {
	out := map[string]string{}
	for _, e := range p.Spec.Containers[0].Env {
		out[e.Name] = e.Value
		if e.ValueFrom != nil {
			out[e.Name] = "@" + e.ValueFrom.FieldRef.FieldPath
		}
	}
	return out
}

func TestEnvironment(t *testing.T) {
	c := config()
	for name, x := range map[string]struct {
		pod  *corev1.Pod
		want map[string]string
	}{
		"ztunnel": {components.Ztunnel(c, "node-2"), map[string]string{
			"XDS_ADDRESS": "istiod.istio-system.svc:15012", "CA_ADDRESS": "istiod.istio-system.svc:15012", "NODE_NAME": "@spec.nodeName",
			"POD_NAME": "@metadata.name", "POD_NAMESPACE": "@metadata.namespace", "INSTANCE_IP": "@status.podIP",
			"SERVICE_ACCOUNT": "@spec.serviceAccountName", "ISTIO_META_CLUSTER_ID": "Kubernetes", "TERMINATION_GRACE_PERIOD_SECONDS": "30",
		}},
		"cni": {components.CNI(c, "node-2"), map[string]string{
			"NODE_NAME": "@spec.nodeName", "ZTUNNEL_UDS_ADDRESS": "/var/run/ztunnel/ztunnel.sock", "MARROW_CNI_SOURCE": "file:/s/objects", "MARROW_KUBELET_UID": "0",
		}},
		"control plane": {components.ControlPlane(c), map[string]string{
			"MARROW_SOURCE": "file:/s/objects", "MARROW_CA_DIR": "/s/ca", "MARROW_TOKEN_JWKS": "/s/jwks.json", "CLUSTER_ID": "Kubernetes",
			"CA_TRUSTED_NODE_ACCOUNTS": "istio-system/ztunnel",
		}},
	} {
		got := env(x.pod)
		for k, v := range x.want {
			if got[k] != v {
				t.Errorf("%s: %s=%q, want %q", name, k, got[k], v)
			}
		}
	}
	z := components.Ztunnel(c, "node-2")
	if z.Spec.NodeName != "node-2" || z.Spec.ServiceAccountName != "ztunnel" || z.Spec.HostNetwork || z.Labels["app"] != "ztunnel" {
		t.Errorf("ztunnel %+v", z.Spec)
	}
	if z.Spec.Volumes[0].HostPath.Path != components.CNI(c, "node-2").Spec.Volumes[0].HostPath.Path {
		t.Error("agent and proxy do not share the directory of the socket")
	}
	if !components.CNI(c, "node-1").Spec.HostNetwork {
		t.Error("the agent is not in its node's network")
	}
}

func TestReplacedCommand(t *testing.T) {
	c := config()
	before := components.Ztunnel(c, "node-1")
	c.Ztunnel = []string{"/opt/other", "--flag"}
	c.Env = []string{"RUST_LOG=debug", "X=$(POD_NAME)"}
	after := components.Ztunnel(c, "node-1")
	a, b := before.Spec.Containers[0], after.Spec.Containers[0]
	if !slices.Equal(b.Command, c.Ztunnel) || !slices.Equal(a.Args, b.Args) || len(b.Env) != len(a.Env)+2 {
		t.Errorf("%v %v", b.Command, b.Args)
	}
	if got := env(after); got["X"] != "$$(POD_NAME)" || got["RUST_LOG"] != "debug" {
		t.Errorf("given environment %v", got)
	}
}

func TestPrograms(t *testing.T) {
	c := components.Config{Ztunnel: []string{"mine"}}
	err := components.Programs("/none", func(path string) bool { return strings.HasSuffix(path, "cni") }, &c)
	if err == nil || !strings.Contains(err.Error(), "/none/istiod-lite") || strings.Contains(err.Error(), "/none/cni") || strings.Contains(err.Error(), "/none/ztunnel") {
		t.Error(err)
	}
}
