package h2http

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs s on one end of a pair of sockets until the test ends.
func serve(t testing.TB, s *Server) (client net.Conn, done <-chan error) {
	t.Helper()
	a, b := tcppair.New(t)
	ended := make(chan error, 1)
	over := make(chan struct{})
	go func() {
		defer close(over)
		ended <- s.Serve(context.WithoutCancel(t.Context()), b, "192.0.2.1:7")
	}()
	t.Cleanup(func() {
		_ = a.Close()
		<-over
	})
	return a, ended
}

// dial is an http.Client on one connection to s.
func dial(t testing.TB, s *Server) *http.Client {
	t.Helper()
	c, _ := serve(t, s)
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{
		Protocols:          p,
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return c, nil },
		DisableCompression: true, ExpectContinueTimeout: time.Minute,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// peer is a client that writes frames.
type peer struct {
	t     testing.TB
	c     net.Conn
	fr    *http2.Framer
	enc   *hpack.Encoder
	block bytes.Buffer
}

func newPeer(t testing.TB, c net.Conn) *peer {
	p := &peer{t: t, c: c, fr: http2.NewFramer(c, c)}
	p.enc = hpack.NewEncoder(&p.block)
	p.fr.AllowIllegalWrites = true
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = p.fr.WriteSettings()
	return p
}

func (p *peer) encode(kv ...string) []byte {
	p.block.Reset()
	for i := 0; i < len(kv); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return p.block.Bytes()
}

func (p *peer) headers(id uint32, end bool, kv ...string) error {
	return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.encode(kv...), EndHeaders: true, EndStream: end})
}

func get(path string, more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":path", path, ":authority", "web"}, more...)
}

// until reads frames to one of the kind on the stream.
func (p *peer) until(kind http2.FrameType, id uint32) http2.Frame {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			p.t.Fatalf("no %v on stream %d: %v", kind, id, err)
		}
		if h := f.Header(); h.Type == kind && h.StreamID == id {
			return f
		}
	}
}

// rest reads to the connection's end and closes it.
func (p *peer) rest() {
	for {
		if _, err := p.fr.ReadFrame(); err != nil {
			_ = p.c.Close()
			return
		}
	}
}

// TestRequest: what a handler sees is what the client sent.
func TestRequest(t *testing.T) {
	var got *http.Request
	var body []byte
	c := dial(t, &Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
	})})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web:80/a%20b?y=1", io.MultiReader(strings.NewReader("hello")))
	req.Header = http.Header{"X-One": {"1", "2"}, "Cookie": {"a=1", "b=2"}, "Te": {"trailers"}}
	req.Trailer = http.Header{"X-Sum": {"7"}}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if got.Method != "POST" || got.Host != "web:80" || got.RequestURI != "/a%20b?y=1" || got.URL.Path != "/a b" || got.ProtoMajor != 2 ||
		got.ContentLength != -1 || string(body) != "hello" || got.RemoteAddr != "192.0.2.1:7" || got.Proto != "HTTP/2.0" {
		t.Errorf("%+v with %q", got, body)
	}
	if h := got.Header; !slices.Equal(h["X-One"], []string{"1", "2"}) || !slices.Equal(h["Cookie"], []string{"a=1; b=2"}) || h["Host"] != nil || h["Trailer"] != nil {
		t.Errorf("header %v", h)
	}
	if got.Trailer.Get("X-Sum") != "7" {
		t.Errorf("trailer %v", got.Trailer)
	}
}

func must(_ int, err error) {
	if err != nil {
		panic(err)
	}
}

