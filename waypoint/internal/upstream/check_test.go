package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// doors opens connections to the addresses whose doors are open, and counts who knocks.
type doors struct {
	mu      sync.Mutex
	shut    map[string]bool
	knocked map[string]int
}

type closedConn struct{ net.Conn }

func (closedConn) Close() error      { return nil }
func (closedConn) CloseWrite() error { return nil }

func (closedConn) SetDeadline(time.Time) error { return nil }

func (d *doors) Open(_ context.Context, t Target) (Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.knocked[t.Addr.String()]++
	if d.shut[t.Addr.String()] {
		return nil, errors.New("shut")
	}
	return closedConn{}, nil
}

func (d *doors) set(addr string, shut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut[addr] = shut
}

func (d *doors) count(addr string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.knocked[addr]
}

// picked are the endpoints that requests reach.
func picked(t *testing.T, s *Store) string {
	t.Helper()
	rnd, seen := counter(), map[string]bool{}
	for range 50 {
		h, err := s.Get("c").Pick(Choice{Rand: rnd})
		if err != nil {
			return err.Error()
		}
		seen[strings.TrimPrefix(h.Addr.Addr().String(), "10.0.0.")] = true
	}
	var out []string
	for _, n := range []string{"1", "2", "3", "4", "5"} {
		if seen[n] {
			out = append(out, n)
		}
	}
	return strings.Join(out, "")
}

// TestChecks: an endpoint gets requests once it has passed a check, loses them after so many failures in a row, gets them back after
// so many successes, and nobody is asked more often than is said.
func TestChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &doors{shut: map[string]bool{"10.0.0.3:80": true}, knocked: map[string]int{}}
		s := NewStore(d, time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.CheckHealth(ctx, counter()) }()
		check := &Check{
			Timeout: time.Second, Every: 5 * time.Second, EveryIll: time.Second, EveryIllFirst: 2 * time.Second, EveryFirst: 3 * time.Second,
			Unused: time.Minute, UnusedWell: time.Minute, Failures: 2, Successes: 3, Probe: tcpProbe{},
		}
		s.ApplyClusters([]*Config{eds("c", func(c *Config) { c.Balancer.Policy, c.Check = RoundRobin, check })}, nil)
		off := func(i int, e *Endpoint) { e.Check.Off = i == 3 }
		s.ApplyEndpoints([]*Assignment{list("c", 4, off)}, nil)
		c, err := s.Get("c").Warm(ctx)
		if err != nil {
			t.Fatal(err)
		}
		expect := func(when, want string) {
			t.Helper()
			synctest.Wait()
			if got := picked(t, s); got != want {
				t.Errorf("%s: %s get requests, want %s", when, got, want)
			}
		}
		expect("once everybody was asked", "124")
		if n := d.count("10.0.0.4:80"); n != 0 {
			t.Errorf("an endpoint without checks was asked %d times", n)
		}
		time.Sleep(59 * time.Second)
		if n := d.count("10.0.0.1:80"); n != 1 {
			t.Errorf("asked %d times while nobody used the cluster", n)
		}
		end, err := c.Begin(ctx, c.Hosts[0], 1)
		if err != nil {
			t.Fatal(err)
		}
		end()
		time.Sleep(time.Second + time.Millisecond) // at 60 s, and now every five
		d.set("10.0.0.1:80", true)
		time.Sleep(5 * time.Second)
		expect("after one failure", "124")
		time.Sleep(5 * time.Second)
		expect("after two failures", "24")
		before := d.count("10.0.0.1:80")
		d.set("10.0.0.1:80", false)
		time.Sleep(2 * time.Second) // the first, then one each second
		expect("after one success", "24")
		time.Sleep(time.Second)
		expect("after two successes", "24")
		time.Sleep(time.Second)
		expect("after three successes", "124")
		if n := d.count("10.0.0.1:80") - before; n != 3 {
			t.Errorf("asked %d times, want 3", n)
		}
		d.set("10.0.0.3:80", false)
		s.ApplyEndpoints([]*Assignment{list("c", 5, off)}, nil)
		expect("with a fifth endpoint, whose first success is enough", "1245")
		s.ApplyClusters([]*Config{eds("c", func(c *Config) { c.Balancer.Policy = RoundRobin })}, nil)
		expect("without checks", "12345")
		synctest.Wait()
		before = d.count("10.0.0.1:80")
		time.Sleep(time.Hour)
		if n := d.count("10.0.0.1:80"); n != before {
			t.Errorf("asked %d times after the checks were taken back", n-before)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestWarmWaitsForChecks: the first requests wait until every endpoint was asked, and no longer than they want.
func TestWarmWaitsForChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &doors{shut: map[string]bool{"10.0.0.2:80": true}, knocked: map[string]int{}}
		s := NewStore(d, time.Now)
		s.ApplyClusters([]*Config{eds("c", func(c *Config) {
			c.Check = &Check{Timeout: time.Second, Every: time.Second, Spread: 3 * time.Second, Failures: 1, Successes: 1, Probe: tcpProbe{}}
		})}, nil)
		s.ApplyEndpoints([]*Assignment{list("c", 2)}, nil)
		limited, end := context.WithTimeout(t.Context(), time.Second)
		defer end()
		if _, err := s.Get("c").Warm(limited); err != nil {
			t.Errorf("nobody checks: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.CheckHealth(ctx, func(n uint64) uint64 { return n - 1 }) }()
		start := time.Now()
		if _, err := s.Get("c").Warm(t.Context()); err != nil || time.Since(start) < 2*time.Second {
			t.Errorf("warm after %v, %v", time.Since(start), err)
		}
		if got := picked(t, s); got != "1" {
			t.Errorf("%s get requests", got)
		}
		cancel()
		<-done
	})
}

