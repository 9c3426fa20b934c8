//go:build lab

package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
)

// series is one line of a scrape.
type series struct {
	labels map[string]string
	value  float64
}

// metrics are a scrape's series by name.
type metrics map[string][]series

var (
	seriesLine = regexp.MustCompile(`^([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)`)
	labelPair  = regexp.MustCompile(`([a-zA-Z_]+)="((?:[^"\\]|\\.)*)"`)
)

// scrape reads port 15020 of a pod from a node, as Prometheus would.
func (w *world) scrape(ip string) metrics {
	w.t.Helper()
	got := in[fetched](w, "node-1", "fetch", "http://"+ip+":15020/metrics")
	if got.Status != 200 {
		w.t.Fatalf("scrape %s: %+v", ip, got)
	}
	out := metrics{}
	for line := range strings.Lines(got.Body) {
		m := seriesLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			w.t.Errorf("scrape %s: %q: %v", ip, line, err)
		}
		s := series{labels: map[string]string{}, value: v}
		for _, pair := range labelPair.FindAllStringSubmatch(m[2], -1) {
			s.labels[pair[1]] = pair[2]
		}
		out[m[1]] = append(out[m[1]], s)
	}
	return out
}

// with are the series of a name that have all these labels.
func (m metrics) with(name string, labels map[string]string) []series {
	return slices.DeleteFunc(slices.Clone(m[name]), func(s series) bool {
		for k, v := range labels {
			if s.labels[k] != v {
				return true
			}
		}
		return false
	})
}

func (m metrics) sum(name string, labels map[string]string) float64 {
	total := 0.0
	for _, s := range m.with(name, labels) {
		total += s.value
	}
	return total
}

// ztunnelIP is the address of a node's proxy.
func (w *world) ztunnelIP(node string) string {
	w.t.Helper()
	pods, err := lab.Get[*corev1.Pod](w.t.Context(), w.c, "istio-system", "ztunnel-"+node)
	if err != nil {
		w.t.Fatal(err)
	}
	return pods[0].Status.PodIP
}

// peers are the labels that both proxies' series share for traffic from client to the Service server.
func (w *world) peers() map[string]string {
	service := "server." + w.ns + ".svc.cluster.local"
	out := map[string]string{
		"destination_service": service, "destination_service_name": "server", "destination_service_namespace": w.ns,
		"source_principal": spiffe(w.ns, "client"), "destination_principal": spiffe(w.ns, "server"),
		"connection_security_policy": "mutual_tls", "response_flags": "-",
	}
	for side, name := range map[string]string{"source": "client", "destination": "server"} {
		for label, value := range map[string]string{
			"workload": name, "canonical_service": name, "canonical_revision": "v1", "workload_namespace": w.ns,
			"app": name, "version": "v1", "cluster": "Kubernetes",
		} {
			out[side+"_"+label] = value
		}
	}
	return out
}

// TestIdentityAndTelemetry: who spoke to whom is seen by the application, in the logs and in the metrics, exactly.
func TestIdentityAndTelemetry(t *testing.T) {
	w := newWorld(t, "observe", true)
	const n = 7
	began := time.Now()
	for _, service := range []string{"server", "near"} {
		if err := called(w.ask("client", "http://"+service+"/", "--count", strconv.Itoa(n)), w.podObject("client")); err != nil {
			t.Errorf("the application %s does not see its client's address: %v", service, err)
		}
	}
	t.Run("ztunnel metrics", func(t *testing.T) {
		for reporter, node := range map[string]string{"source": "node-1", "destination": "node-2"} {
			w.ztunnelSeries(t, reporter, w.ztunnelIP(node), n)
		}
	})
	t.Run("access log", func(t *testing.T) { w.accessLog(t, began) })
	t.Run("config dump", func(t *testing.T) { w.configDump(t) })
	t.Run("waypoint metrics", func(t *testing.T) { w.waypointSeries(t, n) })
}

func (w *world) ztunnelSeries(t *testing.T, reporter, ip string, n float64) {
	want := w.peers()
	want["reporter"], want["request_protocol"] = reporter, "tcp"
	zones := map[string]string{"source": "zone-1", "destination": "zone-2"}
	for side, zone := range zones {
		want[side+"_region"], want[side+"_zone"] = "lab", zone
	}
	pick := map[string]string{"destination_service": want["destination_service"], "reporter": reporter}
	var m metrics
	eventually(t, 5*time.Second, reporter+": all connections are counted", func() error {
		m = w.scrape(ip)
		if got := m.sum("istio_tcp_connections_closed_total", pick); got != n {
			return fmt.Errorf("%v closed", got)
		}
		return nil
	})
	for _, name := range []string{"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total", "istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"} {
		got := m.with(name, pick)
		if len(got) != 1 {
			t.Errorf("%s %s: %d series, want 1: %v", reporter, name, len(got), got)
			continue
		}
		if diff := cmp.Diff(want, got[0].labels); diff != "" {
			t.Errorf("%s %s: labels (-want +got):\n%s", reporter, name, diff)
		}
		if counts := strings.Contains(name, "connections"); (counts && got[0].value != n) || (!counts && got[0].value < 100*n) {
			t.Errorf("%s %s: %v after %v requests", reporter, name, got[0].value, n)
		}
	}
}

