package telemetry

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
)

// TestCustomSeries: labels of a configuration's own beside the standard series of the same name, labels that are taken away, and
// metrics that are turned off.
func TestCustomSeries(t *testing.T) {
	r := prometheus.NewRegistry()
	tel := New(r, &bytes.Buffer{})
	plain := &Request{Protocol: "grpc", Code: 200, Flags: "-", Duration: time.Millisecond, Received: 7, Sent: 9, Asked: 2, Told: 3}
	tel.Request(plain)
	w := &[table.MetricCount]table.Counted{}
	w[table.RequestCount] = table.Counted{Set: map[string]string{"team": "a", "request_protocol": "x"}, Gone: map[string]bool{"source_principal": true}}
	w[table.RequestDuration] = table.Counted{Off: true}
	w[table.RequestSize] = table.Counted{Set: map[string]string{"team": "a"}}
	w[table.ResponseSize] = table.Counted{Set: map[string]string{"request_protocol": "x"}}
	w[table.ResponseMessages] = table.Counted{Off: true}
	custom := *plain
	custom.Wanted = w
	tel.Request(&custom)
	tel.Request(&custom)
	count := series(t, r, "istio_requests_total")
	if len(count) != 2 {
		t.Fatalf("requests: %v", count)
	}
	for _, m := range count {
		switch label(m, "team") {
		case "a":
			if m.GetCounter().GetValue() != 2 || label(m, "request_protocol") != "x" || label(m, "response_code") != "200" || len(m.GetLabel()) != 25 {
				t.Errorf("with labels of its own: %v", m)
			}
		default:
			if m.GetCounter().GetValue() != 1 || label(m, "source_principal") != "unknown" || len(m.GetLabel()) != 25 {
				t.Errorf("standard: %v", m)
			}
		}
	}
	if d := series(t, r, "istio_request_duration_milliseconds"); len(d) != 1 || d[0].GetHistogram().GetSampleCount() != 1 {
		t.Errorf("a metric that is off: %v", d)
	}
	if s := series(t, r, "istio_request_bytes"); len(s) != 2 || s[0].GetHistogram().GetSampleSum()+s[1].GetHistogram().GetSampleSum() != 21 {
		t.Errorf("sizes: %v", s)
	}
	if s := series(t, r, "istio_response_bytes"); len(s) != 2 {
		t.Errorf("other values of the standard labels: %v", s)
	}
	if s := series(t, r, "istio_request_messages_total"); len(s) != 1 || s[0].GetCounter().GetValue() != 6 {
		t.Errorf("messages: %v", s)
	}
	if s := series(t, r, "istio_response_messages_total"); len(s) != 1 || s[0].GetCounter().GetValue() != 3 {
		t.Errorf("messages that are off: %v", s)
	}
	tcp := &[table.MetricCount]table.Counted{}
	tcp[table.TCPOpened] = table.Counted{Off: true}
	tcp[table.TCPReceived] = table.Counted{Set: map[string]string{"team": "a"}}
	tel.Open(func() *Conn { return nil })(&Conn{Flags: "-", Received: 5, Sent: 4, Wanted: tcp})
	if s := series(t, r, "istio_tcp_connections_opened_total"); len(s) != 0 {
		t.Errorf("opened: %v", s)
	}
	if s := series(t, r, "istio_tcp_received_bytes_total"); len(s) != 1 || label(s[0], "team") != "a" || s[0].GetCounter().GetValue() != 5 {
		t.Errorf("received: %v", s)
	}
	if s := series(t, r, "istio_tcp_connections_closed_total"); len(s) != 1 {
		t.Errorf("closed: %v", s)
	}
}

// TestCustomSeriesAreBounded: whatever clients make of a label, there are so many series at most, and nothing goes uncounted.
func TestCustomSeriesAreBounded(t *testing.T) {
	r := prometheus.NewRegistry()
	tel := New(r, &bytes.Buffer{})
	const more = 50
	for i := range maxSeries + more {
		w := &[table.MetricCount]table.Counted{}
		for m := range w {
			w[m] = table.Counted{Off: table.Metric(m) != table.RequestCount, Set: map[string]string{"path": fmt.Sprint(i)}}
		}
		tel.Request(&Request{Protocol: "http", Code: 200, Flags: "-", Wanted: w})
	}
	all := series(t, r, "istio_requests_total")
	for _, m := range all {
		if label(m, "path") == overflow && m.GetCounter().GetValue() == more {
			if len(all) != maxSeries+1 {
				t.Errorf("%d series", len(all))
			}
			return
		}
	}
	t.Errorf("%d series, and none for the rest", len(all))
}
