package h2http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
	"github.com/marrowmesh/marrow/waypoint/internal/handoff"
)

// netServer is net/http's server, and how to reach it. dials counts.
func netServer(tb testing.TB, h http.Handler, streams int) (dial func(context.Context) (net.Conn, error), dials *atomic.Int64) {
	tb.Helper()
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	inner := handoff.New()
	s := &http.Server{Handler: h, Protocols: p, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: streams}}
	over := make(chan struct{})
	go func() { defer close(over); _ = s.Serve(inner) }()
	tb.Cleanup(func() { inner.End(); _ = s.Close(); <-over })
	dials = new(atomic.Int64)
	return func(context.Context) (net.Conn, error) {
		dials.Add(1)
		a, b := tcppair.New(tb)
		if !inner.Offer(b) {
			return nil, net.ErrClosed
		}
		return a, nil
	}, dials
}

// pool is a Pool whose connections have ended when the test has.
func newPool(tb testing.TB, dial func(context.Context) (net.Conn, error)) *Pool {
	tb.Helper()
	p := &Pool{Dial: dial, ContinueTimeout: 200 * time.Millisecond}
	tb.Cleanup(func() {
		p.mu.Lock()
		conns := slices.Clone(p.conns)
		p.mu.Unlock()
		for _, cc := range conns {
			_ = cc.Close()
			cc.Wait()
		}
	})
	return p
}

func netTransport(tb testing.TB, dial func(context.Context) (net.Conn, error)) http.RoundTripper {
	tb.Helper()
	pr := &http.Protocols{}
	pr.SetUnencryptedHTTP2(true)
	t := &http.Transport{
		Protocols: pr, DisableCompression: true, ExpectContinueTimeout: 200 * time.Millisecond,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
	tb.Cleanup(t.CloseIdleConnections)
	return t
}

// unsized hides the length of a body.
type unsized struct{ io.Reader }

// asking is a request and the handler that answers it.
type asking struct {
	name    string
	handler http.HandlerFunc
	request func(r *http.Request)
}

func askings() []asking {
	echo := func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Accept-Encoding")
		b, err := io.ReadAll(r.Body)
		var lines []string
		for k, v := range r.Header {
			lines = append(lines, fmt.Sprintf("%s=%q", k, v))
		}
		slices.Sort(lines)
		_, _ = fmt.Fprintf(w, "%s %s %s %d %d %.20q %v %v %s", r.Method, r.Host, r.RequestURI, r.ContentLength, len(b), b, err, r.Trailer, lines)
	}
	body := func(r *http.Request, s string, known bool) {
		r.Method, r.ContentLength = http.MethodPost, -1
		if r.Body = io.NopCloser(strings.NewReader(s)); known {
			r.ContentLength = int64(len(s))
		}
	}
	flush := func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
	big := strings.Repeat("0123456789", 300000)
	return []asking{
		{"get", echo, func(r *http.Request) { r.Header = http.Header{"X": {"1", "2"}, "Cookie": {"a=b"}, "User-Agent": {""}} }},
		{"te", echo, func(r *http.Request) { r.Header = http.Header{"Te": {"trailers"}} }},
		{"opaque path", echo, func(r *http.Request) { r.URL.Opaque = "/a%2fb?x=%zz" }},
		{"post", echo, func(r *http.Request) { body(r, "hello", true) }},
		{"post nothing", echo, func(r *http.Request) { r.Method = http.MethodPost }},
		{"post of no said length", echo, func(r *http.Request) { body(r, "hello", false) }},
		{"post much", echo, func(r *http.Request) { body(r, big, true) }},
		{"post much of no said length", echo, func(r *http.Request) { body(r, big, false) }},
		{"trailers of the request", echo, func(r *http.Request) { body(r, "x", false); r.Trailer = http.Header{"X-Sum": {"7"}} }},
		{"body longer than said", echo, func(r *http.Request) { body(r, "hello", true); r.ContentLength = 2 }},
		{"body that fails", echo, func(r *http.Request) {
			body(r, "", false)
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("abc"), failing{}))
		}},
		{"continue", echo, func(r *http.Request) { body(r, "hello", true); r.Header = http.Header{"Expect": {"100-continue"}} }},
		{"continue refused", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(417) }, func(r *http.Request) { body(r, "hello", true); r.Header = http.Header{"Expect": {"100-continue"}} }},
		{"head", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "7") }, func(r *http.Request) { r.Method = http.MethodHead }},
		{"head of no length", func(w http.ResponseWriter, _ *http.Request) { flush(w) }, func(r *http.Request) { r.Method = http.MethodHead }},
		{"no content", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, nil},
		{"unchanged", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) }, nil},
		{"nothing", func(http.ResponseWriter, *http.Request) {}, nil},
		{"flushed", func(w http.ResponseWriter, _ *http.Request) {
			flush(w)
			_, _ = io.WriteString(w, "ab")
			flush(w)
			_, _ = io.WriteString(w, "c")
		}, nil},
		{"much", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, big) }, nil},
		{"hints", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "a")
			w.WriteHeader(103)
			w.WriteHeader(103)
			w.Header().Del("Link")
			_, _ = io.WriteString(w, "x")
		}, nil},
		{"trailers", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-A")
			_, _ = io.WriteString(w, "x")
			w.Header().Set("X-A", "1")
			w.Header().Set("Trailer:X-B", "2")
		}, nil},
		{"trailers alone", func(w http.ResponseWriter, _ *http.Request) { flush(w); w.Header().Set("Trailer:Grpc-Status", "0") }, nil},
		{"given up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil},
		{"given up late", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "ab")
			flush(w)
			panic(http.ErrAbortHandler)
		}, nil},
	}
}

