package flow

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// baseLabels are the labels of every TCP metric, in Istio's order.
var baseLabels = [...]string{ //nolint:gochecknoglobals // a constant table
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_service", "destination_service_namespace", "destination_service_name",
	"destination_workload", "destination_canonical_service", "destination_canonical_revision", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_cluster",
	"request_protocol", "response_flags", "connection_security_policy",
}

// placeLabels follow, all or none.
var placeLabels = [...]string{"source_region", "source_zone", "destination_region", "destination_zone"} //nolint:gochecknoglobals // a constant table

const flagLabel = 21 // index of response_flags

// labels is one series. It is comparable.
type labels struct {
	base  [len(baseLabels)]string
	place [len(placeLabels)]string
	// placed says that the series has the four labels of locality.
	placed bool
}

func (l labels) withFlag(f Flag) labels {
	l.base[flagLabel] = string(f)
	return l
}

func (l *labels) values() []string {
	if !l.placed {
		return l.base[:]
	}
	return append(append(make([]string, 0, len(l.base)+len(l.place)), l.base[:]...), l.place[:]...)
}

// family is one metric.
type family int

const (
	famOpened family = iota
	famClosed
	famFailed
	famSent
	famReceived
	families
)

// series holds the counters of one label set. A counter is exposed once it was touched.
type series struct {
	value   [families]atomic.Uint64
	touched [families]atomic.Bool
}

func (s *series) add(f family, n uint64) {
	s.value[f].Add(n)
	if !s.touched[f].Load() {
		s.touched[f].Store(true)
	}
}

// Metrics are the istio_tcp_* counters. They collect themselves: the label set of a series
// depends on what is known, which prometheus' own vectors do not allow.
type Metrics struct {
	mu     sync.RWMutex
	series map[labels]*series

	descs  [families][2]*prometheus.Desc
	sockDt *prometheus.Desc
	// sockets counts accepted sockets by reporter.
	sockets [2]atomic.Int64
}

// NewMetrics makes the counters and registers them.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{series: map[labels]*series{}}
	names := [families][2]string{
		famOpened:   {"istio_tcp_connections_opened_total", "The total number of TCP connections opened"},
		famClosed:   {"istio_tcp_connections_closed_total", "The total number of TCP connections closed"},
		famFailed:   {"istio_tcp_connections_failed_total", "The total number of TCP connections that failed (unstable)"},
		famSent:     {"istio_tcp_sent_bytes_total", "The size of total bytes sent during response in case of a TCP connection"},
		famReceived: {"istio_tcp_received_bytes_total", "The size of total bytes received during request in case of a TCP connection"},
	}
	for f, n := range names {
		m.descs[f][0] = prometheus.NewDesc(n[0], n[1], baseLabels[:], nil)
		m.descs[f][1] = prometheus.NewDesc(n[0], n[1], append(append([]string(nil), baseLabels[:]...), placeLabels[:]...), nil)
	}
	m.sockDt = prometheus.NewDesc("istio_tcp_sockets_open", "The number of accepted sockets that are open (unstable)", []string{"reporter"}, nil)
	if err := r.Register(m); err != nil {
		return nil, err
	}
	return m, nil
}

// Describe announces nothing: the collector is of the unchecked kind, since one name has two label sets.
func (m *Metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for l, s := range m.series {
		values := l.values()
		for f := range families {
			if !s.touched[f].Load() {
				continue
			}
			desc := m.descs[f][0]
			if l.placed {
				desc = m.descs[f][1]
			}
			out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(s.value[f].Load()), values...)
		}
	}
	for r := range m.sockets {
		out <- prometheus.MustNewConstMetric(m.sockDt, prometheus.GaugeValue, float64(m.sockets[r].Load()), Reporter(r).String())
	}
}

func (m *Metrics) at(l labels) *series {
	m.mu.RLock()
	s := m.series[l]
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s = m.series[l]; s == nil {
		s = &series{}
		m.series[l] = s
	}
	return s
}

// Socket counts an accepted socket until the returned function is called.
func (m *Metrics) Socket(r Reporter) (closed func()) {
	m.sockets[r].Add(1)
	return func() { m.sockets[r].Add(-1) }
}
