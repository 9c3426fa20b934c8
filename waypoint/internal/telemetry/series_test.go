package telemetry

import (
	"io"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// TestSeriesAreFound: what is remembered is the right series, however many there are.
func TestSeriesAreFound(t *testing.T) {
	reg := prometheus.NewRegistry()
	tel := New(reg, io.Discard)
	const kinds = maxFound + 10
	for range 2 {
		for i := range kinds {
			tel.Request(&Request{Protocol: "http", Code: i, Flags: "-"})
		}
	}
	tel.Request(&Request{Protocol: "grpc", Code: 200, GRPC: "0", Flags: "-", Asked: 2, Told: 3})
	if n := len(tel.found.of); n > maxFound {
		t.Errorf("%d kinds are remembered", n)
	}
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	for _, f := range all {
		byName[f.GetName()] = f
	}
	ones := 0
	for _, m := range byName["istio_requests_total"].GetMetric() {
		if m.GetCounter().GetValue() != 2 {
			ones++
		}
	}
	if n := len(byName["istio_requests_total"].GetMetric()); n != kinds+1 || ones != 1 {
		t.Errorf("%d series, %d of them counted another number than two", n, ones)
	}
	for name, want := range map[string]float64{"istio_request_messages_total": 2, "istio_response_messages_total": 3} {
		if m := byName[name].GetMetric(); len(m) != 1 || m[0].GetCounter().GetValue() != want {
			t.Errorf("%s: %v", name, m)
		}
	}
	if n := testing.AllocsPerRun(100, func() { tel.Request(&Request{Protocol: "http", Code: 200, Flags: "-"}) }); n > 1 {
		t.Errorf("%v allocations to count a request", n)
	}
}
