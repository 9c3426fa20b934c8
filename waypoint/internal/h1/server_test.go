package h1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ended is a pipe's end that tells when the other end has closed, as a stream does.
type ended struct {
	net.Conn
	mu  sync.Mutex
	fn  func()
	end bool
}

func (e *ended) OnEnd(fn func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fn = fn; e.end {
		go fn()
	}
}

func (e *ended) finish() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.end = true; e.fn != nil {
		go e.fn()
	}
}

// serve runs a server on one end of a pipe, until the test ends.
func serve(t testing.TB, h http.Handler) (client net.Conn, server *ended, done chan struct{}) {
	t.Helper()
	a, b := net.Pipe()
	server, done = &ended{Conn: b}, make(chan struct{})
	s := &Server{Handler: h, HeaderTimeout: time.Second, MaxHeader: 8 << 10}
	go func() {
		defer close(done)
		s.Serve(context.Background(), server)
		_ = b.Close()
	}()
	t.Cleanup(func() {
		_ = a.Close()
		<-done
	})
	_ = a.SetDeadline(time.Now().Add(5 * time.Second))
	return a, server, done
}

// answers sends bytes and reads every answer.
func answers(t testing.TB, h http.Handler, sent string) (out []string) {
	t.Helper()
	c, _, _ := serve(t, h)
	go func() { _, _ = io.WriteString(c, sent) }()
	_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	br := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return out
		}
		body, _ := io.ReadAll(resp.Body)
		out = append(out, fmt.Sprintf("%d %s", resp.StatusCode, body))
		if resp.Close {
			return out
		}
	}
}

func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	_, _ = fmt.Fprintf(w, "%s %s %s %q", r.Method, r.RequestURI, r.Host, b)
}