// TestShapes: how answers are framed.
func TestShapes(t *testing.T) {
	big := strings.Repeat("y", 3*gathered)
	flush := func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
	for name, tc := range map[string]struct {
		method string
		h      func(w http.ResponseWriter)
		want   string
	}{
		"nothing":  {"GET", func(http.ResponseWriter) {}, "200 length=0 []"},
		"short":    {"GET", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "ab") }, "200 length=2 [ab]"},
		"status":   {"GET", func(w http.ResponseWriter) { w.WriteHeader(571) }, "571 length=0 []"},
		"flushed":  {"GET", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "ab"); flush(w); _, _ = io.WriteString(w, "c") }, "200 length=-1 [abc]"},
		"declared": {"GET", func(w http.ResponseWriter) { w.Header().Set("Content-Length", "2"); _, _ = io.WriteString(w, "ab") }, "200 length=2 [ab]"},
		"too few": {"GET", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "3")
			_, _ = io.WriteString(w, "ab")
			flush(w)
		}, "200 length=3 [ab] INTERNAL_ERROR"},
		"too many": {"GET", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1")
			_, _ = io.WriteString(w, "a")
			_, _ = io.WriteString(w, "b")
		}, "200 length=1 [a]"},
		"head": {"HEAD", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "7")
			must(io.WriteString(w, "1234567"))
		}, "200 length=7 []"},
		"head only": {"HEAD", func(http.ResponseWriter) {}, "200 length=-1 []"},
		"no content": {"GET", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "7")
			w.WriteHeader(204)
			_, _ = io.WriteString(w, "x")
		}, "204 length=0 []"},
		"unchanged": {"GET", func(w http.ResponseWriter) { w.WriteHeader(304) }, "304 length=0 []"},
		"large":     {"GET", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "a"); _, _ = io.WriteString(w, big) }, "200 length=-1 [a" + big + "]"},
		"trailers": {"GET", func(w http.ResponseWriter) {
			w.Header().Set("Trailer", "X-A")
			_, _ = io.WriteString(w, "x")
			w.Header().Set("X-A", "1")
			w.Header().Set("Trailer:X-B", "2")
			w.Header().Set("Trailer:Keep-Alive", "2")
		}, "200 length=-1 [x] X-A=1 X-B=2"},
		"trailers only": {"GET", func(w http.ResponseWriter) { flush(w); w.Header().Set("Trailer:Grpc-Status", "0") }, "200 length=-1 [] Grpc-Status=0"},
		"given up":      {"GET", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, "INTERNAL_ERROR"},
		"given up late": {"GET", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "ab"); flush(w); panic(http.ErrAbortHandler) }, "200 length=-1 [ab] INTERNAL_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { tc.h(w) })})
			req, _ := http.NewRequestWithContext(t.Context(), tc.method, "http://web/", nil)
			got := ""
			resp, err := c.Do(req)
			if err == nil {
				var b []byte
				b, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				got = fmt.Sprintf("%d length=%d [%s]", resp.StatusCode, resp.ContentLength, b)
				var late []string
				for k, v := range resp.Trailer {
					late = append(late, " "+k+"="+strings.Join(v, ","))
				}
				slices.Sort(late)
				got += strings.Join(late, "")
			}
			if err != nil {
				if !strings.Contains(err.Error(), "INTERNAL_ERROR") {
					t.Fatal(err)
				}
				got = strings.TrimSpace(got + " INTERNAL_ERROR")
			}
			if got != tc.want {
				t.Errorf("got %.200q, want %.200q", got, tc.want)
			}
		})
	}
}

// TestOneWrite: a short answer is one write.
func TestOneWrite(t *testing.T) {
	a, b := tcppair.New(t)
	counted := &counting{Conn: b, at: make(chan int, 100)}
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		counted.at <- counted.writes()
		_, _ = io.WriteString(w, "ab")
	})}
	over := make(chan struct{})
	go func() { defer close(over); _ = s.Serve(context.WithoutCancel(t.Context()), counted, "") }()
	p := newPeer(t, a)
	p.until(http2.FrameSettings, 0)
	_ = p.fr.WriteSettingsAck()
	_ = p.headers(1, true, get("/")...)
	f, _ := p.until(http2.FrameData, 1).(*http2.DataFrame)
	if n := counted.writes() - <-counted.at; n != 1 || !f.StreamEnded() {
		t.Errorf("%d writes, end %v", n, f.StreamEnded())
	}
	_ = a.Close()
	<-over
}

// TestNoSplitting: whatever a handler sets, no header becomes two, and none of HTTP/1's leaves.
func TestNoSplitting(t *testing.T) {
	c, _ := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h["X"] = []string{"a\r\nEvil: 1"}
		h["Bad\r\nEvil"], h["Evil name"], h[":path"] = []string{"1"}, []string{"1"}, []string{"/"}
		h["Transfer-Encoding"], h["Keep-Alive"], h["Upgrade"], h["Y"] = []string{"gzip"}, []string{"1"}, []string{"h2c"}, []string{" \ty "}
	})})
	p := newPeer(t, c)
	_ = p.headers(1, true, get("/")...)
	h, _ := p.until(http2.FrameHeaders, 1).(*http2.MetaHeadersFrame)
	var got []string
	for _, f := range h.Fields {
		if f.Name != "date" {
			got = append(got, f.Name+"="+f.Value)
		}
	}
	slices.Sort(got)
	if s := strings.Join(got, "|"); s != ":status=200|content-length=0|x=a  Evil: 1|y=y" {
		t.Error(s)
	}
}

