package phases_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
)

// TestUnknownFailsClosed: nothing is served without configuration, identity, chain.
func TestUnknownFailsClosed(t *testing.T) {
	w := newWorld(t)
	connect := func(cert *mtls.Certificate, dst string) error {
		raw, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = raw.Close() }()
		c, _, err := mtls.Client(t.Context(), raw, cert, []identity.ID{identity.MustParse("spiffe://td/ns/shop/sa/wp")})
		if err != nil {
			return err
		}
		cl, err := hbone.NewClient(c, hbone.Config{})
		if err != nil {
			return err
		}
		defer func() { _ = cl.Close(); cl.Wait() }()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		s, _, err := cl.Connect(ctx, dst, nil)
		if err == nil {
			_ = s.Close()
		}
		return err
	}
	good := w.ca.issue(t, shopper)
	if err := connect(good, vip+":80"); err == nil {
		t.Error("served without any configuration")
	}
	w.mustApply(terminate(t))
	if err := connect(good, vip+":80"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("without an inner listener: %v", err)
	}
	w.mustApply(cluster(t, "v1"), endpoints("v1"), internal(t, manager(t)), routes(t, nil, to("/", "v1")))
	for _, dst := range []string{"10.96.0.99:80", vip + ":81", "web:80", "nonsense", vip + ":0", "[fe80::1%25x]:80"} {
		if err := connect(good, dst); err == nil {
			t.Errorf("%s was served", dst)
		}
	}
	if err := connect(good, vip+":80"); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if err := connect(w.ca.issue(t, "spiffe://elsewhere/ns/shop/sa/client"), vip+":80"); err == nil {
		t.Error("a foreign trust domain was served")
	}
	if err := connect(newAuthority(t).issue(t, shopper), vip+":80"); err == nil {
		t.Error("a foreign authority was served")
	}
}

// TestWrongEndpointIdentity: an endpoint that is somebody else gets nothing.
func TestWrongEndpointIdentity(t *testing.T) {
	var n atomic.Int32
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	w.podTCP("10.0.0.1:8080", l.Addr().String(), "spiffe://td/ns/shop/sa/impostor")
	w.mustApply(cluster(t, "v1"), endpoints("v1", "10.0.0.1:8080"), terminate(t), internal(t, manager(t)), routes(t, nil, to("/", "v1")))
	resp, body := do(t, w.client(shopper, vip+":80", false), "GET", "/")
	if resp.StatusCode != 503 || n.Load() != 0 {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
}

// raw sends bytes on one connection and returns the status lines that come back until it ends.
func raw(t *testing.T, w *world, bytes string) []string {
	t.Helper()
	s, _, err := w.tunnel(shopper).Connect(t.Context(), vip+":80", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, _ = io.WriteString(s, bytes)
	_ = s.CloseWrite()
	_ = s.SetReadDeadline(time.Now().Add(2 * time.Second))
	r := bufio.NewReader(s)
	var out []string
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return out
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		out = append(out, fmt.Sprint(resp.StatusCode))
	}
}

// TestSmuggling: shapes by which one request hides another. The application must never see /secret.
func TestSmuggling(t *testing.T) {
	var secret atomic.Int32
	w := one(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.RequestURI, "secret") {
			secret.Add(1)
		}
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	const hidden = "GET /secret HTTP/1.1\r\nHost: web\r\n\r\n"
	shapes := map[string]string{
		"two lengths":              "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\nContent-Length: 38\r\n\r\n" + hidden,
		"lengths in a list":        "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0, 38\r\n\r\n" + hidden,
		"signed length":            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: +0\r\n\r\n" + hidden,
		"space before colon":       "POST / HTTP/1.1\r\nHost: web\r\nContent-Length : 38\r\n\r\n" + hidden,
		"space in name":            "POST / HTTP/1.1\r\nHost: web\r\nContent Length: 38\r\n\r\n" + hidden,
		"folded header":            "POST / HTTP/1.1\r\nHost: web\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n" + "0\r\n\r\n",
		"unknown coding":           "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: xchunked\r\n\r\n" + hidden,
		"coding twice":             "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"bad chunk size":           "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + hidden,
		"no host":                  "GET / HTTP/1.1\r\n\r\n",
		"two hosts":                "GET / HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n",
		"control character":        "GET /\x01 HTTP/1.1\r\nHost: web\r\n\r\n",
		"broken escape":            "GET /%zz HTTP/1.1\r\nHost: web\r\n\r\n",
		"fragment":                 "GET /a#b HTTP/1.1\r\nHost: web\r\n\r\n",
		"version":                  "GET / HTTP/3.7\r\nHost: web\r\n\r\n",
		"connect":                  "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n" + hidden,
		"upgrade with a body":      "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 38\r\n\r\n" + hidden,
		"upgrade to something":     "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
		"bytes that are no method": "\x16\x03\x01\x00\x00",
	}
	for name, s := range shapes {
		t.Run(name, func(t *testing.T) {
			for _, code := range raw(t, w, s) {
				if code[0] != '4' && code[0] != '5' {
					t.Errorf("answered %s", code)
				}
			}
		})
	}
	if secret.Load() != 0 {
		t.Errorf("the hidden request was seen %d times", secret.Load())
	}
}

// TestReframed: a request with a length and a chunked body has one meaning upstream, the chunked one, and the connection stays in step.
func TestReframed(t *testing.T) {
	var seen atomic.Value
	w := one(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen.Store(fmt.Sprintf("%s %q %v", r.RequestURI, b, r.Header["Content-Length"]))
	}))
	got := raw(t, w, "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
	if s := seen.Load(); len(got) > 0 && got[0] == "200" && s != `/a "abc" []` {
		t.Errorf("the application saw %v", s)
	}
}

