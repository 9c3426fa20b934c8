package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wire is the other side of a connection, frame by frame.
type wire struct {
	t      *testing.T
	nc     net.Conn
	fr     *http2.Framer
	frames chan string // what the connection sent, as text
	enc    *hpack.Encoder
	block  bytes.Buffer
}

// lockstep starts a server connection with a test peer in a synctest bubble.
func lockstep(t *testing.T, cfg Config, r role, h Handler, run func(c *Conn, w *wire)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		var c *Conn
		if r == server {
			c = NewServer(a, cfg, h)
		} else {
			c = NewClient(a, cfg)
		}
		w := &wire{t: t, nc: b, fr: http2.NewFramer(b, b), frames: make(chan string, 100_000)}
		w.fr.AllowIllegalWrites = true
		w.enc = hpack.NewEncoder(&w.block)
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer close(w.frames)
			if r == client {
				_, _ = io.ReadFull(b, make([]byte, len(http2.ClientPreface)))
			}
			dec := hpack.NewDecoder(4096, nil)
			w.fr.ReadMetaHeaders = dec
			w.fr.SetMaxReadFrameSize(1 << 20)
			for {
				f, err := w.fr.ReadFrame()
				if err != nil {
					return
				}
				w.frames <- describe(f)
			}
		}()
		if r == server {
			_, _ = b.Write([]byte(http2.ClientPreface))
		}
		_ = w.fr.WriteSettings()
		run(c, w)
		_ = c.Close()
		c.Wait()
		_ = b.Close()
		<-done
	})
}

func describe(f http2.Frame) string {
	var b strings.Builder
	h := f.Header()
	b.WriteString(h.Type.String())
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		for _, x := range f.Fields {
			b.WriteString(" " + x.Name + "=" + x.Value)
		}
		if f.StreamEnded() {
			b.WriteString(" END")
		}
	case *http2.RSTStreamFrame:
		b.WriteString(" " + f.ErrCode.String())
	case *http2.GoAwayFrame:
		b.WriteString(" " + f.ErrCode.String())
	case *http2.DataFrame:
		b.WriteString(" " + string(f.Data()))
		if f.StreamEnded() {
			b.WriteString("END")
		}
	}
	return b.String()
}

// sent waits until the connection is quiet and returns what it sent since,
// without the frames named in skip.
func (w *wire) sent(skip ...string) []string {
	synctest.Wait()
	var out []string
next:
	for {
		select {
		case f, ok := <-w.frames:
			if !ok {
				return append(out, "EOF")
			}
			for _, s := range skip {
				if strings.HasPrefix(f, s) {
					continue next
				}
			}
			out = append(out, f)
		default:
			return out
		}
	}
}

func (w *wire) headers(id uint32, end bool, kv ...string) {
	w.block.Reset()
	for i := 0; i < len(kv); i += 2 {
		_ = w.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	_ = w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: w.block.Bytes(), EndHeaders: true, EndStream: end})
}

func (w *wire) connect(id uint32) { w.headers(id, false, ":method", "CONNECT", ":authority", "a:1") }