// direct dials loopback.
type direct struct{}

func (direct) Open(ctx context.Context, t Target) (Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.Addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// TestProbes: what each kind of check takes for an answer that all is well, and what ends an endpoint's service at once.
func TestProbes(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodHead || r.Host != "app.example" || r.Header.Get("X-Ask") != "health" || r.UserAgent() != "":
			w.WriteHeader(http.StatusTeapot)
		case r.URL.Path == "/busy":
			w.WriteHeader(http.StatusTooManyRequests)
		case r.URL.Path == "/ill":
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/late":
			<-r.Context().Done()
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	defer app.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rpc, states := grpc.NewServer(), health.NewServer()
	states.SetServingStatus("shop.Ill", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(rpc, states)
	served := make(chan struct{})
	go func() { defer close(served); _ = rpc.Serve(l) }()
	defer func() { rpc.Stop(); <-served }()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4)
			n, _ := c.Read(b)
			_, _ = c.Write(append([]byte("got "), b[:n]...))
			_ = c.Close()
		}
	}()
	defer func() { _ = raw.Close(); <-echoed }()
	web := func(path string) *corev3.HealthCheck {
		return &corev3.HealthCheck{HealthChecker: &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: &corev3.HealthCheck_HttpHealthCheck{
			Host: "app.example", Path: path, Method: corev3.RequestMethod_HEAD, RequestHeadersToRemove: []string{"user-agent"},
			RequestHeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-ask", Value: "health"}}},
			ExpectedStatuses:    []*typev3.Int64Range{{Start: 200, End: 205}}, RetriableStatuses: []*typev3.Int64Range{{Start: 429, End: 430}},
		}}}
	}
	called := func(service string) *corev3.HealthCheck {
		return &corev3.HealthCheck{HealthChecker: &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{ServiceName: service}}}
	}
	text := func(hex string) *corev3.HealthCheck_Payload {
		return &corev3.HealthCheck_Payload{Payload: &corev3.HealthCheck_Payload_Text{Text: hex}}
	}
	bytes := func(receive ...*corev3.HealthCheck_Payload) *corev3.HealthCheck {
		return &corev3.HealthCheck{HealthChecker: &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{
			Send: text("70696e67"), Receive: receive,
		}}}
	}
	for name, tc := range map[string]struct {
		check   *corev3.HealthCheck
		at      net.Addr
		ok, ill bool
	}{
		"HTTP, well":              {web("/"), app.Listener.Addr(), true, false},
		"HTTP, busy":              {web("/busy"), app.Listener.Addr(), false, false},
		"HTTP, ill":               {web("/ill"), app.Listener.Addr(), false, true},
		"HTTP, no answer":         {web("/late"), app.Listener.Addr(), false, false},
		"gRPC, well":              {called(""), l.Addr(), true, false},
		"gRPC, ill":               {called("shop.Ill"), l.Addr(), false, true},
		"gRPC, unknown":           {called("shop.None"), l.Addr(), false, true},
		"gRPC, no gRPC":           {called(""), raw.Addr(), false, false},
		"TCP, no answer needed":   {bytes(), raw.Addr(), true, false},
		"TCP, answer in order":    {bytes(text("676f"), text("70696e67")), raw.Addr(), true, false},
		"TCP, the other way":      {bytes(text("70696e67"), text("676f")), raw.Addr(), false, false},
		"TCP, nobody at the door": {bytes(), &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			tc.check.Timeout, tc.check.Interval = durationpb.New(2*time.Second), durationpb.New(time.Second)
			tc.check.UnhealthyThreshold, tc.check.HealthyThreshold = wrapperspb.UInt32(2), wrapperspb.UInt32(2)
			if strings.Contains(name, "no answer") && !tc.ok {
				tc.check.Timeout = durationpb.New(100 * time.Millisecond)
			}
			cfg, err := Compile(&clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, HealthChecks: []*corev3.HealthCheck{tc.check}})
			if err != nil {
				t.Fatal(err)
			}
			s := NewStore(direct{}, time.Now)
			s.ApplyClusters([]*Config{cfg}, nil)
			to := netip.MustParseAddrPort(tc.at.String())
			e := Endpoint{Addr: netip.AddrPortFrom(to.Addr(), 9), Healthy: true, Weight: 1, Check: EndpointCheck{Port: to.Port()}}
			s.ApplyEndpoints([]*Assignment{{Name: "c", Endpoints: []Endpoint{e}}}, nil)
			err = s.Get("c").ask(t.Context(), s.Get("c").Hosts[0])
			if (err == nil) != tc.ok || errors.Is(err, errIll) != tc.ill {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestWaits: how long an endpoint is left alone.
func TestWaits(t *testing.T) {
	k := &Check{Every: 1000, EveryIll: 2000, EveryIllFirst: 3000, EveryFirst: 4000, Unused: 5000, UnusedWell: 6000}
	for _, tc := range []struct {
		well, news, used bool
		want             time.Duration
	}{
		{true, false, true, 1000},
		{false, false, true, 2000},
		{false, true, true, 3000},
		{true, true, true, 4000},
		{false, true, false, 5000},
		{true, true, false, 6000},
	} {
		if got := k.wait(tc.well, tc.news, tc.used, counter()); got != tc.want {
			t.Errorf("%+v: got %d", tc, got)
		}
	}
	k.Jitter, k.JitterPercent = 100, 50
	if got := k.wait(true, false, true, func(n uint64) uint64 { return n - 1 }); got != 1000+99+499 {
		t.Errorf("the longest wait is %d", got)
	}
}

// TestOneAnswerIsEnough: what an endpoint says of itself counts at once; silence counts in rows.
func TestOneAnswerIsEnough(t *testing.T) {
	k, st := &Check{Failures: 3, Successes: 2}, newHostState(time.Time{})
	st.learn(k, nil)
	if well, _ := st.learn(k, errors.New("no route")); !well {
		t.Error("one lost check is too many")
	}
	if well, news := st.learn(k, errIll); well || !news {
		t.Error("an endpoint that says it is ill gets requests")
	}
	if well, _ := st.learn(k, nil); well {
		t.Error("one success is enough after an illness")
	}
	if well, news := st.learn(k, nil); !well || !news {
		t.Error("two successes are not enough")
	}
}

// TestCheckConfig: what is not done is refused by name.
func TestCheckConfig(t *testing.T) {
	whole := func(change func(*corev3.HealthCheck)) *corev3.HealthCheck {
		p := &corev3.HealthCheck{
			Timeout: durationpb.New(time.Second), Interval: durationpb.New(time.Second), UnhealthyThreshold: wrapperspb.UInt32(1), HealthyThreshold: wrapperspb.UInt32(1),
			HealthChecker: &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: &corev3.HealthCheck_HttpHealthCheck{Path: "/"}},
		}
		change(p)
		return p
	}
	for field, change := range map[string]func(*corev3.HealthCheck){
		"timeout":             func(p *corev3.HealthCheck) { p.Timeout = nil },
		"interval":            func(p *corev3.HealthCheck) { p.Interval = durationpb.New(0) },
		"unhealthy_threshold": func(p *corev3.HealthCheck) { p.UnhealthyThreshold = nil },
		"tls_options":         func(p *corev3.HealthCheck) { p.TlsOptions = &corev3.HealthCheck_TlsOptions{} },
		"path":                func(p *corev3.HealthCheck) { p.GetHttpHealthCheck().Path = "a" },
		"expected_statuses": func(p *corev3.HealthCheck) {
			p.GetHttpHealthCheck().ExpectedStatuses = []*typev3.Int64Range{{Start: 200, End: 200}}
		},
		"receive": func(p *corev3.HealthCheck) {
			p.GetHttpHealthCheck().Receive = []*corev3.HealthCheck_Payload{{}}
		},
	} {
		if _, err := compileChecks([]*corev3.HealthCheck{whole(change)}); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := compileEndpointCheck(&endpointv3.Endpoint_HealthCheckConfig{Address: &corev3.Address{}}); !errors.Is(err, strict.ErrUnsupported) {
		t.Errorf("another address: %v", err)
	}
}
