package telemetry

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
)

// Wanted is how a request or a connection counts where its chain wants other than the standard series; nil = as everything.
type Wanted = *[table.MetricCount]table.Counted

const (
	// maxSeries bounds what clients can make of one metric's labels that a configuration added.
	maxSeries = 2000
	// overflow is the value of such labels beyond that.
	overflow  = "overflow"
	separator = "\xff" // in no label's name or value: it is no UTF-8
)

// family is the series of one name with one set of labels.
type family struct {
	name, help string
	labels     []string
	counter    *prometheus.CounterVec
	sizes      *prometheus.HistogramVec
	shared     bool                // it is the standard one, which is gathered anyway
	seen       map[string]struct{} // values that there were, joined
}

func (f *family) add(values []string, n float64) {
	if f.counter != nil {
		f.counter.WithLabelValues(values...).Add(n)
		return
	}
	f.sizes.WithLabelValues(values...).Observe(n)
}

// customs holds the series that configurations asked for. No registry can know their labels before.
type customs struct {
	mu sync.Mutex
	of map[string]*family // by name and labels, joined
}

// Describe implements prometheus.Collector: nothing is known before.
func (*customs) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *customs) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	var all []prometheus.Collector
	for _, f := range c.of {
		switch {
		case f.shared:
		case f.counter != nil:
			all = append(all, f.counter)
		default:
			all = append(all, f.sizes)
		}
	}
	c.mu.Unlock()
	for _, v := range all {
		v.Collect(out)
	}
}

// countAs adds n to a metric in the way that is wanted. standard are the values of the standard labels.
func (t *Telemetry) countAs(w *table.Counted, std *family, standard []string, n float64) {
	if w.Off {
		return
	}
	var names, values, safe []string
	add := func(name, value, otherwise string) {
		names, values, safe = append(names, name), append(values, value), append(safe, otherwise)
	}
	for i, name := range std.labels {
		value, set := w.Set[name]
		switch {
		case w.Gone[name]:
		case set:
			add(name, value, overflow)
		default:
			add(name, standard[i], standard[i])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.Set)) {
		if !slices.Contains(std.labels, name) && !w.Gone[name] {
			add(name, w.Set[name], overflow)
		}
	}
	f, values := t.custom.find(std, names, values, safe)
	f.add(values, n)
}

// find makes the family when it is first needed, and says with which values to count: the safe ones when there are too many.
func (c *customs) find(std *family, names, values, safe []string) (*family, []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := std.name + separator + strings.Join(names, separator)
	f := c.of[key]
	if f == nil {
		f = &family{name: std.name, help: std.help, labels: names, seen: map[string]struct{}{}}
		switch {
		case slices.Equal(names, std.labels): // only values are others
			f.shared, f.counter, f.sizes = true, std.counter, std.sizes
		case std.counter != nil:
			f.counter = prometheus.NewCounterVec(prometheus.CounterOpts{Name: std.name, Help: std.help}, names)
		default:
			f.sizes = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: std.name, Help: std.help, Buckets: buckets()}, names)
		}
		if c.of == nil {
			c.of = map[string]*family{}
		}
		c.of[key] = f
	}
	v := strings.Join(values, separator)
	if _, is := f.seen[v]; is {
		return f, values
	}
	if len(f.seen) >= maxSeries {
		return f, safe
	}
	f.seen[v] = struct{}{}
	return f, values
}

// requestAs counts a finished request whose chain wants other than the standard series.
func (t *Telemetry) requestAs(r *Request, values []string) {
	count := func(m table.Metric, n float64) { t.countAs(&r.Wanted[m], &t.std[m], values, n) }
	count(table.RequestCount, 1)
	count(table.RequestDuration, milliseconds(r.Duration))
	count(table.RequestSize, float64(r.Received))
	count(table.ResponseSize, float64(r.Sent))
	if r.Protocol == "grpc" {
		count(table.RequestMessages, float64(r.Asked))
		count(table.ResponseMessages, float64(r.Told))
	}
}