func TestRequestsInTurn(t *testing.T) {
	got := answers(t, http.HandlerFunc(echo), "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nabc"+
		"POST /3 HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n1;x=y\r\ny\r\n0\r\nX-Late: 1\r\n\r\nGET /4 HTTP/1.0\r\n\r\nGET /5 HTTP/1.1\r\nHost: a\r\n\r\n")
	want := []string{`200 GET /1 a ""`, `200 POST /2 b "abc"`, `200 POST /3 c "hey"`, `200 GET /4  ""`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestRefusals(t *testing.T) {
	long := strings.Repeat("x", 9<<10)
	for name, c := range map[string]struct {
		text   string
		status string
	}{
		"no host":             {"GET / HTTP/1.1\r\n\r\n", "400"},
		"two hosts":           {"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"},
		"host with a slash":   {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"},
		"folded":              {"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", "400"},
		"line feeds alone":    {"GET / HTTP/1.1\nHost: a\n\n", "400"},
		"one line feed alone": {"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", "400"},
		"return alone":        {"GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n", "400"},
		"no colon":            {"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", "400"},
		"blank before colon":  {"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", "400"},
		"empty name":          {"GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n", "400"},
		"zero byte":           {"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", "400"},
		"length and chunks":   {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		"chunks in 1.0":       {"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		"two lengths":         {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "400"},
		"signed length":       {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", "400"},
		"empty length":        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", "400"},
		"another coding":      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", "501"},
		"two codings":         {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"},
		"forbidden trailer":   {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n", "400"},
		"version":             {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "505"},
		"no version":          {"GET /\r\nHost: a\r\n\r\n", "400"},
		"method":              {"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		"target":              {"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		"too large":           {"GET / HTTP/1.1\r\nHost: a\r\nX: " + long + "\r\n\r\n", "431"},
		"too many":            {"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("a:\r\n", maxFields) + "\r\n", "431"},
		"empty line first":    {"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
	} {
		got := answers(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Errorf("%s was handled", name) }), c.text)
		if len(got) != 1 || !strings.HasPrefix(got[0], c.status) {
			t.Errorf("%s: got %q, want %s", name, got, c.status)
		}
	}
}

// TestBrokenBody: the handler learns that a body is not whole, and nothing behind it is taken for a request.
func TestBrokenBody(t *testing.T) {
	const begin = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, body := range map[string]string{
		"size":            "x\r\n\r\n",
		"no end of chunk": "1\r\nabc\r\n0\r\n\r\n",
		"line feeds":      "1\na\n0\n\n",
		"trailer":         "0\r\nContent-Length: 5\r\n\r\n",
		"folded trailer":  "0\r\nA: 5\r\n b\r\n\r\n",
		"large trailer":   "0\r\nA: " + strings.Repeat("x", maxTrailer) + "\r\n\r\n",
	} {
		got := answers(t, http.HandlerFunc(echo), begin+body+"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n")
		if len(got) != 1 || !strings.HasPrefix(got[0], "418") {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

// TestUnreadBody: a handler that reads nothing does not make the body the next request.
func TestUnreadBody(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) })
	const hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
	post := func(n int) string { return fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n", n) }
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"short":     {post(len(hidden)) + "\r\n" + hidden + "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n", []string{"200 /", "200 /2"}},
		"long":      {post(unwantedBody+len(hidden)) + "\r\n" + strings.Repeat("x", unwantedBody) + hidden, []string{"200 /"}},
		"continues": {post(len(hidden)) + "Expect: 100-continue\r\n\r\n" + hidden, []string{"200 /"}},
		"connect":   {"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + hidden, []string{"200 a:1"}},
	} {
		if got := answers(t, h, c.text); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestContinue(t *testing.T) {
	c, _, _ := serve(t, http.HandlerFunc(echo))
	br := bufio.NewReader(c)
	_, _ = io.WriteString(c, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusContinue {
		t.Fatalf("%v, %v", resp, err)
	}
	_, _ = io.WriteString(c, "ok")
	if resp, err = http.ReadResponse(br, nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	if b, _ := io.ReadAll(resp.Body); string(b) != `PUT / a "ok"` {
		t.Errorf("%s", b)
	}
}

func TestClientLeaves(t *testing.T) {
	for name, request := range map[string]string{
		"no body": "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"a body":  "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
	} {
		cause := make(chan error, 1)
		begun := make(chan struct{})
		c, server, done := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			close(begun)
			<-r.Context().Done()
			cause <- context.Cause(r.Context())
		}))
		go func() { _, _ = io.Copy(io.Discard, c) }()
		_, _ = io.WriteString(c, request)
		<-begun
		server.finish()
		if err := <-cause; !errors.Is(err, ErrClientGone) {
			t.Errorf("%s: %v", name, err)
		}
		_ = c.Close()
		<-done
	}
}

// TestNoSplitting: whatever a handler sets, one header is one line.
func TestNoSplitting(t *testing.T) {
	c, _, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["X"] = []string{"a\r\nEvil: 1\r\n\r\nGET"}
		w.Header()["Bad\r\nEvil"] = []string{"1"}
		w.Header()["Transfer-Encoding"] = []string{"gzip"}
		w.WriteHeader(http.StatusNoContent)
	}))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.Header.Get("Evil") != "" || len(resp.TransferEncoding) != 0 || resp.Header.Get("X") != "a  Evil: 1    GET" {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestShapes: how an answer is framed, byte for byte but for headers of no account.
func TestShapes(t *testing.T) {
	flush := func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
	big := strings.Repeat("y", 3*gathered)
	for name, c := range map[string]struct {
		request string
		h       func(w http.ResponseWriter)
		want    string
	}{
		"nothing": {"GET / HTTP/1.1", func(http.ResponseWriter) {}, "HTTP/1.1 200 OK|Content-Length: 0||"},
		"short":   {"GET / HTTP/1.1", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "ab") }, "HTTP/1.1 200 OK|Content-Length: 2||ab"},
		"declared": {"GET / HTTP/1.1", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "2")
			flush(w)
			_, _ = io.WriteString(w, "ab")
		}, "HTTP/1.1 200 OK|Content-Length: 2||ab"},
		"too few":    {"GET / HTTP/1.1", func(w http.ResponseWriter) { w.Header().Set("Content-Length", "3"); _, _ = io.WriteString(w, "ab") }, "HTTP/1.1 200 OK|Content-Length: 3||ab<end>"},
		"too many":   {"GET / HTTP/1.1", func(w http.ResponseWriter) { w.Header().Set("Content-Length", "1"); _, _ = io.WriteString(w, "ab") }, "HTTP/1.1 200 OK|Content-Length: 1||<end>"},
		"flushed":    {"GET / HTTP/1.1", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "ab"); flush(w); _, _ = io.WriteString(w, "c") }, "HTTP/1.1 200 OK|Transfer-Encoding: chunked||2|ab|1|c|0||"},
		"old client": {"GET / HTTP/1.0", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "ab"); flush(w) }, "HTTP/1.0 200 OK||ab<end>"},
		"kept old":   {"GET / HTTP/1.0\r\nConnection: keep-alive", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "ab") }, "HTTP/1.0 200 OK|Connection: keep-alive|Content-Length: 2||ab"},
		"head": {"HEAD / HTTP/1.1", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "7")
			_, _ = io.WriteString(w, "1234567")
		}, "HTTP/1.1 200 OK|Content-Length: 7||"},
		"no content": {"GET / HTTP/1.1", func(w http.ResponseWriter) { w.WriteHeader(204); _, _ = io.WriteString(w, "x") }, "HTTP/1.1 204 No Content||"},
		"closing":    {"GET / HTTP/1.1\r\nConnection: close", func(http.ResponseWriter) {}, "HTTP/1.1 200 OK|Connection: close|Content-Length: 0||<end>"},
		"asked to":   {"GET / HTTP/1.1", func(w http.ResponseWriter) { w.Header().Set("Connection", "close") }, "HTTP/1.1 200 OK|Connection: close|Content-Length: 0||<end>"},
		"trailers": {"GET / HTTP/1.1", func(w http.ResponseWriter) {
			w.Header().Set("Trailer", "X-A")
			_, _ = io.WriteString(w, "x")
			w.Header().Set("X-A", "1")
			w.Header().Set("Trailer:X-B", "2")
		}, "HTTP/1.1 200 OK|Trailer: X-A|Transfer-Encoding: chunked||1|x|0|X-A: 1|X-B: 2||"},
		"early hints": {"GET / HTTP/1.1", func(w http.ResponseWriter) { w.Header().Set("Link", "a"); w.WriteHeader(103); w.Header().Del("Link") }, "HTTP/1.1 103 Early Hints|Link: a||HTTP/1.1 200 OK|Content-Length: 0||"},
		"large": {"GET / HTTP/1.1", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			_, _ = io.WriteString(w, big)
		}, fmt.Sprintf("HTTP/1.1 200 OK|Content-Length: %d||%s", len(big), big)},
		"given up": {"GET / HTTP/1.1", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "9")
			_, _ = io.WriteString(w, "ab")
			flush(w)
			panic(http.ErrAbortHandler)
		}, "HTTP/1.1 200 OK|Content-Length: 9||ab<end>"},
	} {
		cl, _, done := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Date"] = nil
			c.h(w)
		}))
		_, _ = io.WriteString(cl, c.request+"\r\nHost: a\r\n\r\n")
		_ = cl.SetReadDeadline(time.Now().Add(80 * time.Millisecond))
		b, err := io.ReadAll(cl)
		got := ordered(string(b))
		if err == nil {
			got += "<end>"
		}
		if got != c.want {
			t.Errorf("%s: got %.300q, want %.300q", name, got, c.want)
		}
		_ = cl.Close()
		<-done
	}
}

