package telemetry

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Peer is one end of a request.
type Peer struct {
	Workload  upstream.Workload
	Principal string // "spiffe://…"; empty = none
}

// Reporter says from which place a request or a connection is told.
type Reporter uint8

// Reporters.
const (
	Waypoint Reporter = iota // between the two
	Gateway                  // it takes in who has no identity, and is the source of what happens in the mesh
)

// name is the label's value: Istio's dashboards know no gateways, only ends.
func (r Reporter) name() string {
	if r == Gateway {
		return "source"
	}
	return "waypoint"
}

// Request is one finished request.
type Request struct {
	Reporter            Reporter
	Source, Destination Peer
	Service             upstream.Service
	Protocol            string // http or grpc
	Code                int
	GRPC                string // status; empty = none
	Flags               string
	Mutual              bool
	Duration            time.Duration
	Received, Sent      int64 // bytes, headers included
	Asked, Told         int64 // gRPC messages from and to the client
	Wanted              Wanted
}

// Conn is one opaque connection; Received counts the bytes from the client.
type Conn struct {
	Reporter            Reporter
	Source, Destination Peer
	Service             upstream.Service
	Flags               string
	Mutual              bool
	Received, Sent      int64
	Wanted              Wanted
}

// Telemetry owns the series and the log's writer.
type Telemetry struct {
	std    [table.MetricCount]family
	custom customs
	limits *prometheus.CounterVec
	found  found

	policies policySeries

	mu    sync.Mutex
	out   io.Writer
	conns map[*live]struct{}
}

// buckets are Envoy's.
func buckets() []float64 {
	return []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}
}

func commonLabels() []string {
	return []string{
		"reporter", "source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
		"source_canonical_service", "source_canonical_revision", "source_cluster", "destination_workload",
		"destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
		"destination_canonical_service", "destination_canonical_revision", "destination_service", "destination_service_name",
		"destination_service_namespace", "destination_cluster", "request_protocol", "response_flags", "connection_security_policy",
	}
}

// New registers the series with r; lines go to out.
func New(r prometheus.Registerer, out io.Writer) *Telemetry {
	http, tcp := append(commonLabels(), "response_code", "grpc_response_status"), commonLabels()
	t := &Telemetry{limits: limitSeries(r), policies: newPolicySeries(r), out: out, conns: map[*live]struct{}{}}
	counter := func(m table.Metric, name, help string, labels []string) {
		t.std[m] = family{name: name, help: help, labels: labels, counter: obs.Counter(r, name, help, labels...)}
	}
	sizes := func(m table.Metric, name, help string) {
		t.std[m] = family{name: name, help: help, labels: http, sizes: obs.Histogram(r, name, help, buckets(), http...)}
	}
	counter(table.RequestCount, "istio_requests_total", "Finished requests.", http)
	sizes(table.RequestDuration, "istio_request_duration_milliseconds", "Time from the first byte in to the last byte out.")
	sizes(table.RequestSize, "istio_request_bytes", "Bytes of requests, headers included.")
	sizes(table.ResponseSize, "istio_response_bytes", "Bytes of responses, headers included.")
	counter(table.RequestMessages, "istio_request_messages_total", "gRPC messages from clients.", http)
	counter(table.ResponseMessages, "istio_response_messages_total", "gRPC messages to clients.", http)
	counter(table.TCPOpened, "istio_tcp_connections_opened_total", "Opaque connections opened.", tcp)
	counter(table.TCPClosed, "istio_tcp_connections_closed_total", "Opaque connections closed.", tcp)
	counter(table.TCPReceived, "istio_tcp_received_bytes_total", "Bytes from clients on opaque connections.", tcp)
	counter(table.TCPSent, "istio_tcp_sent_bytes_total", "Bytes to clients on opaque connections.", tcp)
	r.MustRegister(&t.custom)
	return t
}

