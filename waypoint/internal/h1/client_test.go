package h1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// backend is a server whose connections the test sees.
type backend struct {
	t     testing.TB
	pool  *Pool
	dials atomic.Int32
	ends  chan *ended // our ends of the connections
}

// newBackend runs each for every connection.
func newBackend(t testing.TB, each func(c net.Conn, br *bufio.Reader)) *backend {
	b := &backend{t: t, ends: make(chan *ended, 16)}
	done := make(chan struct{}, 16)
	b.pool = &Pool{MaxIdle: 4, IdleTimeout: time.Minute, MaxHeader: 4 << 10, ContinueTimeout: 100 * time.Millisecond, Dial: func(context.Context) (net.Conn, error) {
		b.dials.Add(1)
		ours, theirs := net.Pipe()
		e := &ended{Conn: ours}
		b.ends <- e
		go func() {
			defer func() { done <- struct{}{} }()
			defer e.finish()
			defer func() { _ = theirs.Close() }()
			each(theirs, bufio.NewReader(theirs))
		}()
		return e, nil
	}}
	t.Cleanup(func() {
		b.pool.KeepNone()
		for range b.dials.Load() {
			<-done
		}
	})
	return b
}

// say answers every request with text, until it is told nothing more.
func say(text string) func(c net.Conn, br *bufio.Reader) {
	return func(c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	}
}

func request(t testing.TB, method, body string) *http.Request {
	r := &http.Request{Method: method, URL: &url.URL{Scheme: "http", Host: "h", Path: "/"}, Host: "h", Header: http.Header{}, Body: http.NoBody}
	if body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	return r.WithContext(t.Context())
}

func (b *backend) ask(r *http.Request) (int, string, error) {
	resp, err := b.pool.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	text, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode, string(text), err
}