type failing struct{}

var errBody = errors.New("the body fails")

func (failing) Read([]byte) (int, error) { return 0, errBody }

// observe asks and says all that there is to see.
func observe(t *testing.T, rt http.RoundTripper, a asking) string {
	t.Helper()
	var informal []string
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		informal = append(informal, fmt.Sprint(code, h["Link"]))
		return nil
	}})
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://web:80/a%20b?y=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.request != nil {
		a.request(r)
	}
	if r.Header["User-Agent"] == nil {
		r.Header["User-Agent"] = []string{""} // net/http's client names itself otherwise
	}
	resp, err := rt.RoundTrip(r)
	if err != nil {
		return "no answer"
	}
	announced := len(resp.Trailer)
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	resp.Header.Del("Date")
	return fmt.Sprintf("%v %s %s %v length=%d body=%d %.300q whole=%v announced=%d %v", informal, resp.Status, resp.Proto, resp.Header, resp.ContentLength, len(b), b, err == nil, announced, resp.Trailer)
}

// TestPoolLikeNetHTTP: to net/http's server we are what net/http's client is, and give our caller what it gives.
func TestPoolLikeNetHTTP(t *testing.T) {
	for _, a := range askings() {
		t.Run(a.name, func(t *testing.T) {
			dial, _ := netServer(t, a.handler, 0)
			theirs := observe(t, netTransport(t, dial), a)
			if ours := observe(t, newPool(t, dial), a); ours != theirs {
				t.Errorf("ours   %s\ntheirs %s", ours, theirs)
			}
		})
	}
}

// TestPoolBetterThanNetHTTP: where its client errs we do not follow.
func TestPoolBetterThanNetHTTP(t *testing.T) {
	saw := make(chan string, 1)
	tell := func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		saw <- fmt.Sprint(r.Header["Te"], r.Header["Keep-Alive"], err)
		w.Header().Set("Content-Length", "5")
		w.WriteHeader(304)
	}
	dial, _ := netServer(t, http.HandlerFunc(tell), 0)
	p := newPool(t, dial)
	// What only HTTP/1 has a meaning for stays here; a 304 has no content, whatever length it names.
	got := observe(t, p, asking{request: func(r *http.Request) {
		r.Header = http.Header{"Te": {"trailers, deflate"}, "Keep-Alive": {"1"}, "Proxy-Connection": {"x"}}
	}})
	if want := `[] 304 Not Modified HTTP/2.0 map[Content-Length:[5]] length=5 body=0 "" whole=true announced=0 map[]`; got != want {
		t.Error(got)
	}
	if got := <-saw; got != "[trailers] [] <nil>" {
		t.Error(got)
	}
	// Half a body is no body: the server is not told that it is whole.
	_ = observe(t, p, asking{request: func(r *http.Request) {
		r.Method, r.ContentLength, r.Body = http.MethodPost, 9, io.NopCloser(strings.NewReader("hello"))
	}})
	if got := <-saw; !strings.HasPrefix(got, "[] [] ") || strings.HasSuffix(got, "<nil>") {
		t.Error(got)
	}
}