func (w *wire) want(skip []string, want ...string) {
	w.t.Helper()
	got := w.sent(skip...)
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		w.t.Errorf("sent\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

var settingsOnly = []string{"SETTINGS", "WINDOW_UPDATE"}

func okHandler(s *Stream, _ []Field) {
	if s.Respond([]Field{{":status", "200"}}, false) == nil {
		_, _ = io.Copy(io.Discard, s)
		_ = s.CloseWrite()
	}
	_ = s.Close()
}

func TestGreeting(t *testing.T) {
	lockstep(t, Config{}, server, okHandler, func(_ *Conn, w *wire) {
		w.want(nil, "SETTINGS", "WINDOW_UPDATE", "SETTINGS")
	})
	lockstep(t, Config{}, client, nil, func(_ *Conn, w *wire) {
		w.want(nil, "SETTINGS", "WINDOW_UPDATE", "SETTINGS")
	})
}

// TestMalformedRequests: RFC 9113 sections 8.3.1, 8.5 and 8.2: each costs its
// stream, and the next request is served.
func TestMalformedRequests(t *testing.T) {
	for name, kv := range map[string][]string{
		"connect with path":       {":method", "CONNECT", ":authority", "a:1", ":path", "/"},
		"connect with scheme":     {":method", "CONNECT", ":authority", "a:1", ":scheme", "https"},
		"connect, no authority":   {":method", "CONNECT"},
		"extended connect":        {":method", "CONNECT", ":authority", "a:1", ":protocol", "websocket"},
		"no method":               {":authority", "a:1"},
		"get without path":        {":method", "GET", ":scheme", "http", ":authority", "a"},
		"status":                  {":method", "CONNECT", ":authority", "a:1", ":status", "200"},
		"twice":                   {":method", "CONNECT", ":method", "CONNECT", ":authority", "a:1"},
		"pseudo after regular":    {":method", "CONNECT", "x", "y", ":authority", "a:1"},
		"unknown pseudo":          {":method", "CONNECT", ":authority", "a:1", ":x", "y"},
		"connection header":       {":method", "CONNECT", ":authority", "a:1", "connection", "close"},
		"upper-case header":       {":method", "CONNECT", ":authority", "a:1", "X", "y"},
		"control byte in a value": {":method", "CONNECT", ":authority", "a:1", "x", "a\nb"},
	} {
		t.Run(name, func(t *testing.T) {
			lockstep(t, Config{}, server, okHandler, func(_ *Conn, w *wire) {
				w.headers(1, false, kv...)
				w.connect(3)
				w.want(settingsOnly, "RST_STREAM PROTOCOL_ERROR", "HEADERS :status=200")
			})
		})
	}
}

// TestConnectionErrors: what breaks the connection, and with which code.
func TestConnectionErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(w *wire)
		code string
	}{
		"data on stream 0":       {func(w *wire) { _ = w.fr.WriteData(0, false, []byte("x")) }, "PROTOCOL_ERROR"},
		"data on idle stream":    {func(w *wire) { _ = w.fr.WriteData(5, false, []byte("x")) }, "PROTOCOL_ERROR"},
		"window of idle stream":  {func(w *wire) { _ = w.fr.WriteWindowUpdate(5, 1) }, "PROTOCOL_ERROR"},
		"reset of idle stream":   {func(w *wire) { _ = w.fr.WriteRSTStream(5, 8) }, "PROTOCOL_ERROR"},
		"even stream":            {func(w *wire) { w.connect(2) }, "PROTOCOL_ERROR"},
		"window overflow":        {func(w *wire) { _ = w.fr.WriteWindowUpdate(0, 1<<31-1) }, "FLOW_CONTROL_ERROR"},
		"zero window update":     {func(w *wire) { _ = w.fr.WriteWindowUpdate(0, 0) }, "PROTOCOL_ERROR"},
		"initial window too big": {func(w *wire) { _ = w.fr.WriteSettings(http2.Setting{ID: 4, Val: 1 << 31}) }, "FLOW_CONTROL_ERROR"},
		"frame size too small":   {func(w *wire) { _ = w.fr.WriteSettings(http2.Setting{ID: 5, Val: 1}) }, "PROTOCOL_ERROR"},
		"ping of 7 bytes":        {func(w *wire) { _ = w.fr.WriteRawFrame(6, 0, 0, make([]byte, 7)) }, "FRAME_SIZE_ERROR"},
		"push":                   {func(w *wire) { _ = w.fr.WriteRawFrame(5, 4, 1, make([]byte, 8)) }, "PROTOCOL_ERROR"},
		"continuation alone":     {func(w *wire) { _ = w.fr.WriteRawFrame(9, 4, 1, nil) }, "PROTOCOL_ERROR"},
		"bad hpack":              {func(w *wire) { _ = w.fr.WriteRawFrame(1, 4, 1, []byte{0xff, 0xff, 0xff, 0xff}) }, "COMPRESSION_ERROR"},
		"big control frame": {func(w *wire) {
			go func() { _ = w.fr.WriteRawFrame(4, 0, 0, make([]byte, 600_000)) }()
		}, "FRAME_SIZE_ERROR"},
		"padding over the frame": {func(w *wire) {
			w.connect(1)
			_ = w.fr.WriteRawFrame(0, 8, 1, []byte{9, 1, 2})
		}, "PROTOCOL_ERROR"},
		"late headers": {func(w *wire) {
			w.headers(1, true, ":method", "CONNECT", ":authority", "a:1")
			synctest.Wait()
			w.connect(1)
		}, "STREAM_CLOSED"},
	} {
		t.Run(name, func(t *testing.T) {
			lockstep(t, Config{}, server, okHandler, func(c *Conn, w *wire) {
				w.sent()
				tc.do(w)
				<-c.Done()
				got := strings.Join(w.sent(settingsOnly...), "|")
				if !strings.Contains(got, "GOAWAY "+tc.code) {
					t.Errorf("sent %s, want GOAWAY %s; error %v", got, tc.code, c.Err())
				}
			})
		})
	}
}

func TestNotHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c := NewServer(a, Config{}, okHandler)
		go func() { _, _ = b.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")) }()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		err := c.Serve(t.Context())
		if err == nil || !strings.Contains(err.Error(), "GET / HTTP/1.1") {
			t.Errorf("error %v does not show what came", err)
		}
		_ = b.Close()
	})
}

func TestSilentClientIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		start := time.Now()
		c := NewServer(a, Config{}, okHandler)
		_ = c.Serve(t.Context())
		if d := time.Since(start); d != prefaceTimeout {
			t.Errorf("after %v, want %v", d, prefaceTimeout)
		}
		_ = b.Close()
	})
}

// TestLimits: what a peer does too often ends its connection.
func TestLimits(t *testing.T) {
	for name, do := range map[string]func(w *wire, i int) error{
		"settings": func(w *wire, _ int) error { return w.fr.WriteSettings() },
		"pings":    func(w *wire, _ int) error { return w.fr.WritePing(false, [8]byte{1}) },
		"answers":  func(w *wire, _ int) error { return w.fr.WritePing(true, [8]byte{1}) },
		"priority": func(w *wire, _ int) error { return w.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3}) },
		"unknown":  func(w *wire, _ int) error { return w.fr.WriteRawFrame(77, 0, 0, []byte("x")) },
		"self-dependent": func(w *wire, i int) error {
			if i == 0 {
				w.connect(1)
			}
			return w.fr.WritePriority(1, http2.PriorityParam{StreamDep: 1})
		},
		"empty data": func(w *wire, i int) error {
			if i == 0 {
				w.connect(1)
			}
			return w.fr.WriteData(1, false, nil)
		},
		"rapid reset": func(w *wire, i int) error {
			w.connect(uint32(2*i + 1))
			return w.fr.WriteRSTStream(uint32(2*i+1), 8)
		},
		"continuations": func(w *wire, i int) error {
			if i == 0 {
				return w.fr.WriteRawFrame(1, 0, 1, nil)
			}
			return w.fr.WriteRawFrame(9, 0, 1, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var hold chan struct{}
			h := okHandler
			if name == "rapid reset" {
				h = func(s *Stream, _ []Field) { <-hold; _ = s.Close() }
			}
			lockstep(t, Config{PingInterval: -1}, server, h, func(c *Conn, w *wire) {
				hold = make(chan struct{})
				w.sent()
				stop := make(chan struct{})
				go func() {
					defer close(stop)
					for i := range 100_000 {
						if do(w, i) != nil {
							return
						}
					}
				}()
				<-c.Done()
				var ce *ConnError
				if !errors.As(c.Err(), &ce) || ce.Code != EnhanceYourCalm {
					t.Errorf("ended by %v, want ENHANCE_YOUR_CALM", c.Err())
				}
				_ = w.nc.Close()
				<-stop
				close(hold)
			})
		})
	}
}

