package obs

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMetricsExposition(t *testing.T) {
	r := NewRegistry("ztunnel", "")
	c := Counter(r, "istio_tcp_connections_opened_total", "The total number of TCP connections opened.", "reporter")
	Gauge(r, "never_set", "Absent.", "x")
	c.WithLabelValues("source").Add(2)
	get := func(accept, enc string) (string, string) {
		req := httptest.NewRequest("GET", "/metrics", nil)
		if accept != "" {
			req.Header.Set("Accept", accept)
		}
		req.Header.Set("Accept-Encoding", enc)
		w := httptest.NewRecorder()
		Metrics(r).ServeHTTP(w, req)
		body := io.Reader(w.Body)
		if w.Header().Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(w.Body)
			if err != nil {
				t.Fatal(err)
			}
			body = z
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return w.Header().Get("Content-Type"), string(b)
	}
	ct, body := get("", "")
	for _, want := range []string{
		"# HELP istio_build Istio component build info.\n# TYPE istio_build gauge\nistio_build{component=\"ztunnel\",tag=\"unknown\"} 1.0\n",
		"# HELP istio_tcp_connections_opened The total number of TCP connections opened.\n# TYPE istio_tcp_connections_opened counter\nistio_tcp_connections_opened_total{reporter=\"source\"} 2.0\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("misses %q in\n%s", want, body)
		}
	}
	if ct != plainTextType || !strings.HasSuffix(body, "\n# EOF\n") || strings.Contains(body, "never_set") {
		t.Errorf("%s %q", ct, body[len(body)-50:])
	}
	if ct, _ := get("text/plain;q=0.1, application/openmetrics-text; version=1.0.0", "gzip, br"); ct != openMetricsType {
		t.Error(ct)
	}
	for enc, want := range map[string]bool{"gzip": true, "gzip;q=0": false, "br": false, "x, GZIP;q=0.5": true} {
		if acceptsGzip([]string{enc}) != want {
			t.Errorf("acceptsGzip(%q) = %v", enc, !want)
		}
	}
}

func TestAdminPages(t *testing.T) {
	_, levels, err := NewLogger(io.Discard, "plain", "info")
	if err != nil {
		t.Fatal(err)
	}
	quits := 0
	h := NewAdmin(AdminConfig{
		Title: "ztunnel", Levels: levels, Quit: func() { quits++ },
		Dump: func() (any, error) { return map[string]string{"a": "<b>"}, nil },
	})
	do := func(method, url string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "http://localhost:15000"+url, nil))
		return w.Code, w.Body.String()
	}
	for _, c := range []struct {
		method, url string
		code        int
		body        string
	}{
		{"GET", "/logging", 405, ""},
		{"POST", "/logging", 200, "current log level is info\n"},
		{"POST", "/logging?level=warn,access=debug", 200, "current log level is warn,access=debug\n"},
		{"POST", "/logging?level=loud", 400, "*"},
		{"POST", "/logging?reset", 200, "current log level is info\n"},
		{"GET", "/quitquitquit", 405, ""},
		{"POST", "/quitquitquit", 200, "shutdown now\n"},
		{"GET", "/config_dump", 200, "{\n  \"a\": \"<b>\"\n}\n"},
		{"GET", "/nope", 404, ""},
		{"GET", "/", 200, "*"},
		{"GET", "/debug/pprof/profile?seconds=301", 400, "*"},
		{"GET", "/debug/pprof/profile?frequency=0", 400, "*"},
		{"GET", "/debug/pprof/heap", 200, "*"},
	} {
		if code, body := do(c.method, c.url); code != c.code || c.body != "*" && body != c.body {
			t.Errorf("%s %s = %d %q, want %d %q", c.method, c.url, code, body, c.code, c.body)
		}
	}
	if quits != 1 {
		t.Errorf("%d quits", quits)
	}
	for _, evil := range []struct{ url, header string }{
		{"http://127.0.0.1:15000/quitquitquit", "Origin"}, // a form of another page
		{"http://rebound.example:15000/quitquitquit", "X"},
	} {
		req := httptest.NewRequest("POST", evil.url, nil)
		req.Header.Set(evil.header, "http://evil.example")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code != 403 || quits != 1 {
			t.Errorf("a web page stopped the process: %d", w.Code)
		}
	}
	for _, host := range []string{"127.0.0.1:15000", "[::1]:15000", "::1", "localhost", "LOCALHOST:1", "10.0.0.7:15000", ""} {
		if !localName(host) {
			t.Errorf("%q is refused", host)
		}
	}
}

func TestDumpErrorIsOne(t *testing.T) {
	h := NewAdmin(AdminConfig{Dump: func() (any, error) { return json.Marshaler(nil), context.Canceled }})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1/config_dump", nil))
	if w.Code != 500 {
		t.Error(w.Code)
	}
}

func TestServeStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(ctx, l.Addr().String()); err == nil {
		t.Error("a taken port was bound twice")
	}
	started := make(chan struct{})
	done := make(chan error)
	go func() {
		done <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(started)
			<-ctx.Done()
			_, _ = io.WriteString(w, "late but whole")
		}))
	}()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	got := make(chan string)
	go func() {
		res, err := (&http.Client{Transport: tr}).Get("http://" + l.Addr().String() + "/")
		if err != nil {
			got <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		got <- string(b)
	}()
	<-started
	cancel()
	if b := <-got; b != "late but whole" {
		t.Error(b)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServeCutsSlowHeaders(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- Serve(ctx, l, http.NotFoundHandler()) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n")
	_ = c.SetReadDeadline(time.Now().Add(3 * headerTimeout))
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("the server kept a client that sends no headers: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
