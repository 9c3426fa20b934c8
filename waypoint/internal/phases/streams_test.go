package phases_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/marrowmesh/marrow/internal/hbone"
)

func durationOf(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

func TestStreaming(t *testing.T) {
	step := make(chan struct{})
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		for i := range 3 {
			_, _ = fmt.Fprintf(rw, "part %d\n", i)
			_ = http.NewResponseController(rw).Flush()
			<-step
		}
	}))
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			resp, err := w.client(shopper, vip+":80", two).Get("http://web/")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			r := bufio.NewReader(resp.Body)
			for i := range 3 {
				// The application waits until this part was read, so nothing may hold it back.
				if line, err := r.ReadString('\n'); err != nil || line != fmt.Sprintf("part %d\n", i) {
					t.Fatalf("part %d: %q, %v", i, line, err)
				}
				step <- struct{}{}
			}
		})
	}
}

// TestEarlyAnswer: the application answers while the client still sends.
func TestEarlyAnswer(t *testing.T) {
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		_ = rc.EnableFullDuplex()
		_ = rc.Flush()
		buf := make([]byte, 64)
		for {
			n, err := r.Body.Read(buf)
			_, _ = rw.Write(buf[:n])
			_ = rc.Flush()
			if err != nil {
				return
			}
		}
	}))
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			pr, pw := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://web/", pr)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := w.client(shopper, vip+":80", two).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			buf := make([]byte, 4)
			for range 3 {
				_, _ = io.WriteString(pw, "ping")
				if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != "ping" {
					t.Fatalf("got %q, %v", buf, err)
				}
			}
			_ = pw.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTrailers(t *testing.T) {
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Trailer", "X-Sum")
		_, _ = io.Copy(rw, r.Body)
		rw.Header().Set("X-Sum", "42")
		rw.Header().Set(http.TrailerPrefix+"X-Late", "43")
	}))
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			resp, err := w.client(shopper, vip+":80", two).Post("http://web/", "text/plain", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if got := resp.Trailer.Get("X-Sum"); got != "42" {
				t.Errorf("trailer %q, all %v", got, resp.Trailer)
			}
		})
	}
}

func TestContinue(t *testing.T) {
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			rw.WriteHeader(417)
			return
		}
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(rw, "%d", len(b))
	}))
	tn := w.tunnel(shopper)
	s, _, err := tn.Connect(t.Context(), vip+":80", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, _ = fmt.Fprint(s, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	r := bufio.NewReader(s)
	line, err := r.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatalf("got %q, %v; want 100", line, err)
	}
	_, _ = r.ReadString('\n')
	_, _ = fmt.Fprint(s, "abc")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("got %v, %v", resp, err)
	}
	_ = resp.Body.Close()
}

// grpcServer answers health checks; a stream of Watch stays open.
func grpcWorld(t *testing.T) (*world, *grpc.ClientConn, *health.Server) {
	t.Helper()
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, hs := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(srv, hs)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	w.podTCP("10.0.0.1:8080", l.Addr().String(), "spiffe://td/ns/shop/sa/app")
	w.mustApply(cluster(t, "v1"), endpoints("v1", "10.0.0.1:8080"), terminate(t), internal(t, manager(t)), routes(t, nil, to("/", "v1")))
	tn := w.tunnel(shopper)
	cc, err := grpc.NewClient("passthrough:///web", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			s, _, err := tn.Connect(ctx, vip+":80", []hbone.Header{{Name: "baggage", Value: baggage}})
			return s, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return w, cc, hs
}

func TestGRPC(t *testing.T) {
	w, cc, hs := grpcWorld(t)
	hc := healthpb.NewHealthClient(cc)
	resp, err := hc.Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("check: %v, %v", resp, err)
	}
	// A status without messages: trailers only.
	if _, err := hc.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("check of an unknown service: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	st, err := hc.Watch(ctx, &healthpb.HealthCheckRequest{Service: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVICE_UNKNOWN, healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
		if s != healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
			hs.SetServingStatus("a", s)
		}
		m, err := st.Recv()
		if err != nil || m.GetStatus() != s {
			t.Fatalf("watch: got %v, %v, want %v", m, err, s)
		}
	}
	// Our own refusals are gRPC statuses.
	w.mustApply(routes(t, map[string]*anypb.Any{}, to("/", "v1")))
	if _, err := hc.Check(t.Context(), &healthpb.HealthCheckRequest{}); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "RBAC: access denied") {
		t.Errorf("denied: %v", err)
	}
}

func TestWebSocketUpgrade(t *testing.T) {
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || !strings.EqualFold(r.Header.Get("Connection"), "Upgrade") {
			rw.WriteHeader(400)
			return
		}
		c, b, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		line, _ := b.ReadString('\n')
		_, _ = fmt.Fprintf(c, "echo %s", line)
	}))
	s, _, err := w.tunnel(shopper).Connect(t.Context(), vip+":80", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, _ = fmt.Fprint(s, "GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(s)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("got %+v, %v", resp, err)
	}
	_, _ = fmt.Fprint(s, "hello\n")
	if line, err := r.ReadString('\n'); line != "echo hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

// tcpEcho answers each line in upper case, after a banner.
func tcpEcho(t *testing.T, banner string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = fmt.Fprint(c, banner)
				s := bufio.NewScanner(c)
				for s.Scan() {
					_, _ = fmt.Fprintln(c, strings.ToUpper(s.Text()))
				}
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func TestOpaque(t *testing.T) {
	w := newWorld(t)
	w.podTCP("10.0.0.1:8080", tcpEcho(t, "220 ready\n"), "spiffe://td/ns/shop/sa/app")
	w.mustApply(cluster(t, "tcp"), endpoints("tcp", "10.0.0.1:8080"), terminate(t), internal(t, manager(t)), routes(t, nil, to("/", "v1")))
	for name, dst := range map[string]string{"declared": tcpVIP, "server speaks first": sniffVIP} {
		t.Run(name, func(t *testing.T) {
			s, _, err := w.tunnel(shopper).Connect(t.Context(), dst+":80", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			r := bufio.NewReader(s)
			if line, err := r.ReadString('\n'); line != "220 ready\n" {
				t.Fatalf("banner %q, %v", line, err)
			}
			_, _ = fmt.Fprintln(s, "hello")
			_ = s.CloseWrite()
			if rest, err := io.ReadAll(r); string(rest) != "HELLO\n" {
				t.Errorf("got %q, %v", rest, err)
			}
		})
	}
	// The application is gone: the CONNECT itself fails.
	w.mustApply(endpoints("tcp"))
	if _, _, err := w.tunnel(shopper).Connect(t.Context(), tcpVIP+":80", nil); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v, want 503", err)
	}
}

func TestDetectedHTTP(t *testing.T) {
	w := basic(t)
	for _, two := range []bool{false, true} {
		if resp, _ := do(t, w.client(shopper, sniffVIP+":80", two), "GET", "/"); resp.Header.Get("X-App") != "v1" {
			t.Errorf("HTTP/2 %v: got %d", two, resp.StatusCode)
		}
	}
}