func TestTooManyStreams(t *testing.T) {
	lockstep(t, Config{MaxStreams: 2}, server, okHandler, func(c *Conn, w *wire) {
		for id := uint32(1); id < 8; id += 2 {
			w.connect(id)
			synctest.Wait()
		}
		w.want(settingsOnly, "HEADERS :status=200", "HEADERS :status=200", "RST_STREAM REFUSED_STREAM", "RST_STREAM REFUSED_STREAM")
		if n := c.Streams(); n != 2 {
			t.Errorf("%d streams", n)
		}
	})
}

// TestStreamCountsUntilBothEnds also shows that window is given back for
// bytes that nobody read.
func TestStreamCountsUntilBothEnds(t *testing.T) {
	var release chan struct{} // made inside the bubble
	lockstep(t, Config{}, server, func(s *Stream, _ []Field) {
		_ = s.Respond([]Field{{":status", "200"}}, false)
		<-release
		_ = s.CloseWrite()
		_ = s.Close()
	}, func(c *Conn, w *wire) {
		release = make(chan struct{})
		w.connect(1)
		_ = w.fr.WriteData(1, true, make([]byte, 1000))
		synctest.Wait()
		if n := c.Streams(); n != 1 {
			t.Errorf("half-closed stream: %d streams", n)
		}
		close(release)
		synctest.Wait()
		if n := c.Streams(); n != 0 {
			t.Errorf("ended stream: %d streams", n)
		}
	})
}

// TestWindowsAreConserved: after anything, left + unsaid is the size again
// once nothing is buffered.
func TestWindowsAreConserved(t *testing.T) {
	lockstep(t, Config{}, server, func(s *Stream, _ []Field) {
		_ = s.Respond([]Field{{":status", "200"}}, false)
		_, _ = io.CopyN(io.Discard, s, 1500)
		_ = s.Close()
	}, func(c *Conn, w *wire) {
		w.connect(1)
		_ = w.fr.WriteDataPadded(1, false, make([]byte, 1000), make([]byte, 50))
		_ = w.fr.WriteData(1, false, make([]byte, 2000))
		synctest.Wait()
		_ = w.fr.WriteData(1, false, make([]byte, 700)) // after our reset
		synctest.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		if got := c.recv.left + c.recv.unsaid; got != c.recv.size {
			t.Errorf("connection window: left+unsaid = %d, size %d", got, c.recv.size)
		}
	})
}

func TestWindowOverrun(t *testing.T) {
	var hold chan struct{}
	lockstep(t, Config{StreamWindow: 1000}, server, func(s *Stream, _ []Field) {
		_ = s.Respond([]Field{{":status", "200"}}, false)
		<-hold
		_ = s.Close()
	}, func(_ *Conn, w *wire) {
		hold = make(chan struct{})
		w.connect(1)
		synctest.Wait()
		_ = w.fr.WriteData(1, false, make([]byte, 1001))
		w.want(settingsOnly, "HEADERS :status=200", "RST_STREAM FLOW_CONTROL_ERROR")
		close(hold)
	})
}

// TestTinyWindows: a peer that opens its windows byte by byte gets exactly
// what it allows.
func TestTinyWindows(t *testing.T) {
	lockstep(t, Config{}, server, func(s *Stream, _ []Field) {
		_ = s.Respond([]Field{{":status", "200"}}, false)
		_, _ = s.Write([]byte("abc"))
		_ = s.CloseWrite()
		_, _ = io.Copy(io.Discard, s)
		_ = s.Close()
	}, func(_ *Conn, w *wire) {
		_ = w.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		w.connect(1)
		w.want(settingsOnly, "HEADERS :status=200")
		_ = w.fr.WriteWindowUpdate(1, 1)
		w.want(settingsOnly, "DATA a")
		_ = w.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		w.want(settingsOnly, "DATA b")
		_ = w.fr.WriteWindowUpdate(1, 7)
		w.want(settingsOnly, "DATA c", "DATA END")
	})
}

