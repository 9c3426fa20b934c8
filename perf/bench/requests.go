package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/perf/account"
	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/scenario"
)

// A lab for requests has two pods and, between them, one waypoint for each
// number of routes. Each waypoint serves a service with policies; the one with
// one route serves a second without. The node proxies are ours with all
// implementations: what differs is the waypoint.

// gateway is the name of the waypoint with n routes.
func gateway(n int) string { return "waypoint-" + strconv.Itoa(n) }

// service is what a scenario's client asks.
func service(t scenario.Through) string {
	name := "routes-" + strconv.Itoa(t.Routes)
	if t.Open {
		name += "-open"
	}
	return name
}

// Ports of every service, by protocol: the name tells the mesh what is spoken.
func servicePort(p load.Protocol) int {
	switch p {
	case load.HTTP2:
		return 81
	case load.GRPC:
		return 82
	case load.HTTP1:
	}
	return 80
}

// requestsYAML has one pod behind all services, each with a waypoint of its own: were the waypoints required (ADR 16), each service would
// close the pod to the others' proxies.
const requestsYAML = `{{range .Counts}}---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint-{{.}}, namespace: {{$.Namespace}}, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
{{end}}{{range .Services}}---
apiVersion: v1
kind: Service
metadata: {name: {{.Name}}, namespace: {{$.Namespace}}, labels: {istio.io/use-waypoint: waypoint-{{.Routes}}, policy.marrow.io/waypoint-optional: "true"}}
spec:
  selector: {app: server-1}
  ports:
    - {name: http, port: 80, targetPort: {{$.Port}}}
    - {name: http2, port: 81, targetPort: {{$.Port}}}
    - {name: grpc, port: 82, targetPort: {{$.Port}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: {{.Name}}, namespace: {{$.Namespace}}}
spec:
  hosts: [{{.Host}}]
  http:
{{- range .Prefixes}}
    - {match: [{uri: {prefix: {{.Prefix}}}}], route: [{destination: {host: {{.Host}}}}]}
{{- end}}
{{if not .Open}}---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: {{.Name}}-deny, namespace: {{$.Namespace}}}
spec:
  targetRefs: [{kind: Service, group: "", name: {{.Name}}}]
  action: DENY
  rules:
    - to: [{operation: {paths: ["/admin/*", "/internal/*"]}}]
    - when: [{key: "request.headers[x-debug]", values: ["*"]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: {{.Name}}-allow, namespace: {{$.Namespace}}}
spec:
  targetRefs: [{kind: Service, group: "", name: {{.Name}}}]
  action: ALLOW
  rules:
    - from: [{source: {namespaces: [elsewhere]}}]
      to: [{operation: {methods: [PUT]}}]
    - from: [{source: {principals: ["cluster.local/ns/{{$.Namespace}}/sa/client-1"]}}]
      to: [{operation: {methods: [GET, POST]}}]
{{end}}{{end}}`

type requestService struct {
	Name, Host string
	Routes     int
	Open       bool
	Prefixes   []prefixRoute
}

type prefixRoute struct{ Prefix, Host string }

// requestsManifest is everything of such a lab but its pods.
func requestsManifest() ([]byte, error) {
	var services []requestService
	add := func(t scenario.Through) {
		s := requestService{Name: service(t), Routes: t.Routes, Open: t.Open, Host: service(t) + "." + namespace + ".svc.cluster.local"}
		for i := range t.Routes {
			p := prefixRoute{Prefix: scenario.RoutePrefix(i), Host: s.Host}
			if t.Routes == 1 {
				p.Prefix = "/"
			}
			s.Prefixes = append(s.Prefixes, p)
		}
		services = append(services, s)
	}
	add(scenario.Through{Routes: 1, Open: true})
	for _, n := range scenario.RouteCounts() {
		add(scenario.Through{Routes: n})
	}
	var out bytes.Buffer
	t, err := template.New("requests").Parse(requestsYAML)
	if err == nil {
		err = t.Execute(&out, map[string]any{"Namespace": namespace, "Port": loadPort, "Counts": scenario.RouteCounts(), "Services": services})
	}
	if err != nil {
		return nil, fmt.Errorf("write the waypoints' manifest: %w", err)
	}
	return out.Bytes(), nil
}

// interposeWaypoints makes the waypoints and waits until requests go through
// each of them.
func (w *world) interposeWaypoints(ctx context.Context) error {
	yaml, err := requestsManifest()
	if err != nil {
		return err
	}
	if _, err := w.lab.Apply(ctx, "perf-requests", yaml); err != nil {
		return err
	}
	if err := w.lab.WaitReady(ctx, startTime); err != nil {
		return err
	}
	have, err := lab.Get[*corev1.Service](ctx, w.lab.Client, namespace, "")
	if err != nil {
		return err
	}
	for _, s := range have {
		w.services[s.Name] = s.Spec.ClusterIP
	}
	for _, n := range scenario.RouteCounts() {
		if err := w.throughWaypoint(ctx, scenario.Through{Routes: n}); err != nil {
			return err
		}
	}
	return w.throughWaypoint(ctx, scenario.Through{Routes: 1, Open: true})
}

// throughWaypoint waits until a service's requests are answered, and use CPU of its waypoint.
func (w *world) throughWaypoint(ctx context.Context, t scenario.Through) error {
	for {
		s := scenario.Scenario{Through: t, Load: load.Spec{Kind: load.Requests, Protocol: load.HTTP1, Conns: 1, Path: t.RequestPath()}}
		err := w.requestOnce(ctx, s)
		if err == nil {
			return nil
		}
		if wait(ctx, 100*time.Millisecond) != nil {
			return fmt.Errorf("requests to %s: %w", service(t), err)
		}
	}
}

