package spans

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/trace"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Bounds of what is held.
const (
	queueLen     = 8192 // spans that no collector has been chosen for yet
	senderLen    = 8192 // spans of one collector that wait to be sent
	batchLen     = 512  // spans of one request to a collector
	maxSenders   = 16   // collectors at a time
	defaultFlush = time.Second
	senderIdle   = time.Minute // a sender without spans ends after it
)

// Config is what an Exporter needs.
type Config struct {
	Upstreams *upstream.Store
	Rand      match.Rand
	Log       *obs.Logger
	Registry  prometheus.Registerer
	Flush     time.Duration // the longest wait of a span for others; 0 = a second
}

// Exporter sends spans.
type Exporter struct {
	cfg    Config
	in     chan *trace.Span
	counts *prometheus.CounterVec
	over   atomic.Bool // nobody reads in any more
}

// Outcomes of a span.
const (
	sent     = "sent"
	dropped  = "dropped"  // a queue was full
	rejected = "rejected" // by the collector
	failed   = "failed"   // the collector was not reached, or said no
)

// New makes an exporter; Run has to run.
func New(cfg Config) *Exporter {
	if cfg.Flush == 0 {
		cfg.Flush = defaultFlush
	}
	return &Exporter{
		cfg: cfg, in: make(chan *trace.Span, queueLen),
		counts: obs.Counter(cfg.Registry, "marrow_trace_spans_total", "Spans of sampled requests, by what became of them.", "cluster", "outcome"),
	}
}

// Add hands over a span. It never waits.
func (e *Exporter) Add(s *trace.Span) {
	if e.over.Load() {
		e.count(s.Provider, dropped, 1)
		return
	}
	select {
	case e.in <- s:
	default:
		e.count(s.Provider, dropped, 1)
	}
}

func (e *Exporter) count(p *trace.Provider, outcome string, n int) {
	if n > 0 {
		e.counts.WithLabelValues(p.Cluster, outcome).Add(float64(n))
	}
}

// Run hands spans to the senders of their collectors until ctx ends and what is queued has been sent.
func (e *Exporter) Run(ctx context.Context) error {
	g := run.NewGroup(context.WithoutCancel(ctx))
	senders := map[string]*sender{}
	idle := make(chan string, maxSenders) // each sender asks once
	for ctx.Err() == nil {
		select {
		case s := <-e.in:
			e.route(g, senders, idle, s)
		case key := <-idle:
			bury(senders, key)
		case <-ctx.Done():
		}
	}
	e.over.Store(true)
	for len(e.in) > 0 {
		e.route(g, senders, idle, <-e.in)
	}
	for key := range senders {
		bury(senders, key)
	}
	return g.Wait()
}

// route gives a span to its collector's sender.
func (e *Exporter) route(g *run.Group, senders map[string]*sender, idle chan<- string, s *trace.Span) {
	out := senders[s.Provider.Key]
	if out == nil {
		if len(senders) >= maxSenders {
			e.count(s.Provider, dropped, 1)
			return
		}
		out = &sender{e: e, provider: s.Provider, in: make(chan *trace.Span, senderLen), idle: idle}
		senders[s.Provider.Key] = out
		g.Go("spans to "+s.Provider.Cluster, func(ctx context.Context) error {
			out.run(ctx)
			return nil
		})
	}
	select {
	case out.in <- s:
	default:
		e.count(s.Provider, dropped, 1)
	}
}

// bury ends a sender: nobody but Run gives it spans, so what is in its queue now is its last.
func bury(senders map[string]*sender, key string) {
	if s := senders[key]; s != nil {
		close(s.in)
		delete(senders, key)
	}
}