func TestClientResponses(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(w *wire)
		want   string // error text; empty = success
	}{
		"ok":            {func(w *wire) { w.headers(1, false, ":status", "200") }, ""},
		"informational": {func(w *wire) { w.headers(1, false, ":status", "103"); w.headers(1, false, ":status", "200") }, ""},
		"no status":     {func(w *wire) { w.headers(1, false, "x", "y") }, "malformed response"},
		"bad status":    {func(w *wire) { w.headers(1, false, ":status", "2x0") }, "malformed response"},
		"data first":    {func(w *wire) { _ = w.fr.WriteData(1, false, []byte("x")) }, "DATA before the response"},
		"refused":       {func(w *wire) { _ = w.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream) }, "REFUSED_STREAM"},
		"goaway":        {func(w *wire) { _ = w.fr.WriteGoAway(0, 0, nil) }, ErrGoingAway.Error()},
		"closed":        {func(w *wire) { _ = w.nc.Close() }, "closed by the peer"},
		"endless 1xx": {func(w *wire) {
			for range 12 {
				w.headers(1, false, ":status", "103")
			}
		}, "informational"},
	} {
		t.Run(name, func(t *testing.T) {
			lockstep(t, Config{}, client, nil, func(c *Conn, w *wire) {
				s, err := c.Open(w.t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				go tc.answer(w)
				_, err = s.Response(w.t.Context())
				switch {
				case tc.want == "" && err != nil:
					t.Errorf("error %v", err)
				case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
					t.Errorf("error %v, want %q", err, tc.want)
				}
				_ = s.Close()
				synctest.Wait()
			})
		})
	}
}

func TestBufferedDataSurvivesReset(t *testing.T) {
	for code, want := range map[http2.ErrCode]string{0: "", 8: "", 5: "broken pipe", 2: "INTERNAL_ERROR"} {
		lockstep(t, Config{}, client, nil, func(c *Conn, w *wire) {
			s, err := c.Open(w.t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
			if err != nil {
				t.Fatal(err)
			}
			w.headers(1, false, ":status", "200")
			_ = w.fr.WriteData(1, false, []byte("tail"))
			_ = w.fr.WriteRSTStream(1, code)
			synctest.Wait()
			got, err := io.ReadAll(s)
			if string(got) != "tail" {
				t.Errorf("code %v: read %q", code, got)
			}
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("code %v: error %v, want %q", code, err, want)
			}
		})
	}
}

// TestOpenWaitsForPlace: a peer that allows one stream makes the second wait.
func TestOpenWaitsForPlace(t *testing.T) {
	lockstep(t, Config{}, client, nil, func(c *Conn, w *wire) {
		_ = w.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		synctest.Wait()
		open := func() (*Stream, error) {
			return c.Open(w.t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
		}
		first, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if c.Reserve() {
			t.Error("reserved a place that is not there")
		}
		second := make(chan error, 1)
		go func() { _, err := open(); second <- err }()
		synctest.Wait()
		select {
		case err := <-second:
			t.Fatalf("second stream did not wait: %v", err)
		default:
		}
		_ = first.Close()
		if err := <-second; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		if _, err := c.Open(ctx, []Field{{":method", "CONNECT"}, {":authority", "b:1"}}, false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting past the deadline: %v", err)
		}
	})
}

func TestOversizedHeaders(t *testing.T) {
	lockstep(t, Config{MaxHeaderList: 1000}, server, okHandler, func(_ *Conn, w *wire) {
		w.headers(1, false, ":method", "CONNECT", ":authority", "a:1", "x", strings.Repeat("y", 700), "z", strings.Repeat("y", 700))
		w.connect(3)
		w.want(settingsOnly, "HEADERS :status=431 END", "RST_STREAM NO_ERROR", "HEADERS :status=200")
	})
}
