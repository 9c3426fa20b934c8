package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/perf/account"
)

const (
	namespace   = "perf"
	modeLabel   = "istio.io/dataplane-mode"
	redirection = "ambient.istio.io/redirection"
	loadPort    = 7000
	hbonePort   = 15008
	nodeA       = "node-1" // of the clients
	nodeB       = "node-2" // of the servers
	startTime   = 60 * time.Second
)

// pod is one pod of a lab.
type pod struct {
	Name, Node string
	Outside    bool // of the mesh
}

const maxPairs = 4

func client(i int) string { return "client-" + strconv.Itoa(i+1) }
func server(i int) string { return "server-" + strconv.Itoa(i+1) }

// near serves the clients' own node, outsider is in no mesh.
const (
	near     = "near"
	outsider = "outsider"
)

func everybody() []pod {
	var out []pod
	for i := range maxPairs {
		out = append(out, pod{Name: client(i), Node: nodeA}, pod{Name: server(i), Node: nodeB})
	}
	return append(out, pod{Name: near, Node: nodeA}, pod{Name: outsider, Node: nodeA, Outside: true})
}

func justTwo() []pod { return everybody()[:2] }

// Pods have no readiness probe: nothing may run beside the load, and clients
// try until the server is there.
const podsYAML = `apiVersion: v1
kind: Namespace
metadata: {name: {{.Namespace}}{{if .Mesh}}, labels: {"{{.Mode}}": ambient}{{end}}}
{{range .Pods}}---
apiVersion: v1
kind: ServiceAccount
metadata: {name: {{.Name}}, namespace: {{$.Namespace}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: {{.Name}}
  namespace: {{$.Namespace}}
  labels: {app: {{.Name}}{{if .Outside}}, "{{$.Mode}}": none{{end}}}
spec:
  serviceAccountName: {{.Name}}
  nodeName: {{.Node}}
  terminationGracePeriodSeconds: 1
  containers:
    - name: load
      image: marrowmesh/perf
      command: [marrow, perf-load, server, --listen, ":{{$.Port}}"]
      ports: [{containerPort: {{$.Port}}}]
{{end}}`

// world is a lab with its pods.
type world struct {
	lab  *lab.Lab
	impl Impl
	pid  int // of the sandbox
	ips  map[string]string
	via  map[string]string // pod -> address of the plain proxy that leads there

	use      use
	services map[string]string // name -> address, in a lab with waypoints
}

func newWorld(l *lab.Lab, i Impl) *world {
	return &world{lab: l, impl: i, pid: l.PID, ips: map[string]string{}, via: map[string]string{}, services: map[string]string{}}
}

func (w *world) name() string { return w.lab.Name }
func (w *world) mesh() bool   { return w.impl.mesh() }

func (w *world) proxied() bool { return w.impl.proxied() }

// populate applies the pods and waits until they are ready, enrolled, and
// answer.
func (w *world) populate(ctx context.Context, pods []pod) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("the pods were not ready within %v", startTime))
	defer cancel()
	var yaml bytes.Buffer
	t, err := template.New("pods").Parse(podsYAML)
	if err == nil {
		err = t.Execute(&yaml, map[string]any{"Namespace": namespace, "Mesh": w.mesh(), "Mode": modeLabel, "Pods": pods, "Port": loadPort})
	}
	if err != nil {
		return fmt.Errorf("write the pods' manifest: %w", err)
	}
	if _, err := w.lab.Apply(ctx, "perf", yaml.Bytes()); err != nil {
		return err
	}
	if err := w.lab.WaitReady(ctx, startTime); err != nil {
		return err
	}
	for {
		missing, err := w.look(ctx, pods)
		if err != nil {
			return err
		}
		if missing == "" && w.impl.Plain != "" {
			return w.interpose(ctx, pods)
		}
		if missing == "" && w.use == ofRequests {
			return w.interposeWaypoints(ctx)
		}
		if missing == "" {
			return nil
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%s: %w", missing, err)
		}
	}
}

// look learns the pods' addresses and says who is not ready yet.
func (w *world) look(ctx context.Context, pods []pod) (missing string, err error) {
	have, err := lab.Get[*corev1.Pod](ctx, w.lab.Client, namespace, "")
	if err != nil {
		return "", err
	}
	byName := map[string]*corev1.Pod{}
	for _, p := range have {
		byName[p.Name] = p
	}
	for _, want := range pods {
		p := byName[want.Name]
		switch {
		case p == nil || p.Status.PodIP == "":
			return "pod " + want.Name + " has no address", nil
		case w.mesh() && !want.Outside && p.Annotations[redirection] != "enabled":
			return "pod " + want.Name + " is not in the mesh", nil
		}
		w.ips[want.Name] = p.Status.PodIP
	}
	return "", nil
}

// addr is where a pod's load port is reached.
func (w *world) addr(pod string) string {
	if a := w.via[pod]; a != "" {
		return a
	}
	return net.JoinHostPort(w.ips[pod], strconv.Itoa(loadPort))
}

func target(pod string) lab.Target { return lab.Target{Namespace: namespace, Name: pod} }

// ztunnel is a node's proxy pod.
func ztunnel(node string) lab.Target {
	return lab.Target{Namespace: "istio-system", Name: "ztunnel-" + node}
}

// proxies are the processes of a node's proxy or a waypoint, as the host sees
// them. They are looked for before every block: one that crashed has another
// number.
type proxies map[string][]int // node or gateway -> process ids

func (w *world) proxies(table account.Table) (proxies, error) {
	if !w.proxied() {
		return proxies{}, nil
	}
	out := proxies{}
	for pid := range table.Tree(w.pid) {
		env, err := account.Environ(pid)
		if err != nil {
			continue // ended, or not a component's
		}
		place, ok := strings.CutPrefix(env["POD_NAME"], "ztunnel-")
		if !ok {
			place = waypointOf(podOf(pid, env))
		}
		if place != "" && !besideProxy(pid) {
			out[place] = append(out[place], pid)
		}
	}
	return out, w.missing(out)
}

func (w *world) lastWords(place string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var b bytes.Buffer
	if err := w.lab.Logs(ctx, &b, w.pod(ctx, place), false, 3); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(b.String())
}

// fetch asks one of the proxy's own HTTP ports, from inside its pod.
func (w *world) fetch(ctx context.Context, place, url string) (string, error) {
	return w.fetchWithin(ctx, place, url, 5*time.Second)
}

// fetchWithin is fetch for what takes its time.
func (w *world) fetchWithin(ctx context.Context, place, url string, limit time.Duration) (string, error) {
	out, err := w.lab.Run(ctx, w.pod(ctx, place), "marrow", "perf-load", "fetch", "--timeout", limit.String(), url)
	if err != nil {
		return "", err
	}
	if out.Exit != 0 {
		return "", errors.New(strings.TrimSpace(string(out.Stderr)))
	}
	return string(out.Stdout), nil
}