// TestInformal: 1xx answers, asked for or not.
func TestInformal(t *testing.T) {
	c := dial(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "a")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %v", b, r.Header["Expect"])
	})})
	var seen []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			seen = append(seen, fmt.Sprint(code, h["Link"]))
			return nil
		},
		Got100Continue: func() { seen = append(seen, "continue") },
	})
	req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://web/", strings.NewReader("ok"))
	req.Header.Set("Expect", "100-continue")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if got := strings.Join(seen, "|"); string(b) != "ok []" || got != "103 [a]|100 []|continue" && got != "103 [a]|continue|100 []" {
		t.Errorf("%q after %s", b, got)
	}
}

// TestClientLeaves: the handler learns it, and what it reads is no end.
func TestClientLeaves(t *testing.T) {
	cause, read := make(chan error, 1), make(chan error, 1)
	begun := make(chan struct{})
	c, _ := serve(t, &Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		cause <- context.Cause(r.Context())
		_, err := io.ReadAll(r.Body)
		read <- err
	})})
	p := newPeer(t, c)
	_ = p.headers(1, false, get("/")...)
	<-begun
	_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
	if err := <-cause; !errors.Is(err, ErrClientGone) {
		t.Error(err)
	}
	if err := <-read; err == nil {
		t.Error("a request that was given up reads as a whole one")
	}
}

// TestHalfABody: a request that ends in the middle is no shorter request.
func TestHalfABody(t *testing.T) {
	for name, end := range map[string]func(p *peer){
		"reset":      func(p *peer) { _ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel) },
		"no error":   func(p *peer) { _ = p.fr.WriteRSTStream(1, http2.ErrCodeNo) },
		"connection": func(p *peer) { _ = p.c.Close() },
		"too short":  func(p *peer) { _ = p.fr.WriteData(1, true, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			read := make(chan error, 1)
			c, _ := serve(t, &Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, err := io.ReadAll(r.Body)
				read <- err
			})})
			p := newPeer(t, c)
			_ = p.headers(1, false, append(get("/"), "content-length", "9")...)
			_ = p.fr.WriteData(1, false, []byte("half"))
			end(p)
			if err := <-read; err == nil {
				t.Error("no error")
			}
		})
	}
}

// TestFullDuplex: both directions go on at once.
func TestFullDuplex(t *testing.T) {
	c := dial(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-End")
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		buf := make([]byte, 9)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(bytes.ToUpper(buf[:n]))
			_ = rc.Flush()
			if err != nil {
				w.Header().Set("X-End", err.Error())
				return
			}
		}
	})})
	in, out := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web/", in)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 3)
	for _, s := range []string{"abc", "def", "ghi"} {
		_, _ = io.WriteString(out, s)
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != strings.ToUpper(s) {
			t.Fatalf("%q, %v", buf, err)
		}
	}
	_ = out.Close()
	if b, err := io.ReadAll(resp.Body); len(b) != 0 || err != nil || resp.Trailer.Get("X-End") != "EOF" {
		t.Errorf("%q, %v, %v", b, err, resp.Trailer)
	}
	_ = resp.Body.Close()
}

// TestEarlyAnswer: an answer before the request is whole is whole, and then the client is told to stop.
func TestEarlyAnswer(t *testing.T) {
	c, _ := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })})
	p := newPeer(t, c)
	_ = p.headers(1, false, get("/")...)
	h, _ := p.until(http2.FrameHeaders, 1).(*http2.MetaHeadersFrame)
	if h.PseudoValue("status") != "403" || !h.StreamEnded() {
		t.Errorf("%v", h)
	}
	if f, _ := p.until(http2.FrameRSTStream, 1).(*http2.RSTStreamFrame); f.ErrCode != http2.ErrCodeNo {
		t.Errorf("%v", f)
	}
	_ = p.fr.WriteData(1, true, []byte("what was under way"))
	_ = p.headers(3, true, get("/")...)
	p.until(http2.FrameHeaders, 3)
}