// TestNoUpgradeToHTTP2: an offer to go on in HTTP/2 is not taken, and costs nothing.
func TestNoUpgradeToHTTP2(t *testing.T) {
	w := one(t, named("v1"))
	for offer, want := range map[string]int{"h2c": 200, "H2C": 200, " h2c ,": 200, "h2c, other": 403} {
		resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/", func(r *http.Request) {
			r.Header.Set("Connection", "Upgrade, HTTP2-Settings")
			r.Header.Set("Upgrade", offer)
			r.Header.Set("Http2-Settings", "AAMAAABkAAQAAP__")
		})
		if resp.StatusCode != want || resp.Header.Get("Saw-Upgrade") != "" || resp.Header.Get("Saw-Http2-Settings") != "" {
			t.Errorf("%q: %s %v", offer, resp.Status, resp.Header)
		}
	}
}

func TestHopByHopHeaders(t *testing.T) {
	w := one(t, named("v1"))
	resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/", func(r *http.Request) {
		r.Header.Set("Connection", "X-Drop, Authorization")
		r.Header.Set("X-Drop", "1")
		r.Header.Set("Authorization", "kept")
		r.Header.Set("Keep-Alive", "timeout=5")
		r.Header.Set("Te", "trailers, deflate")
	})
	for k, want := range map[string]string{"Saw-X-Drop": "", "Saw-Keep-Alive": "", "Saw-Authorization": "kept", "Saw-Te": "trailers", "Saw-Connection": ""} {
		if got := resp.Header.Get(k); got != want {
			t.Errorf("%s: got %q, want %q", k, got, want)
		}
	}
}

// TestDeniedRequestReachesNobody also checks that a path is normalized before it is judged and forwarded.
func TestDeniedRequestReachesNobody(t *testing.T) {
	w := basic(t, to("/private", "v2"), to("/", "v1"))
	c := w.client(shopper, vip+":80", false)
	for path, app := range map[string]string{"/private/x": "v2", "/a/../private/x": "v2", "/a/%2e%2e/%70rivate/x": "v2", "/private%2fx": "v2", "/b": "v1"} {
		s, _, err := w.tunnel(shopper).Connect(t.Context(), vip+":80", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(s, "GET %s HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n", path)
		resp, err := http.ReadResponse(bufio.NewReader(s), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("X-App"); got != app {
			t.Errorf("%s: got %s", path, got)
		}
		if strings.Contains(resp.Header.Get("Saw-Path"), "..") {
			t.Errorf("the application saw %s", resp.Header.Get("Saw-Path"))
		}
		_ = resp.Body.Close()
		_ = s.Close()
	}
	_ = c
}
