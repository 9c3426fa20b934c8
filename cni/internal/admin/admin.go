package admin

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
)

// Metrics counts what happens to pods.
type Metrics struct {
	pods    *prometheus.GaugeVec
	moves   *prometheus.CounterVec
	proxies *prometheus.GaugeVec
}

// NewMetrics registers the agent's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	return &Metrics{
		pods:    obs.Gauge(r, "marrow_cni_pods", "Pods of this node that are pending or enrolled.", "state"),
		moves:   obs.Counter(r, "marrow_cni_pod_changes_total", "Pods that went from one state to another.", "from", "to"),
		proxies: obs.Gauge(r, "marrow_cni_ztunnel_connections", "Node proxies that are connected."),
	}
}

// Moved notes that a pod changed its state.
func (m *Metrics) Moved(from, to string) {
	m.moves.WithLabelValues(from, to).Inc()
	if from != "outside" {
		m.pods.WithLabelValues(from).Dec()
	}
	if to != "outside" {
		m.pods.WithLabelValues(to).Inc()
	}
}

// Proxies notes how many proxies are connected.
func (m *Metrics) Proxies(n int) { m.proxies.WithLabelValues().Set(float64(n)) }

// Public is what the node's network may see: readiness and metrics.
func Public(ready *run.Ready, g prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if waits := ready.Pending(); len(waits) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprintf(w, "not ready, pending: %s\n", strings.Join(waits, ", "))
			return
		}
		_, _ = fmt.Fprintln(w, "ready")
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.Handle("GET /metrics", obs.Metrics(g))
	return mux
}

// Private is the admin pages, for loopback.
func Private(levels *obs.Levels, quit func(), dump func() any) http.Handler {
	return obs.NewAdmin(obs.AdminConfig{
		Title: "Marrow node agent", Levels: levels, Quit: quit,
		Dump: func() (any, error) { return dump(), nil },
	})
}