// accessLog wants Istio's fields in Istio's order.
func (w *world) accessLog(t *testing.T, since time.Time) {
	common := "src.addr src.workload src.namespace src.identity src.cluster dst.addr dst.hbone_addr dst.service dst.workload dst.namespace dst.identity dst.cluster direction bytes_sent bytes_recv duration"
	key := regexp.MustCompile(`(?:^|[\t ])([a-z_.]+)=`)
	for direction, node := range map[string]string{"outbound": "node-1", "inbound": "node-2"} {
		words := []string{
			"\taccess\tconnection complete\t", `direction="` + direction + `"`, `src.workload="client"`, `src.identity="` + spiffe(w.ns, "client") + `"`,
			`dst.identity="` + spiffe(w.ns, "server") + `"`, `dst.service="server.` + w.ns + `.svc.cluster.local"`,
			"dst.addr=" + w.ip("server").String() + ":15008", "dst.hbone_addr=" + w.ip("server").String() + ":8080", "src.addr=" + w.ip("client").String() + ":",
		}
		line := w.logLine(t, "ztunnel-"+node, since, words...)
		var fields []string
		for _, m := range key.FindAllStringSubmatch(line, -1) {
			fields = append(fields, m[1])
		}
		if got := strings.Join(fields, " "); got != common {
			t.Errorf("%s: fields %q, want %q in: %s", direction, got, common, line)
		}
	}
}

func (w *world) logLine(t *testing.T, name string, since time.Time, words ...string) string {
	t.Helper()
	var found string
	eventually(t, 3*time.Second, name+" logs it", func() error {
		var b strings.Builder
		if err := w.c.Logs(t.Context(), &b, component(name), false, 3000); err != nil {
			return err
		}
		for line := range strings.Lines(b.String()) {
			stamp, _, _ := strings.Cut(line, "\t")
			if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil && !at.Before(since) && containsAll(line, words) {
				found = strings.TrimSpace(line)
				return nil
			}
		}
		return fmt.Errorf("no line with %q", words)
	})
	return found
}

func (w *world) configDump(t *testing.T) {
	got := in[fetched](w, "istio-system/ztunnel-node-1", "fetch", "http://127.0.0.1:15000/config_dump")
	var dump map[string]json.RawMessage
	if err := json.Unmarshal([]byte(got.Body), &dump); err != nil {
		t.Fatalf("%d: %v", got.Status, err)
	}
	for _, key := range []string{"workloads", "services", "policies", "stagedServices", "staticConfig", "version", "config", "certificates", "workloadState"} {
		if _, ok := dump[key]; !ok {
			t.Errorf("no %q in the dump", key)
		}
	}
	for key, want := range map[string]string{
		"workloads": `"` + w.ns + `"`, "services": "server." + w.ns + ".svc.cluster.local", "certificates": spiffe(w.ns, "client"), "workloadState": `"client"`,
	} {
		if !strings.Contains(string(dump[key]), want) {
			t.Errorf("%s does not know %s", key, want)
		}
	}
	if strings.Contains(got.Body, "PRIVATE KEY") {
		t.Error("the dump holds a private key")
	}
	// Nobody reads it from elsewhere.
	if far := in[fetched](w, "node-1", "fetch", "http://"+w.ztunnelIP("node-1")+":15000/config_dump"); far.Error == "" {
		t.Errorf("the administration is open to the network: %d", far.Status)
	}
}

func (w *world) waypointSeries(t *testing.T, n int) {
	w.waypoint("observer", "--service", "server")
	wp := w.instance("observer")
	w.eventually(10*time.Second, "server by the waypoint", func() error { return called(w.ask("client", "http://server/", "--count", "1"), wp) })
	w.ask("client", "http://server/?status=503", "--count", strconv.Itoa(n), "--method", "POST")
	want := w.peers()
	want["reporter"], want["request_protocol"], want["response_code"], want["grpc_response_status"] = "waypoint", "http", "503", ""
	m := w.scrape(wp.Status.PodIP)
	got := m.with("istio_requests_total", map[string]string{"response_code": "503"})
	if len(got) != 1 {
		t.Fatalf("%d series of istio_requests_total with 503: %v", len(got), got)
	}
	if want["grpc_response_status"] == "" && got[0].labels["grpc_response_status"] == "" {
		delete(want, "grpc_response_status")
		delete(got[0].labels, "grpc_response_status") // an empty label and none are the same
	}
	if diff := cmp.Diff(want, got[0].labels); diff != "" {
		t.Errorf("istio_requests_total: labels (-want +got):\n%s", diff)
	}
	if got[0].value != float64(n) {
		t.Errorf("%v requests counted, want %d", got[0].value, n)
	}
	pick := map[string]string{"response_code": "503"}
	if c := m.sum("istio_request_duration_milliseconds_count", pick); c != float64(n) {
		t.Errorf("the duration histogram counts %v, want %d", c, n)
	}
	if b := len(m.with("istio_request_duration_milliseconds_bucket", pick)); b != 20 {
		t.Errorf("%d buckets, want 20", b)
	}
	// The onward connections are the waypoint's own, as its own identity.
	labels := map[string]string{"destination_workload": "server", "destination_workload_namespace": w.ns, "source_principal": spiffe(w.ns, "observer"), "reporter": "destination"}
	if got := w.scrape(w.ztunnelIP("node-2")).with("istio_tcp_connections_opened_total", labels); len(got) == 0 {
		t.Error("server's node never saw the waypoint's identity")
	}
}

// flips are the different answers of a page over time.
type flips struct {
	URL      string
	Duration time.Duration
}

func insideFlips(ctx context.Context, raw []byte) (any, error) {
	var a flips
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, err
	}
	var out []fetched
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for end := time.Now().Add(a.Duration); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var f fetched
		if resp, err := client.Get(a.URL); err != nil {
			f.Error = "no answer"
		} else {
			b := make([]byte, 200)
			n, _ := resp.Body.Read(b)
			_ = resp.Body.Close()
			f.Status, f.Body = resp.StatusCode, string(b[:n])
		}
		if len(out) == 0 || out[len(out)-1] != f {
			out = append(out, f)
		}
	}
	return out, ctx.Err()
}