// ordered sorts the lines of each head.
func ordered(s string) string {
	parts := strings.Split(s, "\r\n\r\n")
	for i, p := range parts {
		if !strings.HasPrefix(p, "HTTP/") {
			continue
		}
		lines := strings.Split(p, "\r\n")
		slices.Sort(lines[1:])
		parts[i] = strings.Join(lines, "\r\n")
	}
	return strings.TrimSuffix(strings.ReplaceAll(strings.Join(parts, "\r\n\r\n"), "\r\n", "|"), "|") + map[bool]string{true: "|", false: ""}[strings.HasSuffix(s, "\r\n\r\n")]
}

// FuzzAgainstNetHTTP: what we take for a request net/http takes for the same.
func FuzzAgainstNetHTTP(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /x?y HTTP/1.1\r\nhost: a:80\r\ncontent-length: 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\na\r\n0\r\nX: 1\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "GET http://b/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost:\r\nX:  y \r\nx: z\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		sc := &serverConn{srv: &Server{MaxHeader: 64 << 10}, c: nowhere{}, br: bufio.NewReaderSize(strings.NewReader(string(raw)), readSize)}
		got, err := sc.read(true)
		if err != nil {
			return
		}
		want, err := http.ReadRequest(bufio.NewReader(strings.NewReader(string(raw))))
		if err != nil {
			t.Fatalf("%q is no request: %v", raw, err)
		}
		// It adds a header for clients of long ago.
		if got.Header.Get("Pragma") != "" {
			delete(want.Header, "Cache-Control")
			delete(got.Header, "Cache-Control")
		}
		if got.Method != want.Method || got.RequestURI != want.RequestURI || *got.URL != *want.URL || got.Host != want.Host || got.Close != want.Close ||
			got.ContentLength != want.ContentLength || got.ProtoMinor != want.ProtoMinor || !maps.EqualFunc(got.Header, want.Header, slices.Equal) {
			t.Fatalf("%q: got %+v, want %+v", raw, got, want)
		}
		a, errA := io.ReadAll(got.Body)
		b, errB := io.ReadAll(want.Body)
		if errA == nil && (errB != nil || string(a) != string(b) || !maps.EqualFunc(got.Trailer, want.Trailer, slices.Equal)) {
			t.Fatalf("%q: body %q %v, want %q %v, %v", raw, a, got.Trailer, b, want.Trailer, errB)
		}
	})
}

// nowhere is a connection without deadlines.
type nowhere struct{ net.Conn }

func (nowhere) SetReadDeadline(time.Time) error { return nil }
