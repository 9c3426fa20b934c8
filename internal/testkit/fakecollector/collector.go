package fakecollector

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Span is a span in the shape of whichever protocol brought it.
type Span struct {
	Protocol, Service, Trace, ID, Parent, Name, Kind string
	Error, Shared                                    bool
	Tags                                             map[string]string
	Header                                           http.Header // of the request that brought it by HTTP
}

// Collector keeps spans.
type Collector struct {
	GRPC, HTTP string // addresses

	mu    sync.Mutex
	spans []Span
	more  chan struct{}
	fail  bool
	stop  chan struct{} // while it is open and Hold was called, nobody is answered
	held  bool
}

// New starts a collector that ends with the test.
func New(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{more: make(chan struct{}, 1), stop: make(chan struct{})}
	listen := func() net.Listener {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	lg, lh := listen(), listen()
	c.GRPC, c.HTTP = lg.Addr().String(), lh.Addr().String()
	gs := grpc.NewServer()
	gs.RegisterService(&grpc.ServiceDesc{
		ServiceName: "opentelemetry.proto.collector.trace.v1.TraceService", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := &tracepb.TracesData{} // the same fields as the service's request
			if err := decode(in); err != nil {
				return nil, err
			}
			if err := c.wait(ctx); err != nil {
				return nil, err
			}
			c.otlp("grpc", in, nil)
			return &emptypb.Empty{}, nil
		}}},
	}, c)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", c.serveOTLP)
	mux.HandleFunc("POST /api/v2/spans", c.serveZipkin)
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	wg.Go(func() { _ = gs.Serve(lg) })
	wg.Go(func() { _ = hs.Serve(lh) })
	t.Cleanup(func() { c.Release(); gs.Stop(); _ = hs.Close(); wg.Wait() })
	return c
}

// Fail makes every further request fail.
func (c *Collector) Fail(on bool) { c.mu.Lock(); c.fail = on; c.mu.Unlock() }

// Hold keeps requests waiting until Release.
func (c *Collector) Hold() { c.mu.Lock(); c.held = true; c.mu.Unlock() }

// Release ends Hold.
func (c *Collector) Release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held {
		c.held = false
		close(c.stop)
		c.stop = make(chan struct{})
	}
}

func (c *Collector) wait(ctx context.Context) error {
	c.mu.Lock()
	held, stop, fail := c.held, c.stop, c.fail
	c.mu.Unlock()
	if held {
		select {
		case <-stop:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail {
		return fmt.Errorf("out of order")
	}
	return nil
}

func (c *Collector) add(s ...Span) {
	c.mu.Lock()
	c.spans = append(c.spans, s...)
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// Wait waits for n spans and returns them all.
func (c *Collector) Wait(t testing.TB, n int) []Span {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		c.mu.Lock()
		got := append([]Span(nil), c.spans...)
		c.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-c.more:
		case <-limit:
			t.Fatalf("%d spans came, want %d: %v", len(got), n, got)
		}
	}
}

func (c *Collector) serveOTLP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	in := &tracepb.TracesData{}
	if err == nil {
		err = proto.Unmarshal(raw, in)
	}
	if err == nil {
		err = c.wait(r.Context())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	c.otlp("http", in, r.Header)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func (c *Collector) otlp(protocol string, in *tracepb.TracesData, h http.Header) {
	var out []Span
	for _, rs := range in.GetResourceSpans() {
		service := ""
		for _, a := range rs.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				o := Span{
					Protocol: protocol, Service: service, Trace: fmt.Sprintf("%x", s.GetTraceId()), ID: fmt.Sprintf("%x", s.GetSpanId()),
					Parent: fmt.Sprintf("%x", s.GetParentSpanId()), Name: s.GetName(), Kind: s.GetKind().String(), Error: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR,
					Tags: map[string]string{}, Header: h,
				}
				for _, a := range s.GetAttributes() {
					o.Tags[a.GetKey()] = a.GetValue().GetStringValue()
				}
				out = append(out, o)
			}
		}
	}
	c.add(out...)
}

func (c *Collector) serveZipkin(w http.ResponseWriter, r *http.Request) {
	var in []struct {
		TraceID, ID, ParentID, Name, Kind string
		Shared                            bool
		Tags                              map[string]string
		LocalEndpoint                     struct{ ServiceName string }
	}
	err := json.NewDecoder(r.Body).Decode(&in)
	if err == nil {
		err = c.wait(r.Context())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	for _, s := range in {
		c.add(Span{
			Protocol: "zipkin", Service: s.LocalEndpoint.ServiceName, Trace: s.TraceID, ID: s.ID, Parent: s.ParentID, Name: s.Name, Kind: s.Kind,
			Shared: s.Shared, Tags: s.Tags, Error: s.Tags["error"] == "true", Header: r.Header,
		})
	}
	w.WriteHeader(http.StatusAccepted)
}
