package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

func TestTracker(t *testing.T) {
	for name, c := range map[string]struct {
		success, failure int32
		answers, want    string // answers + and -; want + and - where decided, else .
	}{
		"defaults":            {0, 0, "+----++", "+..-.+."},
		"first failures":      {1, 3, "---+", "..-+"},
		"success threshold":   {2, 1, "+-++-", ".-.+-"},
		"flapping undecided":  {2, 2, "+-+-+-", "......"},
		"decided only once":   {1, 1, "+++---", "+..-.."},
		"interrupted failure": {1, 3, "+--+---", "+.....-"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := NewTracker(&corev1.Probe{SuccessThreshold: c.success, FailureThreshold: c.failure}, false)
			var got strings.Builder
			for _, a := range c.answers {
				switch well, decided := tr.Add(a == '+'); {
				case !decided:
					got.WriteByte('.')
				case well:
					got.WriteByte('+')
				default:
					got.WriteByte('-')
				}
			}
			if got.String() != c.want {
				t.Errorf("got %s, want %s", got.String(), c.want)
			}
		})
	}
}

// TestTrackerTwin compares with an obvious computation over the whole history.
func TestTrackerTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		success, failure := rapid.IntRange(1, 4).Draw(t, "success"), rapid.IntRange(1, 4).Draw(t, "failure")
		answers := rapid.SliceOf(rapid.Bool()).Draw(t, "answers")
		tr := NewTracker(&corev1.Probe{SuccessThreshold: int32(success), FailureThreshold: int32(failure)}, false)
		state := 0 // unknown; 1 well; -1 not
		for i, a := range answers {
			run := 0
			for j := i; j >= 0 && answers[j] == a; j-- {
				run++
			}
			before := state
			if a && run >= success {
				state = 1
			}
			if !a && run >= failure {
				state = -1
			}
			well, decided := tr.Add(a)
			if decided != (state != before) || decided && well != (state == 1) {
				t.Fatalf("answers %v: got %v, %v; want state %d after %d", answers[:i+1], well, decided, state, before)
			}
		}
	})
}

func TestRunTiming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		var at []string
		answers := []struct {
			takes time.Duration
			err   error
		}{{0, errors.New("not yet")}, {0, nil}, {2500 * time.Millisecond, nil}, {0, errors.New("ill")}, {0, errors.New("ill")}, {0, nil}}
		check := func(context.Context) error {
			a := answers[len(at)]
			at = append(at, time.Since(start).String())
			time.Sleep(a.takes)
			if len(at) == len(answers) {
				cancel()
			}
			return a.err
		}
		var reports []string
		run(ctx, &corev1.Probe{InitialDelaySeconds: 3, PeriodSeconds: 2, FailureThreshold: 2}, check, func(r Result) {
			reports = append(reports, fmt.Sprintf("%v %v %v", time.Since(start), r.Well, r.Err))
		})
		// The third check takes longer than a period: the one due at 9s is
		// left out and the rhythm stays.
		if got, want := strings.Join(at, " "), "3s 5s 7s 11s 13s 15s"; got != want {
			t.Errorf("checks at %s, want %s", got, want)
		}
		if got, want := strings.Join(reports, "; "), "5s true <nil>; 13s false ill"; got != want {
			t.Errorf("reports %s, want %s", got, want)
		}
	})
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		target := Target{
			IP: netip.MustParseAddr("10.244.1.5"),
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			Exec: func(ctx context.Context, _ []string) (int, string, error) {
				<-ctx.Done()
				return 0, "", ctx.Err()
			},
		}
		for i, p := range []*corev1.Probe{
			{TimeoutSeconds: 2, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}}},
			{TimeoutSeconds: 2, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}}},
			{TimeoutSeconds: 2, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}},
		} {
			err := Check(t.Context(), p, target)
			if err == nil || err.Error() != "no answer within 2s" {
				t.Errorf("got %v", err)
			}
			if took := time.Since(start); took != time.Duration(i+1)*2*time.Second {
				t.Errorf("after %v", took)
			}
		}
	})
}

// here is a target on this machine's loopback.
func here() Target {
	var d net.Dialer
	return Target{IP: netip.MustParseAddr("127.0.0.1"), Dial: d.DialContext}
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "web.shop" || r.Header.Get("X-A") != "b" || r.URL.RawQuery != "q=1" {
			http.Error(w, r.Host+" "+r.URL.String(), http.StatusTeapot)
		}
	})
	mux.Handle("GET /away", http.RedirectHandler("http://192.0.2.1/", http.StatusFound))
	mux.Handle("GET /near", http.RedirectHandler("/ill", http.StatusFound))
	mux.HandleFunc("GET /ill", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "ill", http.StatusInternalServerError) })
	plain := httptest.NewServer(mux)
	defer plain.Close()
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()
	headers := []corev1.HTTPHeader{{Name: "host", Value: "web.shop"}, {Name: "X-A", Value: "b"}}
	for _, c := range []struct {
		server *httptest.Server
		path   string
		want   string // empty: well
	}{
		{plain, "/ok?q=1", ""},
		{secure, "/ok?q=1", ""},
		{plain, "/away", ""},
		{plain, "/near", "status 500: ill"},
		{plain, "/ill", "status 500: ill"},
		{plain, "/no", "status 404"},
	} {
		addr := netip.MustParseAddrPort(c.server.Listener.Addr().String())
		get := &corev1.HTTPGetAction{Path: c.path, Port: intstr.FromString("web"), HTTPHeaders: headers}
		if c.server == secure {
			get.Scheme = corev1.URISchemeHTTPS
		}
		target := here()
		target.Ports = map[string]int32{"web": int32(addr.Port())}
		err := Check(t.Context(), &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: get}}, target)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.path, err, c.want)
		}
	}
}

func TestTCPAndExec(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	tcp := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(port))}}}
	if err := Check(t.Context(), tcp, here()); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := Check(t.Context(), tcp, here()); err == nil {
		t.Error("a closed port is well")
	}
	target := here()
	target.Exec = func(_ context.Context, argv []string) (int, string, error) { return len(argv) - 1, "out\n", nil }
	for n, want := range map[int]string{1: "", 2: `command ["x" "x"] ended with status 1: out`} {
		argv := strings.Fields(strings.Repeat("x ", n))
		err := Check(t.Context(), &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: argv}}}, target)
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for _, p := range []*corev1.Probe{
		{},
		{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("nope")}}},
		{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{}}},
	} {
		if err := Check(t.Context(), p, here()); err == nil {
			t.Errorf("%v is well", p)
		}
	}
}

func TestGRPC(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	state := health.NewServer()
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, state)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		server.Stop()
		<-served
	}()
	name := "shop"
	p := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(netip.MustParseAddrPort(l.Addr().String()).Port()), Service: &name}}}
	if err := Check(t.Context(), p, here()); err == nil {
		t.Error("an unknown service is well")
	}
	state.SetServingStatus(name, grpc_health_v1.HealthCheckResponse_SERVING)
	if err := Check(t.Context(), p, here()); err != nil {
		t.Error(err)
	}
	state.SetServingStatus(name, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if err := Check(t.Context(), p, here()); err == nil {
		t.Error("a service that does not serve is well")
	}
}