func TestKeepsConnections(t *testing.T) {
	b := newBackend(t, say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	for i := range 5 {
		body := ""
		if i%2 == 1 {
			body = "data"
		}
		if code, text, err := b.ask(request(t, "POST", body)); code != 200 || text != "ok" || err != nil {
			t.Fatalf("%d %q %v", code, text, err)
		}
	}
	if n := b.dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestStaleConnection(t *testing.T) {
	for name, told := range map[string]bool{"told": true, "not told": false} {
		b := newBackend(t, func(c net.Conn, br *bufio.Reader) {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") // and closes
		})
		get := func(method, body string) error {
			_, _, err := b.ask(request(t, method, body))
			return err
		}
		if err := get("GET", ""); err != nil {
			t.Fatal(err)
		}
		e := <-b.ends
		if told { // it is not even tried
			for b.idle() != 0 {
				time.Sleep(time.Millisecond) // the news is on its way
			}
		} else {
			_ = e
		}
		if err := get("GET", ""); err != nil || b.dials.Load() != 2 {
			t.Errorf("%s: %v after %d connections", name, err, b.dials.Load())
		}
	}
}

func (b *backend) idle() int {
	b.pool.mu.Lock()
	defer b.pool.mu.Unlock()
	return len(b.pool.idle)
}

// TestNoSecondPost: a request that may have been carried out is not sent again.
func TestNoSecondPost(t *testing.T) {
	var posts atomic.Int32
	b := newBackend(t, func(c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			if r.Method == "POST" {
				posts.Add(1)
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	if _, _, err := b.ask(request(t, "GET", "")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.ask(request(t, "POST", "")); err == nil || posts.Load() != 1 {
		t.Errorf("%v after %d posts", err, posts.Load())
	}
}

// TestEarlyAnswer: the server does not wait for the whole request, nor do we with its answer.
func TestEarlyAnswer(t *testing.T) {
	b := newBackend(t, func(c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
		}
		_, _ = io.Copy(io.Discard, br)
	})
	pr, pw := io.Pipe()
	defer func() { _ = pw.Close() }()
	r := request(t, "POST", "")
	r.Body, r.ContentLength = pr, -1
	if code, text, err := b.ask(r); code != 413 || text != "no" || err != nil {
		t.Errorf("%d %q %v", code, text, err)
	}
	if b.idle() != 0 {
		t.Error("a connection with half a request was kept")
	}
}

func TestAnswersInTurn(t *testing.T) {
	b := newBackend(t, say("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\nz\r\n0\r\nX: 1\r\n\r\n"))
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints = append(hints, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	resp, err := b.pool.RoundTrip(request(t, "GET", "").WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if string(text) != "z" || err != nil || resp.Trailer.Get("X") != "1" || len(hints) != 1 || hints[0] != "103a" {
		t.Errorf("%q %v %v %v", text, resp.Trailer, hints, err)
	}
	if b.idle() != 1 {
		t.Error("the connection was not kept")
	}
}

func TestBadAnswers(t *testing.T) {
	for name, text := range map[string]string{
		"no HTTP":     "hello\r\n\r\n",
		"nothing":     "",
		"large":       "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 5<<10) + "\r\n\r\n",
		"many hints":  strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 30),
		"two lengths": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
	} {
		b := newBackend(t, func(c net.Conn, br *bufio.Reader) {
			if _, err := http.ReadRequest(br); err == nil {
				_, _ = io.WriteString(c, text)
			}
		})
		if code, _, err := b.ask(request(t, "GET", "")); err == nil || b.idle() != 0 {
			t.Errorf("%s: answered %d", name, code)
		}
	}
	// Bytes behind an answer are nobody's: the next request does not get them.
	b := newBackend(t, say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 Evil\r\nContent-Length: 0\r\n\r\n"))
	for range 2 {
		if code, _, err := b.ask(request(t, "GET", "")); code != 200 || err != nil {
			t.Errorf("%d %v", code, err)
		}
	}
}

func TestCancel(t *testing.T) {
	why := errors.New("why")
	b := newBackend(t, func(_ net.Conn, br *bufio.Reader) { _, _ = io.Copy(io.Discard, br) })
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	if _, _, err := b.ask(request(t, "GET", "").WithContext(ctx)); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

// TestRequestHead: what cannot be sent as it is is not sent.
func TestRequestHead(t *testing.T) {
	for name, spoil := range map[string]func(r *http.Request){
		"target": func(r *http.Request) { r.URL = &url.URL{Scheme: "http", Opaque: "/a b"} },
		"method": func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\nX:" },
		"host":   func(r *http.Request) { r.Host = "a\r\nX: 1" },
		"name":   func(r *http.Request) { r.Header["A\r\nB"] = []string{"1"} },
		"value":  func(r *http.Request) { r.Header["A"] = []string{"1\r\nB: 2"} },
	} {
		r := request(t, "GET", "")
		spoil(r)
		if b, _, err := appendRequest(nil, r); err == nil {
			t.Errorf("%s: %q", name, b)
		}
	}
	r := request(t, "POST", "")
	r.Header = http.Header{"Content-Length": {"7"}, "Transfer-Encoding": {"x"}, "User-Agent": {""}, "A": {"1", "2"}}
	got, size, err := appendRequest(nil, r)
	if want := "POST / HTTP/1.1\r\nHost: h\r\nA: 1\r\nA: 2\r\nContent-Length: 0\r\n\r\n"; err != nil || size != 0 || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}

// TestContinueIsAwaited: a body that waits for leave is sent on it, or when none comes.
func TestContinueIsAwaited(t *testing.T) {
	for _, leave := range []string{"HTTP/1.1 100 Continue\r\n\r\n", ""} {
		b := newBackend(t, func(c net.Conn, br *bufio.Reader) {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, leave)
			text, _ := io.ReadAll(r.Body)
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
			_, _ = io.Copy(io.Discard, br)
		})
		r := request(t, "PUT", "body")
		r.Header.Set("Expect", "100-continue")
		if code, text, err := b.ask(r); code != 200 || text != "body" || err != nil {
			t.Errorf("%d %q %v", code, text, err)
		}
	}
}
