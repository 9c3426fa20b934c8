package phases_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// one is a world whose only application is h, behind cluster "v1".
func one(t testing.TB, h http.Handler, change ...func(*routev3.RouteAction)) *world {
	t.Helper()
	w := newWorld(t)
	w.pod("10.0.0.1:8080", h)
	w.mustApply(cluster(t, "v1"), endpoints("v1", "10.0.0.1:8080"), terminate(t), internal(t, manager(t)), routes(t, nil, to("/", "v1", change...)))
	return w
}

func TestRetryUntilItWorks(t *testing.T) {
	var n atomic.Int32
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		if n.Add(1) < 3 {
			rw.WriteHeader(503)
		}
	}), retry("5xx", 2))
	resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/")
	if resp.StatusCode != 200 || n.Load() != 3 {
		t.Errorf("got %d after %d attempts", resp.StatusCode, n.Load())
	}
}

func TestRetriesEnd(t *testing.T) {
	var n atomic.Int32
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		rw.WriteHeader(503)
	}), retry("5xx", 2))
	resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/")
	if resp.StatusCode != 503 || n.Load() != 3 {
		t.Errorf("got %d after %d attempts", resp.StatusCode, n.Load())
	}
	w.stop()
	if l := w.log.all()[0]; !strings.Contains(l, "503 URX via_upstream v1 3") {
		t.Errorf("log line %q", l)
	}
}

func TestRetryOnlyWhatThePolicyNames(t *testing.T) {
	var n atomic.Int32
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		rw.WriteHeader(500)
	}), retry("gateway-error,connect-failure,418", 5))
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/"); resp.StatusCode != 500 || n.Load() != 1 {
		t.Errorf("got %d after %d attempts", resp.StatusCode, n.Load())
	}
}

func TestRetryReplaysBody(t *testing.T) {
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			body := strings.Repeat("0123456789", 20_000)
			var n atomic.Int32
			w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if n.Add(1) == 1 {
					_, _ = io.CopyN(io.Discard, r.Body, 1000) // gives up in the middle
					rw.WriteHeader(503)
					return
				}
				b, _ := io.ReadAll(r.Body)
				_, _ = rw.Write(b)
			}), retry("5xx", 1))
			resp, got := do(t, w.client(shopper, vip+":80", two), "POST", "/", func(r *http.Request) {
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
			})
			if resp.StatusCode != 200 || got != body {
				t.Errorf("got %d and %d bytes after %d attempts", resp.StatusCode, len(got), n.Load())
			}
		})
	}
}

func TestLongBodyIsNotReplayed(t *testing.T) {
	var n atomic.Int32
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		rw.WriteHeader(503)
	}), retry("5xx", 3))
	resp, _ := do(t, w.client(shopper, vip+":80", false), "POST", "/", func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(make([]byte, 3<<20))), 3<<20
	})
	if resp.StatusCode != 503 || n.Load() != 1 {
		t.Errorf("got %d after %d attempts", resp.StatusCode, n.Load())
	}
}

func TestConnectFailureMovesOn(t *testing.T) {
	w := newWorld(t)
	w.pod("10.0.0.1:8080", named("v1"))
	w.mustApply(cluster(t, "v1", func(c *clusterv3.Cluster) { c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN }),
		endpoints("v1", "10.0.0.9:8080", "10.0.0.1:8080"), terminate(t), internal(t, manager(t)),
		routes(t, nil, to("/", "v1", retry("connect-failure", 2), func(a *routev3.RouteAction) {
			a.RetryPolicy.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{Name: "envoy.retry_host_predicates.previous_hosts"}}
			a.RetryPolicy.HostSelectionRetryMaxAttempts = 5
		})))
	c := w.client(shopper, vip+":80", false)
	for range 4 {
		if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != 200 {
			t.Fatalf("got %d: %q", resp.StatusCode, w.log.all())
		}
	}
}

