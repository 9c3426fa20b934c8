package phases_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
)

// TestDrainLosesNothing sends without pause while the waypoint drains. Clients dial again when their tunnel or their connection ends, as
// node proxies and applications do; no request may fail, and in the end nothing is open.
func TestDrainLosesNothing(t *testing.T) {
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		select {
		case <-r.Context().Done():
		case <-time.After(2 * time.Millisecond):
		}
		_, _ = rw.Write(b)
	}))
	cert := w.ca.issue(t, shopper)
	var mu sync.Mutex
	var tunnel *hbone.Client
	var all []*hbone.Client
	connect := func(ctx context.Context, _, _ string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		for range 5 {
			if tunnel == nil || tunnel.GoingAway() || tunnel.Err() != nil {
				raw, err := net.Dial("tcp", w.addr)
				if err != nil {
					return nil, err
				}
				c, _, err := mtls.Client(ctx, raw, cert, []identity.ID{identity.MustParse("spiffe://td/ns/shop/sa/wp")})
				if err != nil {
					return nil, err
				}
				if tunnel, err = hbone.NewClient(c, hbone.Config{}); err != nil {
					return nil, err
				}
				all = append(all, tunnel)
			}
			s, _, err := tunnel.Connect(ctx, vip+":80", nil)
			if err == nil {
				return s, nil
			}
			tunnel = nil
		}
		return nil, fmt.Errorf("no tunnel after five attempts")
	}
	var done, failed atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := &http.Protocols{}
			p.SetHTTP1(i%2 == 0)
			p.SetUnencryptedHTTP2(i%2 == 1)
			tr := &http.Transport{DialContext: connect, Protocols: p}
			defer tr.CloseIdleConnections()
			c := &http.Client{Transport: tr, Timeout: 10 * time.Second}
			body := make([]byte, 10_000)
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := c.Post("http://web/", "text/plain", newReader(body))
				if err == nil {
					n, rerr := io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					if rerr == nil && n == int64(len(body)) && resp.StatusCode == 200 {
						done.Add(1)
						continue
					}
					err = fmt.Errorf("status %d, %d bytes, %w", resp.StatusCode, n, rerr)
				}
				failed.Add(1)
				t.Logf("request failed: %v", err)
			}
		})
	}
	until(func() bool { return done.Load() >= 100 })
	w.front.Drain()
	before := done.Load()
	until(func() bool { return done.Load() >= before+300 || failed.Load() > 0 })
	close(stop)
	wg.Wait()
	mu.Lock()
	for _, c := range all {
		c.Drain()
	}
	mu.Unlock()
	w.front.DrainLate()
	until(func() bool { return w.front.Conns() == 0 })
	if failed.Load() > 0 || w.front.Open() > 0 || w.front.Conns() > 0 {
		t.Errorf("%d of %d requests failed; %d inner and %d outer connections are left", failed.Load(), done.Load(), w.front.Open(), w.front.Conns())
	}
}

// until looks every millisecond, for at most ten seconds.
func until(done func() bool) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 10_000 {
		if done() {
			return
		}
		<-tick.C
	}
}

func newReader(b []byte) io.Reader { return &sliceReader{b} }

type sliceReader struct{ b []byte }

func (r *sliceReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// TestOneViewPerDecision changes routes and policies under load: every answer fits one of the versions as a whole.
func TestOneViewPerDecision(t *testing.T) {
	w := basic(t)
	version := func(app, name string) *routev3.RouteConfiguration {
		r := to("/", app)
		r.Name = name
		r.ResponseHeadersToAdd = append(r.ResponseHeadersToAdd, headerOption("x-version", app))
		return routes(t, nil, r)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				w.mustApply(version([]string{"v1", "v2"}[i%2], "r"))
			}
		}
	})
	c := w.client(shopper, vip+":80", true)
	for range 300 {
		resp, _ := do(t, c, "GET", "/")
		if v := resp.Header.Get("X-Version"); v != "" && v != resp.Header.Get("X-App") {
			t.Errorf("version %s answered by %s", v, resp.Header.Get("X-App"))
		}
	}
	close(stop)
	wg.Wait()
}
