package bench

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/scenario"
)

// Plain proxies stand in a lab without a mesh: one per node forwards TCP as a
// pair of node proxies would, in clear text and for everybody. They show what
// two further hops cost with a program that many know, not what a mesh costs.

// Programs whose configuration we can write.
const (
	envoy   = "envoy"
	haproxy = "haproxy"
)

// PlainPrograms are the programs that may be a plain peer.
func PlainPrograms() []string { return []string{envoy, haproxy} }

// able says whether an implementation can carry a scenario out.
func (i Impl) able(s scenario.Scenario) bool {
	switch {
	case len(i.Waypoint) > 0:
		return s.Requested() // its node proxies are ours
	case s.Requested():
		return len(i.Ztunnel) == 0 // a peer's node proxy has our waypoint
	}
	// Without tunnels there is no cold one and no handshake.
	return i.Plain == "" || s.How != scenario.Cold && s.Load.Kind != load.Handshake
}

// hop is one port of a plain proxy and where it leads.
type hop struct {
	port int
	to   string // host:port
}

const plainPort = 7100 // and above, one for each server pod

// interpose starts the two proxies and makes addr lead through them.
func (w *world) interpose(ctx context.Context, pods []pod) error {
	var far, here []hop
	var names []string
	for _, p := range pods {
		if p.Node == nodeB {
			far = append(far, hop{port: plainPort + len(names), to: w.addr(p.Name)})
			names = append(names, p.Name)
		}
	}
	second, err := w.plainPod(ctx, nodeB, far)
	if err != nil {
		return err
	}
	for _, h := range far {
		here = append(here, hop{port: h.port, to: net.JoinHostPort(second, strconv.Itoa(h.port))})
	}
	if _, ok := w.ips[near]; ok {
		here = append(here, hop{port: plainPort + len(names), to: w.addr(near)})
		names = append(names, near)
	}
	first, err := w.plainPod(ctx, nodeA, here)
	if err != nil {
		return err
	}
	for k, name := range names {
		w.via[name] = net.JoinHostPort(first, strconv.Itoa(here[k].port))
	}
	return nil
}

// plainPod runs a proxy on a node and answers its address.
func (w *world) plainPod(ctx context.Context, node string, hops []hop) (string, error) {
	const dir, file = "/etc/plain", "plain.yaml"
	name := "plain-" + node
	text, args := haproxyConfig(hops), []string{"-db", "-f", dir + "/" + file}
	if w.impl.Plain == envoy {
		text, args = envoyConfig(hops), []string{"-c", dir + "/" + file, "--concurrency", "2", "--disable-hot-restart", "--log-level", "warn"}
	}
	meta := metav1.ObjectMeta{Name: name, Namespace: namespace}
	config := &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{file: text}}
	grace := int64(1)
	// Named as a node proxy is, so that its account is found.
	env := []corev1.EnvVar{{Name: "POD_NAME", Value: "ztunnel-" + node}}
	p := &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{
		NodeName: node, TerminationGracePeriodSeconds: &grace,
		Containers: []corev1.Container{{
			Name: "proxy", Command: slices.Concat(w.impl.Ztunnel, args), Env: env,
			VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: dir}},
		}},
		Volumes: []corev1.Volume{{Name: "config", VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}},
		}}},
	}}
	if _, err := w.lab.ApplyObjects(ctx, config, p); err != nil {
		return "", err
	}
	for {
		have, err := lab.Get[*corev1.Pod](ctx, w.lab.Client, namespace, name)
		if err != nil {
			return "", err
		}
		if len(have) == 1 && have[0].Status.PodIP != "" && have[0].Status.Phase == corev1.PodRunning {
			return have[0].Status.PodIP, nil
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return "", fmt.Errorf("pod %s does not run: %w", name, err)
		}
	}
}

func haproxyConfig(hops []hop) string {
	var b strings.Builder
	b.WriteString("global\n  nbthread 2\n  maxconn 50000\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n")
	for _, h := range hops {
		_, _ = fmt.Fprintf(&b, "listen port%d\n  bind :%d\n  server one %s\n", h.port, h.port, h.to)
	}
	return b.String()
}

func envoyConfig(hops []hop) string {
	var listeners, clusters strings.Builder
	for _, h := range hops {
		host, port, _ := net.SplitHostPort(h.to) // made by JoinHostPort
		_, _ = fmt.Fprintf(&listeners, `  - name: port%[1]d
    address: {socket_address: {address: 0.0.0.0, port_value: %[1]d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: port%[1]d
          cluster: port%[1]d
`, h.port)
		_, _ = fmt.Fprintf(&clusters, `  - name: port%d
    type: STATIC
    connect_timeout: 10s
    circuit_breakers: {thresholds: [{max_connections: 50000, max_pending_requests: 50000}]}
    load_assignment:
      cluster_name: port%d
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: "%s", port_value: %s}}}}]}]
`, h.port, h.port, host, port)
	}
	return "static_resources:\n  listeners:\n" + listeners.String() + "  clusters:\n" + clusters.String()
}