func TestConnectFailureIsUF(t *testing.T) {
	w := one(t, named("v1"))
	w.mustApply(endpoints("v1", "10.0.0.9:8080"))
	resp, body := do(t, w.client(shopper, vip+":80", false), "GET", "/")
	if resp.StatusCode != 503 || !strings.Contains(body, "remote connection failure") {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
	w.stop()
	if l := w.log.all()[0]; !strings.Contains(l, " 503 UF ") {
		t.Errorf("log line %q", l)
	}
}

func TestResetIsUC(t *testing.T) {
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(rw).Hijack()
		if err == nil {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}))
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "POST", "/"); resp.StatusCode != 503 {
		t.Errorf("got %d", resp.StatusCode)
	}
	w.stop()
	if l := w.log.all()[0]; !strings.Contains(l, " 503 UC upstream_reset_before_response_started{connection_termination}") {
		t.Errorf("log line %q", l)
	}
}

func TestTimeouts(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	slow := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	t.Run("whole", func(t *testing.T) {
		w := one(t, slow, timeout(50*time.Millisecond), retry("5xx", 3))
		resp, body := do(t, w.client(shopper, vip+":80", false), "GET", "/")
		if resp.StatusCode != 504 || body != "upstream request timeout" {
			t.Errorf("got %d %q", resp.StatusCode, body)
		}
		w.stop()
		if l := w.log.all()[0]; !strings.Contains(l, " 504 UT response_timeout v1 1") {
			t.Errorf("log line %q", l)
		}
	})
	t.Run("per try", func(t *testing.T) {
		var n atomic.Int32
		w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if n.Add(1) == 1 {
				slow.ServeHTTP(rw, r)
			}
		}), retry("5xx", 1), func(a *routev3.RouteAction) { a.RetryPolicy.PerTryTimeout = durationOf(50 * time.Millisecond) })
		if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/"); resp.StatusCode != 200 || n.Load() != 2 {
			t.Errorf("got %d after %d attempts", resp.StatusCode, n.Load())
		}
	})
}

func TestCircuitBreakers(t *testing.T) {
	in, release := make(chan struct{}), make(chan struct{})
	w := one(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		in <- struct{}{}
		<-release
	}))
	w.mustApply(cluster(t, "v1", func(c *clusterv3.Cluster) {
		c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRequests: wrapperspb.UInt32(1)}}}
	}))
	c := w.client(shopper, vip+":80", true)
	first := make(chan int, 1)
	go func() {
		resp, err := c.Get("http://web/")
		if err != nil {
			first <- 0
			return
		}
		_ = resp.Body.Close()
		first <- resp.StatusCode
	}()
	<-in
	resp, _ := do(t, c, "GET", "/")
	close(release)
	if got := <-first; resp.StatusCode != 503 || got != 200 {
		t.Errorf("the first got %d, the second %d", got, resp.StatusCode)
	}
}

func TestOutlierEjection(t *testing.T) {
	w := newWorld(t)
	w.pod("10.0.0.1:8080", http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) }))
	w.pod("10.0.0.2:8080", named("good"))
	w.mustApply(cluster(t, "v1", func(c *clusterv3.Cluster) {
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		c.OutlierDetection = &clusterv3.OutlierDetection{Consecutive_5Xx: wrapperspb.UInt32(2), MaxEjectionPercent: wrapperspb.UInt32(50)}
	}), endpoints("v1", "10.0.0.1:8080", "10.0.0.2:8080"), terminate(t), internal(t, manager(t)), routes(t, nil, to("/", "v1")))
	c := w.client(shopper, vip+":80", false)
	bad := 0
	for range 20 {
		if resp, _ := do(t, c, "GET", "/"); resp.StatusCode == 500 {
			bad++
		}
	}
	if bad != 2 {
		t.Errorf("%d requests reached the bad endpoint, want 2", bad)
	}
}

func TestNoRetryAfterFirstByte(t *testing.T) {
	var n atomic.Int32
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		rw.Header().Set("Content-Length", "100")
		_, _ = fmt.Fprint(rw, "some")
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	}), retry("5xx,reset", 3))
	resp, err := w.client(shopper, vip+":80", false).Get("http://web/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("half an answer looked whole")
	}
	if n.Load() != 1 {
		t.Errorf("%d attempts", n.Load())
	}
}
