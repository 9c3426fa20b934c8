package telemetry

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

func series(t *testing.T, r *prometheus.Registry, name string) []*dto.Metric {
	t.Helper()
	fs, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		if f.GetName() == name {
			return f.GetMetric()
		}
	}
	return nil
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return "(no label)"
}

func TestRequestLabels(t *testing.T) {
	r := prometheus.NewRegistry()
	tel := New(r, &bytes.Buffer{})
	tel.Request(&Request{
		Source:  Peer{Workload: upstream.Workload{Name: "client", Namespace: "shop", CanonicalName: "client", Revision: "v1", Cluster: "c1"}, Principal: "spiffe://td/ns/shop/sa/client"},
		Service: upstream.Service{Host: "web.shop.svc.cluster.local", Name: "web", Namespace: "shop"}, Protocol: "http", Code: 403, Flags: "-", Mutual: true,
		Duration: 7 * time.Millisecond,
	})
	ms := series(t, r, "istio_requests_total")
	if len(ms) != 1 || ms[0].GetCounter().GetValue() != 1 {
		t.Fatalf("got %v", ms)
	}
	for k, want := range map[string]string{
		"reporter": "waypoint", "source_workload": "client", "source_principal": "spiffe://td/ns/shop/sa/client", "source_app": "client",
		"source_version": "v1", "destination_workload": "unknown", "destination_principal": "unknown", "destination_service": "web.shop.svc.cluster.local",
		"destination_service_name": "web", "response_code": "403", "response_flags": "-", "connection_security_policy": "mutual_tls",
		"grpc_response_status": "", "request_protocol": "http",
	} {
		if got := label(ms[0], k); got != want {
			t.Errorf("%s: got %q, want %q", k, got, want)
		}
	}
	if got := revision(upstream.Workload{Name: "web"}); got != "latest" {
		t.Errorf("revision of a known workload: %q", got)
	}
	h := series(t, r, "istio_request_duration_milliseconds")
	if len(h) != 1 || h[0].GetHistogram().GetSampleSum() != 7 || len(h[0].GetHistogram().GetBucket()) != 19 {
		t.Errorf("duration: %v", h)
	}
}

func TestConnBytesAddUp(t *testing.T) {
	r := prometheus.NewRegistry()
	tel := New(r, &bytes.Buffer{})
	now := &Conn{Flags: "-"}
	done := tel.Open(func() *Conn { return now })
	for range 3 {
		now = &Conn{Flags: "-", Received: now.Received + 10, Sent: now.Sent + 1}
		tel.reportOpen()
		tel.reportOpen()
	}
	done(&Conn{Flags: "-", Received: 35, Sent: 3})
	for name, want := range map[string]float64{
		"istio_tcp_received_bytes_total": 35, "istio_tcp_sent_bytes_total": 3, "istio_tcp_connections_opened_total": 1, "istio_tcp_connections_closed_total": 1,
	} {
		if ms := series(t, r, name); len(ms) != 1 || ms[0].GetCounter().GetValue() != want {
			t.Errorf("%s: got %v, want %v", name, ms, want)
		}
	}
	tel.Open(func() *Conn { return nil })
	tel.reportOpen() // nothing to tell yet is no reason to fall over
}

func TestLinesAreWhole(t *testing.T) {
	var out bytes.Buffer
	tel := New(prometheus.NewRegistry(), &out)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 50 {
				tel.Line("0123456789\n")
			}
		})
	}
	wg.Wait()
	for l := range strings.Lines(out.String()) {
		if l != "0123456789\n" {
			t.Fatalf("line %q", l)
		}
	}
}

// TestGatewayReportsAsSource: what Istio's gateways say, and says nothing of how the endpoint was reached.
func TestGatewayReportsAsSource(t *testing.T) {
	r := prometheus.NewRegistry()
	tel := New(r, &bytes.Buffer{})
	tel.Request(&Request{Reporter: Gateway, Source: Peer{Workload: upstream.Workload{Name: "front-istio"}}, Protocol: "http", Code: 200, Flags: "-", Mutual: true})
	tel.Request(&Request{Source: Peer{Workload: upstream.Workload{Name: "front-istio"}}, Protocol: "http", Code: 200, Flags: "-", Mutual: true})
	tel.Open(func() *Conn { return nil })(&Conn{Reporter: Gateway, Flags: "-"})
	ms := append(series(t, r, "istio_requests_total"), series(t, r, "istio_tcp_connections_closed_total")...)
	got := map[string]string{}
	for _, m := range ms {
		got[label(m, "reporter")+" "+label(m, "request_protocol")] = label(m, "connection_security_policy")
	}
	if len(ms) != 3 || got["source http"] != "unknown" || got["waypoint http"] != "mutual_tls" || got["source tcp"] != "unknown" {
		t.Errorf("%d series, %v", len(ms), got)
	}
}
