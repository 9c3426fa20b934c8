package telemetry

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// kind is what the labels of a request are made of: requests of one kind count in the same series.
type kind struct {
	by                  Reporter
	source, destination Peer
	service             upstream.Service
	protocol            string
	code                int
	grpc, flags         string
	mutual              bool
}

// seriesSet is the counters of one kind.
type seriesSet struct {
	requests                 prometheus.Counter
	duration, received, sent prometheus.Observer
	messages                 [2]prometheus.Counter // nil unless the kind is gRPC's
}

// found remembers series, so that two dozen labels are not made and hashed for each counter of each request.
type found struct {
	mu sync.RWMutex
	of map[kind]*seriesSet
}

// requestLabels are the values of a request's standard labels.
func requestLabels(r *Request) []string {
	return append(labels(r.Reporter, r.Source, r.Destination, r.Service, r.Protocol, r.Flags, r.Mutual), strconv.Itoa(r.Code), r.GRPC)
}

// maxFound bounds what is remembered; beyond it everything is looked up once more.
const maxFound = 4096

func (t *Telemetry) seriesOf(r *Request) *seriesSet {
	k := kind{r.Reporter, r.Source, r.Destination, r.Service, r.Protocol, r.Code, r.GRPC, r.Flags, r.Mutual}
	t.found.mu.RLock()
	s := t.found.of[k]
	t.found.mu.RUnlock()
	if s != nil {
		return s
	}
	l := requestLabels(r)
	counter := func(m table.Metric) prometheus.Counter { return t.std[m].counter.WithLabelValues(l...) }
	sizes := func(m table.Metric) prometheus.Observer { return t.std[m].sizes.WithLabelValues(l...) }
	s = &seriesSet{
		requests: counter(table.RequestCount), duration: sizes(table.RequestDuration),
		received: sizes(table.RequestSize), sent: sizes(table.ResponseSize),
	}
	if r.Protocol == "grpc" {
		s.messages = [2]prometheus.Counter{counter(table.RequestMessages), counter(table.ResponseMessages)}
	}
	t.found.mu.Lock()
	defer t.found.mu.Unlock()
	if t.found.of == nil || len(t.found.of) >= maxFound {
		t.found.of = map[kind]*seriesSet{}
	}
	t.found.of[k] = s
	return s
}