// TestDrain: what was asked before the client learnt it is served; then the connection ends.
func TestDrain(t *testing.T) {
	for name, drain := range map[string]func(s *Server, h http.Header){
		"server":    func(s *Server, _ http.Header) { s.Drain() },
		"by header": func(_ *Server, h http.Header) { h.Set("Connection", "close") },
	} {
		t.Run(name, func(t *testing.T) {
			s := &Server{}
			s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/drain" {
					drain(s, w.Header())
				}
				w.WriteHeader(http.StatusTeapot)
			})
			c, done := serve(t, s)
			p := newPeer(t, c)
			_ = p.headers(1, true, get("/drain")...)
			g, _ := p.until(http2.FrameGoAway, 0).(*http2.GoAwayFrame)
			if g.LastStreamID != 1<<31-1 || g.ErrCode != http2.ErrCodeNo {
				t.Errorf("%v", g)
			}
			ping, _ := p.until(http2.FramePing, 0).(*http2.PingFrame)
			_ = p.headers(3, true, get("/")...) // crossed it
			p.until(http2.FrameHeaders, 3)
			_ = p.fr.WritePing(true, ping.Data)
			if g, _ = p.until(http2.FrameGoAway, 0).(*http2.GoAwayFrame); g.LastStreamID != 3 {
				t.Errorf("%v", g)
			}
			p.rest()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestIdle: a connection without requests ends, one with a request stays.
func TestIdle(t *testing.T) {
	hold := make(chan struct{})
	a, done := serve(t, &Server{
		IdleTimeout: 50 * time.Millisecond,
		Handler:     http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold }),
	})
	p := newPeer(t, a)
	_ = p.headers(1, true, get("/")...)
	_ = a.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		f, err := p.fr.ReadFrame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil || f.Header().Type == http2.FrameGoAway {
			t.Fatal("ended under a request:", err)
		}
	}
	_ = a.SetReadDeadline(time.Now().Add(20 * time.Second))
	close(hold)
	p.until(http2.FrameGoAway, 0)
	ping, _ := p.until(http2.FramePing, 0).(*http2.PingFrame)
	_ = p.fr.WritePing(true, ping.Data)
	p.rest()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestBackPressure: a handler that reads nothing holds its client to the window, and its neighbour is served.
func TestBackPressure(t *testing.T) {
	hold := make(chan struct{})
	s := &Server{Memory: 1 << 20, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stall" {
			<-hold
			n, err := io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprint(w, n, " ", err)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n)
	})}
	c, _ := serve(t, s)
	t.Cleanup(sync.OnceFunc(func() { close(hold) }))
	p := newPeer(t, c)
	const piece, stream, all = 16384, 256 << 10, 1 << 20
	left := map[uint32]int{0: 65535, 1: stream, 3: stream}
	send := func(id uint32, end bool) {
		for left[0] < piece || left[id] < piece {
			f, err := p.fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if f, ok := f.(*http2.WindowUpdateFrame); ok {
				left[f.StreamID] += int(f.Increment)
			}
		}
		left[0] -= piece
		left[id] -= piece
		_ = p.fr.WriteData(id, end, make([]byte, piece))
	}
	_ = p.headers(1, false, get("/stall")...)
	for left[1] >= piece {
		send(1, false)
	}
	_ = p.headers(3, false, get("/")...)
	for n := 0; n < all; n += piece {
		send(3, n+piece == all)
	}
	f, _ := p.until(http2.FrameData, 3).(*http2.DataFrame)
	if string(f.Data()) != fmt.Sprint(all) || left[1] > 0 {
		t.Errorf("neighbour got %s; the stalled stream has a window of %d", f.Data(), left[1])
	}
	if n := s.totals.Queued.Load(); n != stream {
		t.Errorf("%d bytes count for all connections, want %d", n, stream)
	}
	hold <- struct{}{}
	_ = p.fr.WriteData(1, true, nil)
	f, _ = p.until(http2.FrameData, 1).(*http2.DataFrame)
	if string(f.Data()) != fmt.Sprint(stream, " <nil>") {
		t.Errorf("stalled: %s", f.Data())
	}
}

// counting counts writes.
type counting struct {
	net.Conn
	n  atomic.Int64
	at chan int
}

func (c *counting) Write(p []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(p)
}

func (c *counting) writes() int { return int(c.n.Load()) }