// TestPoolShares: many requests at once on few connections, as many as the server allows on each.
func TestPoolShares(t *testing.T) {
	var now, most atomic.Int64
	dial, dials := netServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		_, _ = io.Copy(w, r.Body)
	}), 10)
	p := newPool(t, dial)
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			text := strings.Repeat("x", i)
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web/", strings.NewReader(text))
			resp, err := p.RoundTrip(r)
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := io.ReadAll(resp.Body); string(b) != text || err != nil {
				t.Errorf("%d bytes of %d, %v", len(b), i, err)
			}
		})
	}
	wg.Wait()
	if n := dials.Load(); n < 1 || n > 60 {
		t.Errorf("%d connections", n)
	}
	before := dials.Load()
	for range 20 {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://web/", nil)
		resp, err := p.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	if dials.Load() != before {
		t.Error("connections are not kept")
	}
	p.CloseIdleConnections()
	p.mu.Lock()
	conns := slices.Clone(p.conns)
	p.mu.Unlock()
	for _, cc := range conns {
		select {
		case <-cc.Done():
		case <-time.After(5 * time.Second):
			t.Fatal("an idle connection stays")
		}
	}
}

// TestPoolIdleTimeout: a connection on which nothing is asked ends by itself.
func TestPoolIdleTimeout(t *testing.T) {
	hold := make(chan struct{})
	dial, _ := netServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold }), 0)
	p := newPool(t, dial)
	p.IdleTimeout = 50 * time.Millisecond
	done := make(chan error, 1)
	began := time.Now()
	go func() {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://web/", nil)
		_, err := p.RoundTrip(r)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatal("ended under a request:", err)
	case <-time.After(300 * time.Millisecond):
	}
	close(hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	i := p.conns[0].idle
	i.mu.Lock()
	if d := i.last.Sub(began); d < 300*time.Millisecond {
		t.Errorf("nothing was asked since %v after the beginning: the request was longer", d)
	}
	i.mu.Unlock()
	select {
	case <-p.conns[0].Done():
	case <-time.After(5 * time.Second):
		t.Error("it stays")
	}
}

// script is a server that writes frames: one function for each connection, after the first HEADERS came.
func script(t *testing.T, answers ...func(p *peer, id uint32)) *Pool {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return newPool(t, func(context.Context) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(answers) == 0 {
			return nil, errors.New("no more connections")
		}
		answer := answers[0]
		answers = answers[1:]
		a, b := tcppair.New(t)
		wg.Go(func() {
			defer func() { _ = b.Close() }()
			p := &peer{t: t, c: b, fr: http2.NewFramer(b, b)}
			p.enc = hpack.NewEncoder(&p.block)
			p.fr.AllowIllegalWrites = true
			p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
			_ = b.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = io.CopyN(io.Discard, b, int64(len(http2.ClientPreface)))
			_ = p.fr.WriteSettings()
			for {
				f, err := p.fr.ReadFrame()
				if err != nil {
					return
				}
				if h, ok := f.(*http2.MetaHeadersFrame); ok {
					answer(p, h.StreamID)
					p.rest()
					return
				}
			}
		})
		return a, nil
	})
}

func ok(p *peer, id uint32) { _ = p.headers(id, true, ":status", "200") }

// TestPoolGoAway: what a server has not looked at is asked again, what may have been seen is not.
func TestPoolGoAway(t *testing.T) {
	away := func(p *peer, _ uint32) { _ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }
	refuse := func(p *peer, id uint32) { _ = p.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) }
	seen := func(p *peer, id uint32) { _ = p.fr.WriteGoAway(id, http2.ErrCodeInternal, nil); _ = p.c.Close() }
	reset := func(p *peer, id uint32) {
		_ = p.fr.WriteRSTStream(id, http2.ErrCodeInternal)
		for { // a second time it would be answered
			f, err := p.fr.ReadFrame()
			if err != nil {
				return
			}
			if h, again := f.(*http2.MetaHeadersFrame); again {
				ok(p, h.StreamID)
			}
		}
	}
	for name, c := range map[string]struct {
		answers []func(*peer, uint32)
		body    string
		good    bool
	}{
		"goes away":           {[]func(*peer, uint32){away, ok}, "", true},
		"goes away again":     {[]func(*peer, uint32){away, away, ok}, "", true},
		"goes away for ever":  {[]func(*peer, uint32){away, away, away, ok}, "", false},
		"body begun":          {[]func(*peer, uint32){away, ok}, "x", false},
		"refuses":             {[]func(*peer, uint32){func(p *peer, id uint32) { refuse(p, id); p.until(http2.FrameHeaders, id+2); ok(p, id+2) }}, "", true},
		"has seen":            {[]func(*peer, uint32){seen, ok}, "", false},
		"resets":              {[]func(*peer, uint32){reset, ok}, "", false},
		"connection is reset": {[]func(*peer, uint32){func(p *peer, _ uint32) { _ = p.c.Close() }, ok}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := script(t, c.answers...)
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web/", nil)
			if c.body != "" {
				r.Body = io.NopCloser(strings.NewReader(c.body))
			}
			resp, err := p.RoundTrip(r)
			if (err == nil) != c.good {
				t.Errorf("%v", err)
			}
			if err == nil {
				_ = resp.Body.Close()
			}
			p.CloseIdleConnections()
		})
	}
}

