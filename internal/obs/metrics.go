package obs

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

const (
	openMetricsType = "application/openmetrics-text;charset=utf-8;version=1.0.0"
	plainTextType   = "text/plain; charset=utf-8"
)

// NewRegistry makes a registry with the process and Go runtime collectors and
// istio_build{component,tag} 1.
func NewRegistry(component, tag string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	if tag == "" {
		tag = "unknown"
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "istio_build", Help: "Istio component build info."}, []string{"component", "tag"})
	build.WithLabelValues(component, tag).Set(1)
	r.MustRegister(build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Counter registers a counter with labels. Samples get the ending _total: give
// the name with it.
func Counter(r prometheus.Registerer, name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.MustRegister(c)
	return c
}

// Gauge registers a gauge with labels.
func Gauge(r prometheus.Registerer, name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	r.MustRegister(g)
	return g
}

// Histogram registers a histogram with labels and upper bounds.
func Histogram(r prometheus.Registerer, name, help string, bounds []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: bounds}, labels)
	r.MustRegister(h)
	return h
}

// Metrics answers with OpenMetrics text. The content type follows the Accept
// header, the body does not; gzip when the client takes it.
func Metrics(g prometheus.Gatherer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := Exposition(g)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", contentType(req.Header.Values("Accept")))
		w.Header().Set("Vary", "Accept, Accept-Encoding")
		if acceptsGzip(req.Header.Values("Accept-Encoding")) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(body)
			_ = z.Close()
			return
		}
		_, _ = w.Write(body)
	})
}

// Exposition is the OpenMetrics text of everything gathered.
func Exposition(g prometheus.Gatherer) ([]byte, error) {
	families, err := g.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather metrics: %w", err)
	}
	var buf bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToOpenMetrics(&buf, f); err != nil {
			return nil, fmt.Errorf("encode metric %s: %w", f.GetName(), err)
		}
	}
	if _, err := expfmt.FinalizeOpenMetrics(&buf); err != nil {
		return nil, fmt.Errorf("encode metrics: %w", err)
	}
	return buf.Bytes(), nil
}

func contentType(accept []string) string {
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		kind, _, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(kind), "application/openmetrics-text") {
			return openMetricsType
		}
	}
	return plainTextType
}

func acceptsGzip(enc []string) bool {
	for part := range strings.SplitSeq(strings.Join(enc, ","), ",") {
		name, params, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			q := strings.ReplaceAll(params, " ", "")
			return q != "q=0" && !strings.HasPrefix(q, "q=0.0")
		}
	}
	return false
}