func known(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func labels(by Reporter, src, dst Peer, svc upstream.Service, protocol, flags string, mutual bool) []string {
	policy := "none"
	switch {
	case by == Gateway:
		policy = "" // of the way to the endpoint, which the other end reports
	case mutual:
		policy = "mutual_tls"
	}
	s, d := src.Workload, dst.Workload
	app := func(w upstream.Workload) string { return known(first(w.App, w.CanonicalName)) }
	version := func(w upstream.Workload) string { return known(first(w.Version, w.Revision)) }
	return []string{
		by.name(), known(s.Name), known(s.Namespace), known(src.Principal), app(s), version(s),
		known(s.CanonicalName), revision(s), known(s.Cluster), known(d.Name),
		known(d.Namespace), known(dst.Principal), app(d), version(d),
		known(d.CanonicalName), revision(d), known(svc.Host), known(svc.Name),
		known(svc.Namespace), known(d.Cluster), protocol, flags, known(policy),
	}
}

// revision of a workload that is known and says none is Istio's default.
func revision(w upstream.Workload) string {
	if w.Revision == "" && w.Name != "" {
		return "latest"
	}
	return known(w.Revision)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// Request counts a finished request.
func (t *Telemetry) Request(r *Request) {
	if r.Wanted != nil {
		t.requestAs(r, requestLabels(r))
		return
	}
	s := t.seriesOf(r)
	s.requests.Inc()
	s.duration.Observe(milliseconds(r.Duration))
	s.received.Observe(float64(r.Received))
	s.sent.Observe(float64(r.Sent))
	if r.Protocol == "grpc" {
		s.messages[0].Add(float64(r.Asked))
		s.messages[1].Add(float64(r.Told))
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// live is an open connection whose bytes are counted now and then.
type live struct {
	now func() *Conn

	mu             sync.Mutex
	opened         bool
	received, sent int64 // counted so far
}

// Open begins a connection; now is asked for its state while it is open, and answers nil while there is nothing to tell. done has to
// be called at the end.
func (t *Telemetry) Open(now func() *Conn) (done func(*Conn)) {
	l := &live{now: now}
	t.mu.Lock()
	t.conns[l] = struct{}{}
	t.mu.Unlock()
	return func(c *Conn) {
		t.mu.Lock()
		delete(t.conns, l)
		t.mu.Unlock()
		t.count(l, c)
		t.conn(c, table.TCPClosed, connLabels(c), 1)
	}
}

func connLabels(c *Conn) []string {
	return labels(c.Reporter, c.Source, c.Destination, c.Service, "tcp", c.Flags, c.Mutual)
}

// count adds what came since the last time.
func (t *Telemetry) count(l *live, c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	values := connLabels(c)
	if !l.opened {
		l.opened = true
		t.conn(c, table.TCPOpened, values, 1)
	}
	t.conn(c, table.TCPReceived, values, float64(c.Received-l.received))
	t.conn(c, table.TCPSent, values, float64(c.Sent-l.sent))
	l.received, l.sent = c.Received, c.Sent
}

func (t *Telemetry) conn(c *Conn, m table.Metric, values []string, n float64) {
	if c.Wanted != nil {
		t.countAs(&c.Wanted[m], &t.std[m], values, n)
		return
	}
	t.std[m].add(values, n)
}

// Report counts the bytes of open connections every interval, until ctx ends.
func (t *Telemetry) Report(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			t.reportOpen()
		}
	}
}

func (t *Telemetry) reportOpen() {
	t.mu.Lock()
	open := make([]*live, 0, len(t.conns))
	for l := range t.conns {
		open = append(open, l)
	}
	t.mu.Unlock()
	for _, l := range open {
		if c := l.now(); c != nil {
			t.count(l, c)
		}
	}
}

// Line writes one line of the access log.
func (t *Telemetry) Line(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = io.WriteString(t.out, s) // a log that cannot be written is not worth a request
}