// TestPoolCancel: who gives a request up tells the server so, and has his own reason as the error.
func TestPoolCancel(t *testing.T) {
	why := errors.New("enough")
	for name, answer := range map[string]bool{"before the answer": false, "within the answer": true, "by closing its body": true} {
		t.Run(name, func(t *testing.T) {
			codes := make(chan http2.ErrCode, 1)
			began := make(chan struct{})
			p := script(t, func(p *peer, id uint32) {
				if answer {
					_ = p.headers(id, false, ":status", "200")
				}
				close(began)
				f, _ := p.until(http2.FrameRSTStream, id).(*http2.RSTStreamFrame)
				codes <- f.ErrCode
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				if <-began; !answer {
					cancel(why)
				}
			}()
			r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://web/", nil)
			resp, err := p.RoundTrip(r)
			switch {
			case name == "by closing its body":
				defer cancel(nil)
				_ = resp.Body.Close()
				err = why
			case answer:
				cancel(why)
				_, err = io.ReadAll(resp.Body)
			}
			if !errors.Is(err, why) {
				t.Error(err)
			}
			if code := <-codes; code != http2.ErrCodeCancel {
				t.Error(code)
			}
		})
	}
}

// TestPoolContinueRefused: a body whose answer came while it waited for 100 is not sent.
func TestPoolContinueRefused(t *testing.T) {
	sent := make(chan bool, 1)
	p := script(t, func(p *peer, id uint32) {
		_ = p.headers(id, false, ":status", "417", "content-length", "1")
		_ = p.c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		for {
			f, err := p.fr.ReadFrame()
			if _, data := f.(*http2.DataFrame); data || err != nil {
				sent <- data
				break
			}
		}
		_ = p.fr.WriteData(id, true, []byte("x"))
	})
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web/", strings.NewReader("hello"))
	r.Header.Set("Expect", "100-continue")
	resp, err := p.RoundTrip(r)
	if err != nil || resp.StatusCode != 417 {
		t.Fatal(resp, err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "x" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if <-sent {
		t.Error("it was sent")
	}
}

// TestPoolMalformed: no answer that is none passes for one, and none is cut short in silence.
func TestPoolMalformed(t *testing.T) {
	length := func(n string, content string, end bool) func(*peer, uint32) {
		return func(p *peer, id uint32) {
			_ = p.headers(id, false, ":status", "200", "content-length", n)
			_ = p.fr.WriteData(id, end, []byte(content))
			if !end {
				_ = p.fr.WriteRSTStream(id, http2.ErrCodeCancel)
			}
		}
	}
	header := func(kv ...string) func(*peer, uint32) {
		return func(p *peer, id uint32) { _ = p.headers(id, true, kv...) }
	}
	for name, answer := range map[string]func(*peer, uint32){
		"too short": length("5", "four", true), "too long": length("3", "four", true), "cut": length("9", "four", false),
		"signed length": length("+4", "four", true), "no status": header("x", "1"), "status": header(":status", "2000"),
		"length and nothing": header(":status", "200", "content-length", "5"), "two lengths": header(":status", "200", "content-length", "0", "content-length", "1"),
		"connection": header(":status", "200", "connection", "x"), "chunks": header(":status", "200", "transfer-encoding", "chunked"),
		"switch": header(":status", "101"), "upper case": header(":status", "200", "X-Up", "1"),
		"cut in the open": func(p *peer, id uint32) {
			_ = p.headers(id, false, ":status", "200")
			_ = p.fr.WriteRSTStream(id, http2.ErrCodeNo)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := script(t, answer)
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://web/", nil)
			resp, err := p.RoundTrip(r)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			if err == nil {
				t.Error("it was taken")
			}
		})
	}
}