func (w *world) requestOnce(ctx context.Context, s scenario.Scenario) error {
	loads, err := w.loads(s)
	if err != nil {
		return err
	}
	table, err := account.ReadTable()
	if err != nil {
		return err
	}
	pids, err := w.proxies(table)
	if err != nil {
		return err
	}
	before, err := usage(pids)
	if err != nil {
		return err
	}
	if err := w.touch(ctx, loads[0].pod, loads[0].spec); err != nil {
		return err
	}
	after, err := usage(pids)
	name := gateway(s.Through.Routes)
	if err == nil && after[name].CPU-before[name].CPU < time.Millisecond {
		err = fmt.Errorf("waypoint %s used no CPU: requests go another way", name)
	}
	return err
}

// serviceAddr is where a scenario's requests go: to its service in a lab with
// waypoints, else to the pod.
func (w *world) serviceAddr(s scenario.Scenario) string {
	ip, ok := w.services[service(s.Through)]
	if !ok {
		return w.addr(server(0))
	}
	return net.JoinHostPort(ip, strconv.Itoa(servicePort(s.Load.Protocol)))
}

// waypointOf tells the gateway of a process by its pod's name; empty = it is no
// waypoint.
func waypointOf(pod string) string {
	for _, n := range scenario.RouteCounts() {
		if rest, ok := strings.CutPrefix(pod, gateway(n)+"-"); ok && strings.Count(rest, "-") <= 1 {
			return gateway(n)
		}
	}
	return ""
}

// podOf is the name of the pod that a process runs in, as far as it shows. A
// stock Envoy has no environment; its bootstrap names the node, and that the pod.
func podOf(pid int, env map[string]string) string {
	if name := env["POD_NAME"]; name != "" || filepath.Base(account.Program(pid)) != envoy {
		return name
	}
	_, id, _ := strings.Cut(account.Arguments(pid), "waypoint~")
	if parts := strings.SplitN(id, "~", 3); len(parts) == 3 {
		name, _, _ := strings.Cut(parts[1], ".")
		return name
	}
	return ""
}

// gateways are the names of the lab's waypoints.
func gateways() []string {
	var out []string
	for _, n := range scenario.RouteCounts() {
		out = append(out, gateway(n))
	}
	return out
}

// routes measures the memory of waypoints in a lab of their own.
func (b *bench) routes(ctx context.Context, i Impl, s scenario.Scenario) (m measured, err error) {
	w, err := b.fleet.up(ctx, labPrefix+i.Name+freshSuffix, i, ofRequests)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, b.fleet.release(ctx, w)) }()
	m = measured{metrics: map[string]float64{}}
	if m.noise.Calibration, err = b.calibrate(ctx); err != nil {
		return m, err
	}
	machine, err := account.ReadMachine()
	if err != nil {
		return m, err
	}
	for _, n := range scenario.RouteCounts() {
		s.Through = scenario.Through{Routes: n}
		s.Load.Path = s.Through.RequestPath()
		loads, err := w.loads(s)
		if err != nil {
			return m, err
		}
		ss, err := w.startAll(ctx, loads)
		if err != nil {
			return m, err
		}
		_, err = ss.phase(s.Measure / time.Duration(len(scenario.RouteCounts())))
		if err := errors.Join(err, ss.end()); err != nil {
			return m, err
		}
	}
	if err := wait(ctx, s.Wait); err != nil {
		return m, err
	}
	table, err := account.ReadTable()
	if err != nil {
		return m, err
	}
	pids, err := w.proxies(table)
	if err != nil {
		return m, err
	}
	h, err := w.holding(pids)
	if err != nil {
		return m, err
	}
	for _, n := range scenario.RouteCounts() {
		m.metrics[scenario.RSSMetric(n)] = float64(h.proxies[gateway(n)].RSS) / (1 << 20)
	}
	after, err := account.ReadMachine()
	m.noise.Steal, m.seconds = after.Stolen(machine), s.Measure.Seconds()
	return m, err
}

// ours says whether a process in a proxy's pod is a command of ours that may
// run there beside the proxy.
func besideProxy(pid int) bool { return filepath.Base(account.Program(pid)) == "marrow" }

// missing says which proxy of a lab does not run.
func (w *world) missing(have proxies) error {
	want := []string{nodeA, nodeB}
	if w.use == ofRequests && len(w.services) > 0 {
		want = slices.Concat(want, gateways())
	}
	for _, place := range want {
		if len(have[place]) == 0 {
			return fmt.Errorf("no proxy runs on %s; see its log: %s", place, w.lastWords(place))
		}
	}
	return nil
}

// pod is the one in which the proxy of a place runs: a node's or a waypoint.
func (w *world) pod(ctx context.Context, place string) lab.Target {
	if waypointOf(place+"-") == "" {
		return ztunnel(place)
	}
	have, err := lab.Get[*corev1.Pod](ctx, w.lab.Client, namespace, "")
	if err != nil {
		return lab.Target{Namespace: namespace, Name: place} // the caller is told that there is none
	}
	for _, p := range have {
		if waypointOf(p.Name) == place && p.DeletionTimestamp == nil {
			return target(p.Name)
		}
	}
	return target(place)
}

// inspectWaypoints writes down what the waypoints are.
func (b *bench) inspectWaypoints(ctx context.Context, w *world) {
	name := w.impl.Name
	version := "waypoint " + w.version(ctx, gateway(1))
	if have := b.machine.Versions[name]; have != "" {
		version = have + "; " + version
	}
	b.machine.Versions[name] = version
}
