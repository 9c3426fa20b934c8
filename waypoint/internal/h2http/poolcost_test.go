package h2http

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestPoolBackPressure: what nobody reads holds its sender, both ways.
func TestPoolBackPressure(t *testing.T) {
	var wrote, read atomic.Int64
	hold := make(chan struct{})
	dial, _ := netServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			<-hold
			return
		}
		b := make([]byte, 16<<10)
		for {
			n, err := w.Write(b)
			if wrote.Add(int64(n)); err != nil {
				return
			}
		}
	}), 0)
	p := newPool(t, dial)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const stalled = 30
	for range stalled {
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://web/", nil)
		resp, err := p.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
	}
	still := func(n *atomic.Int64) int64 {
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
			before := n.Load()
			if <-time.After(200 * time.Millisecond); before > 0 && n.Load() == before {
				return before
			}
		}
		t.Error("it does not stop")
		return 0
	}
	// Each sender holds a buffer of its own besides.
	if n := still(&wrote); n > 2*clientMemory+stalled*(64<<10) {
		t.Errorf("%d bytes of answers wait", n)
	}
	up, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://web/", unsized{endless{&read}})
	answered := make(chan error, 1)
	go func() {
		_, err := p.RoundTrip(up)
		answered <- err
	}()
	if n := still(&read); n > 3*clientMemory {
		t.Errorf("%d bytes of a request were taken", n)
	}
	// Its neighbours on the connection are served, as long as they fit.
	close(hold)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

type endless struct{ n *atomic.Int64 }

func (e endless) Read(p []byte) (int, error) {
	e.n.Add(int64(len(p)))
	return len(p), nil
}

// BenchmarkAsk is a GET, and a POST of 1000 bytes, answered with 1000 bytes by the same server.
func BenchmarkAsk(b *testing.B) {
	for name, make := range map[string]func(testing.TB, func(context.Context) (net.Conn, error)) http.RoundTripper{
		"ours": func(tb testing.TB, d func(context.Context) (net.Conn, error)) http.RoundTripper {
			return newPool(tb, d)
		},
		"nethttp": netTransport,
	} {
		for kind, size := range map[string]int{"get": 0, "post": 1000} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				rt := make(b, func(context.Context) (net.Conn, error) { return oursOn(b), nil })
				b.ReportAllocs()
				for b.Loop() {
					ask(b, rt, size)
				}
			})
		}
	}
}

func ask(tb testing.TB, rt http.RoundTripper, size int) {
	r, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://web/catalog/items?page=7", nil)
	if size > 0 {
		r.Method, r.ContentLength, r.Body = http.MethodPost, int64(size), io.NopCloser(strings.NewReader(strings.Repeat("x", size)))
	}
	resp, err := rt.RoundTrip(r)
	if err != nil {
		tb.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); n != answerSize || err != nil {
		tb.Fatal(n, err)
	}
	_ = resp.Body.Close()
}

// TestPoolAllocations: a request and its answer cost less than three quarters of what they cost by net/http's client, the server's part,
// which is the same, included.
func TestPoolAllocations(t *testing.T) {
	dial := func(context.Context) (net.Conn, error) { return oursOn(t), nil }
	ours, theirs := newPool(t, dial), netTransport(t, dial)
	for kind, size := range map[string]int{"get": 0, "post": 1000} {
		n := testing.AllocsPerRun(300, func() { ask(t, ours, size) })
		m := testing.AllocsPerRun(300, func() { ask(t, theirs, size) })
		if n > m*3/4 {
			t.Errorf("%s: %.0f allocations, by net/http's client %.0f", kind, n, m)
		}
	}
}
