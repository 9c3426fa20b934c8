package shopapp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/marrow/internal/shopapp"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"), goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"))
}

// serve starts the application and answers with its addresses.
func serve(t *testing.T, cfg shopapp.ServeConfig) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan []string, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- shopapp.Serve(ctx, cfg, func(addrs ...net.Addr) {
			var out []string
			for _, a := range addrs {
				out = append(out, a.String())
			}
			ready <- out
		})
	}()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case addrs := <-ready:
		return addrs
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
		return nil
	}
}

func TestServe(t *testing.T) {
	back := serve(t, shopapp.ServeConfig{Name: "catalog", Version: "v2", Listen: "127.0.0.1:0"})[0]
	front := serve(t, shopapp.ServeConfig{Name: "web", Version: "v1", Marker: "M", Listen: "127.0.0.1:0", Call: []string{"http://" + back + "/x", "http://127.0.0.1:1/"}})[0]
	resp, err := http.Post("http://"+front+"/p?headers&status=201", "text/plain", strings.NewReader("12345"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var a shopapp.Answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 201 || a.Name != "web" || a.Marker != "M" || a.Method != "POST" || a.Path != "/p" || a.Body != 5 || a.Headers["Host"] != front {
		t.Errorf("%d %+v", resp.StatusCode, a)
	}
	if len(a.Calls) != 2 || a.Calls[0].Status != 200 || !strings.Contains(string(a.Calls[0].Answer), shopapp.DefaultMarker) || a.Calls[1].Error == "" {
		t.Errorf("calls %+v", a.Calls)
	}
	if err := shopapp.Serve(t.Context(), shopapp.ServeConfig{}, nil); err == nil {
		t.Error("a server that listens nowhere")
	}
}

func TestClientCountsEachRequestOnce(t *testing.T) {
	addr := serve(t, shopapp.ServeConfig{Name: "web", Version: "v1", Listen: "127.0.0.1:0"})[0]
	for name, c := range map[string]struct {
		cfg    shopapp.ClientConfig
		status string
		errors int
	}{
		"one by one":  {shopapp.ClientConfig{URL: "http://" + addr, Count: 7}, "200", 0},
		"kept alive":  {shopapp.ClientConfig{URL: "http://" + addr, Count: 7, KeepAlive: true}, "200", 0},
		"rate":        {shopapp.ClientConfig{URL: "http://" + addr, Count: 7, Rate: 1000}, "200", 0},
		"h2c":         {shopapp.ClientConfig{URL: "http://" + addr, Count: 7, HTTP2: true, KeepAlive: true}, "200", 0},
		"fails":       {shopapp.ClientConfig{URL: "http://" + addr + "/?status=503", Count: 7, Method: "DELETE"}, "503", 0},
		"nobody":      {shopapp.ClientConfig{URL: "http://127.0.0.1:1/", Count: 7}, "", 7},
		"too slow":    {shopapp.ClientConfig{URL: "http://" + addr + "/?delay=5s", Count: 7, Rate: 1000, Timeout: 50 * time.Millisecond}, "", 7},
		"by duration": {shopapp.ClientConfig{URL: "http://" + addr, Duration: 30 * time.Millisecond}, "200", 0},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			each := 0
			c.cfg.Each = func(shopapp.Result) { mu.Lock(); each++; mu.Unlock() }
			s, err := shopapp.Load(t.Context(), c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			sum := s.Errors
			for _, n := range s.Status {
				sum += n
			}
			if sum != s.Requests || each != s.Requests || s.Errors != c.errors || (c.cfg.Count > 0 && s.Requests != c.cfg.Count) || s.Requests == 0 {
				t.Errorf("%+v, %d results", s, each)
			}
			if c.status != "" && s.Status[c.status] != s.Requests {
				t.Errorf("status %v", s.Status)
			}
			if c.status == "200" && s.Versions["web/v1"] != s.Requests {
				t.Errorf("versions %v", s.Versions)
			}
			if !strings.Contains(s.String(), fmt.Sprintf("%d requests", s.Requests)) {
				t.Error(s)
			}
		})
	}
	if _, err := shopapp.Load(t.Context(), shopapp.ClientConfig{URL: "nowhere"}); err == nil {
		t.Error("a URL without host is taken")
	}
}

// stalling echoes lines, but waits before the third.
func stalling(t *testing.T, d time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 1000)
		for n := 0; ; n++ {
			got, err := c.Read(buf)
			if err != nil {
				return
			}
			if n == 2 {
				<-time.After(d)
			}
			if n == 5 {
				return
			}
			if _, err := io.WriteString(c, "echo "+string(buf[:got])); err != nil {
				return
			}
		}
	}()
	return l.Addr().String()
}

func TestHoldReportsGaps(t *testing.T) {
	addr := stalling(t, 60*time.Millisecond)
	r, err := shopapp.Hold(t.Context(), shopapp.HoldConfig{Addr: addr, Interval: time.Millisecond, Gap: 30 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 6 || r.Received != 5 || r.Gaps != 1 || r.Open || r.Error != "closed by the peer" || r.Longest < 60*time.Millisecond {
		t.Errorf("%+v", r)
	}
}

func TestHoldStaysOpen(t *testing.T) {
	addr := serve(t, shopapp.ServeConfig{Name: "ledger", TCP: "127.0.0.1:0"})[0]
	r, err := shopapp.Hold(t.Context(), shopapp.HoldConfig{Addr: addr, Interval: time.Millisecond, Duration: 50 * time.Millisecond})
	if err != nil || !r.Open || r.Error != "" || r.Received < 3 || r.Received < r.Sent-1 {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := shopapp.Hold(t.Context(), shopapp.HoldConfig{Addr: "127.0.0.1:1"}); err == nil {
		t.Error("nobody listens, and yet it is held")
	}
}
