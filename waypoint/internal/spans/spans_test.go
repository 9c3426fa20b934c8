package spans

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/testkit/fakecollector"
	"github.com/marrowmesh/marrow/waypoint/internal/trace"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type plain struct{}

func (plain) Open(ctx context.Context, t upstream.Target) (upstream.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", t.Addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// world is an exporter with clusters "grpc", "http" and "gone".
type world struct {
	*Exporter
	reg  *prometheus.Registry
	stop func()
}

func newWorld(t *testing.T, c *fakecollector.Collector) *world {
	t.Helper()
	store := upstream.NewStore(plain{}, time.Now)
	cluster := func(name, addr string, p upstream.Protocol) *upstream.Config {
		return &upstream.Config{
			Name: name, Kind: upstream.KindStatic, Protocol: p, ConnectTimeout: time.Second, Limits: upstream.Limits{Connections: 10, Pending: 10, Requests: 10},
			Balancer: upstream.Balancer{Choices: 2}, Static: &upstream.Assignment{Endpoints: []upstream.Endpoint{{Addr: netip.MustParseAddrPort(addr), Healthy: true, Weight: 1}}},
		}
	}
	all := []*upstream.Config{cluster("grpc", c.GRPC, upstream.HTTP2), cluster("http", c.HTTP, upstream.HTTP1), cluster("gone", "127.0.0.1:1", upstream.HTTP1)}
	store.ApplyClusters(all, nil)
	w := &world{reg: prometheus.NewRegistry()}
	w.Exporter = New(Config{Upstreams: store, Rand: func(uint64) uint64 { return 0 }, Log: obs.Discard(), Registry: w.reg, Flush: 10 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		store.ApplyClusters(nil, []string{"grpc", "http", "gone"}) // closes what is kept
	}
	t.Cleanup(w.stop)
	return w
}

func (w *world) outcomes(t *testing.T) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	fs, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "outcome" {
					out[l.GetValue()] += m.GetCounter().GetValue()
				}
			}
		}
	}
	return out
}

func provider(p trace.Protocol) *trace.Provider {
	out := &trace.Provider{Protocol: p, Cluster: "http", Host: "collector", Path: "/v1/traces", Timeout: 5 * time.Second, Service: "wp.shop", Header: http.Header{"X-Key": {"k"}}}
	switch p {
	case trace.OTLPgRPC:
		out.Cluster, out.Path = "grpc", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
	case trace.ZipkinJSON:
		out.Path = "/api/v2/spans"
	case trace.OTLPHTTP:
	}
	out.Key = out.Cluster + out.Path
	return out
}

func span(p *trace.Provider, n byte) *trace.Span {
	return &trace.Span{
		Provider: p, Context: trace.Context{Trace: trace.ID{15: n}, Span: trace.SpanID{7: n}, Sampled: true}, Name: "op",
		Start: time.Unix(1, 0), End: time.Unix(2, 0), Tags: []trace.Tag{{Key: "k", Value: "v"}},
	}
}

func TestCollectors(t *testing.T) {
	c := fakecollector.New(t)
	w := newWorld(t, c)
	for _, p := range []trace.Protocol{trace.OTLPgRPC, trace.OTLPHTTP, trace.ZipkinJSON} {
		w.Add(span(provider(p), 7))
	}
	byProtocol := map[string]fakecollector.Span{}
	for _, s := range c.Wait(t, 3) {
		byProtocol[s.Protocol] = s
	}
	for _, p := range []string{"grpc", "http", "zipkin"} {
		s := byProtocol[p]
		if s.Service != "wp.shop" || s.Name != "op" || s.Tags["k"] != "v" || s.ID != "0000000000000007" || p != "grpc" && s.Header.Get("X-Key") != "k" {
			t.Errorf("%s: %+v", p, s)
		}
	}
}

// TestAddNeverBlocks: with a collector that answers nobody, spans beyond the queues are dropped at once.
func TestAddNeverBlocks(t *testing.T) {
	c := fakecollector.New(t)
	c.Hold()
	w := newWorld(t, c)
	p := provider(trace.OTLPHTTP)
	const n = 40_000
	began := time.Now()
	for range n {
		w.Add(span(p, 1))
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("adding took %v", d)
	}
	c.Release()
	w.stop()
	got := w.outcomes(t)
	if got[dropped] == 0 || got[sent]+got[dropped]+got[failed] != n {
		t.Errorf("got %v of %d", got, n)
	}
}

func TestEverySpanIsCounted(t *testing.T) {
	c := fakecollector.New(t)
	w := newWorld(t, c)
	good, bad, gone := provider(trace.OTLPHTTP), provider(trace.ZipkinJSON), provider(trace.OTLPHTTP)
	gone.Cluster, gone.Key = "gone", "gone"
	unknown := provider(trace.OTLPHTTP)
	unknown.Cluster, unknown.Key = "unknown", "unknown"
	bad.Path, bad.Key = "/nowhere", "bad"
	for range 100 {
		for _, p := range []*trace.Provider{good, bad, gone, unknown} {
			w.Add(span(p, 1))
		}
	}
	w.stop()
	w.Add(span(good, 1)) // after the end
	if got := w.outcomes(t); got[sent] != 100 || got[failed] != 300 || got[dropped] != 1 {
		t.Errorf("got %v", got)
	}
}

func TestSlowCollectorAlone(t *testing.T) {
	slow, quick := fakecollector.New(t), fakecollector.New(t)
	slow.Hold()
	w := newWorld(t, slow)
	w.cfg.Upstreams.ApplyClusters([]*upstream.Config{{
		Name: "quick", Kind: upstream.KindStatic, ConnectTimeout: time.Second, Limits: upstream.Limits{Connections: 10, Pending: 10, Requests: 10}, Balancer: upstream.Balancer{Choices: 2},
		Static: &upstream.Assignment{Endpoints: []upstream.Endpoint{{Addr: netip.MustParseAddrPort(quick.HTTP), Healthy: true, Weight: 1}}},
	}}, nil)
	other := provider(trace.OTLPHTTP)
	other.Cluster, other.Key = "quick", "quick"
	w.Add(span(provider(trace.OTLPHTTP), 1))
	w.Add(span(other, 2))
	quick.Wait(t, 1)
	slow.Release()
	w.stop()
	w.cfg.Upstreams.ApplyClusters(nil, []string{"quick"})
}

func TestLastSpansAreSent(t *testing.T) {
	c := fakecollector.New(t)
	w := newWorld(t, c)
	w.cfg.Flush = time.Hour
	for n := range byte(10) {
		w.Add(span(provider(trace.OTLPgRPC), n+1))
	}
	w.stop()
	if got := c.Wait(t, 10); len(got) != 10 {
		t.Errorf("%d spans", len(got))
	}
}
