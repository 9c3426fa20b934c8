package app

import (
	"encoding/json"
	"net/http"
	"sort"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/istiod-lite/internal/publish"
	"github.com/marrowmesh/marrow/istiod-lite/internal/serve"
)

// metrics have the names that Istio's dashboards know.
type metrics struct {
	registry  *prometheus.Registry
	refused   *prometheus.CounterVec
	nacks     *prometheus.CounterVec
	requests  *prometheus.CounterVec
	failures  *prometheus.CounterVec
	successes *prometheus.CounterVec
}

func newMetrics() *metrics {
	r := obs.NewRegistry("pilot", "")
	return &metrics{
		registry:  r,
		refused:   obs.Counter(r, "pilot_xds_refused_streams_total", "Discovery streams that were refused"),
		nacks:     obs.Counter(r, "pilot_total_xds_rejects", "Responses that a client refused, by type", "type"),
		requests:  obs.Counter(r, "citadel_server_csr_count", "Certificate requests"),
		failures:  obs.Counter(r, "citadel_server_authentication_failure_count", "Certificate requests that were refused"),
		successes: obs.Counter(r, "citadel_server_success_cert_issuance_count", "Certificates issued"),
	}
}

// watch adds the number of connected clients.
func (m *metrics) watch(s *xds.Server) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "pilot_xds", Help: "Clients connected by xDS"}, func() float64 { return float64(len(s.Clients())) }))
}

// monitorMux is what anybody may see.
func monitorMux(m *metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", obs.Metrics(m.registry))
	mux.Handle("/version", page(func(*http.Request) (any, error) { return obs.BuildInfo(""), nil }))
	return mux
}

// debugPages tell what the mesh looks like, so they are for loopback only.
func debugPages(s *xds.Server, served *publish.Store) map[string]http.Handler {
	return map[string]http.Handler{
		// Who is connected and how far each is: the answer to "did my change arrive?".
		"/debug/syncz": page(func(*http.Request) (any, error) { return s.Clients(), nil }),
		// What is served now; ?scope= and ?type= choose.
		"/debug/served": page(func(r *http.Request) (any, error) { return dump(served, r) }),
	}
}

func page(fn func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := fn(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(v) // a reader that left needs no answer
	})
}

// dump shows resources as JSON by name; secrets are never among them.
func dump(served *publish.Store, r *http.Request) (any, error) {
	scope, url := r.URL.Query().Get("scope"), r.URL.Query().Get("type")
	if scope == "" {
		scope = serve.MeshScope
	}
	if strings.HasPrefix(scope, "secret/") {
		return map[string]string{}, nil
	}
	types := waypointTypes()
	if scope == serve.MeshScope {
		types = []string{xds.AddressType, xds.AuthorizationType}
	}
	out := map[string]map[string]json.RawMessage{}
	for _, t := range types {
		if url != "" && url != t || t == xds.SecretType {
			continue
		}
		list := served.List(scope, t)
		sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
		out[t] = map[string]json.RawMessage{}
		for _, res := range list {
			text, err := protojson.Marshal(res.Body)
			if err != nil {
				return nil, err
			}
			out[t][res.Name] = text
		}
	}
	return out, nil
}
