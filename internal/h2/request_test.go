package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// echoHandler says what it got of a request, and sends a trailer behind it.
func echoHandler(s *Stream, _ []Field) {
	b, err := io.ReadAll(s)
	text := fmt.Sprintf("%q", b)
	if !s.Ended() {
		text += " cut"
	}
	for _, f := range s.Trailers() {
		text += " " + f.Name + ":" + f.Value
	}
	if err == nil && s.Answer([]Field{{":status", "200"}}, []byte(text), false) == nil {
		_ = s.Finish(nil, []Field{{"x-late", "1"}})
	}
	_ = s.Close()
}

func general() Config { return Config{PingInterval: -1, Requests: &Requests{ExtendedConnect: true}} }

// TestRequestsOfEveryKind: what a connection of Requests lets through and what
// it refuses: RFC 9113 sections 8.1.1, 8.2, 8.3.1 and 8.5, RFC 8441 section 4.
func TestRequestsOfEveryKind(t *testing.T) {
	get := func(kv ...string) []string {
		return append([]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}, kv...)
	}
	for name, tc := range map[string]struct {
		kv     []string
		served bool
	}{
		"get":                      {get(), true},
		"with fields":              {get("te", "trailers", "host", "a", "content-length", "0", "x", ""), true},
		"length said twice":        {get("content-length", "0", "content-length", "0"), true},
		"no authority":             {[]string{":method", "GET", ":scheme", "https", ":path", "/?q"}, true},
		"host for authority":       {[]string{":method", "GET", ":scheme", "https", ":path", "/?q", "host", "a:80"}, true},
		"options of all":           {[]string{":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "a"}, true},
		"connect":                  {[]string{":method", "CONNECT", ":authority", "a:1"}, true},
		"extended connect":         {[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/", ":authority", "a"}, true},
		"no method":                {[]string{":scheme", "http", ":path", "/", ":authority", "a"}, false},
		"method":                   {[]string{":method", "G T", ":scheme", "http", ":path", "/", ":authority", "a"}, false},
		"no scheme":                {[]string{":method", "GET", ":path", "/", ":authority", "a"}, false},
		"scheme":                   {[]string{":method", "GET", ":scheme", "ftp", ":path", "/", ":authority", "a"}, false},
		"no path":                  {[]string{":method", "GET", ":scheme", "http", ":authority", "a"}, false},
		"empty path":               {[]string{":method", "GET", ":scheme", "http", ":path", "", ":authority", "a"}, false},
		"relative path":            {[]string{":method", "GET", ":scheme", "http", ":path", "x", ":authority", "a"}, false},
		"absolute form":            {[]string{":method", "GET", ":scheme", "http", ":path", "http://b/", ":authority", "a"}, false},
		"blank in path":            {[]string{":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1", ":authority", "a"}, false},
		"star":                     {[]string{":method", "GET", ":scheme", "http", ":path", "*", ":authority", "a"}, false},
		"user in authority":        {[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "u@a"}, false},
		"authority":                {[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a b"}, false},
		"status":                   {get(":status", "200"), false},
		"protocol of a get":        {[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", ":protocol", "x"}, false},
		"protocol without path":    {[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a"}, false},
		"connect with path":        {[]string{":method", "CONNECT", ":authority", "a:1", ":path", "/"}, false},
		"connect, no authority":    {[]string{":method", "CONNECT"}, false},
		"connection":               {get("connection", "close"), false},
		"keep-alive":               {get("keep-alive", "1"), false},
		"upgrade":                  {get("upgrade", "h2c"), false},
		"chunks":                   {get("transfer-encoding", "chunked"), false},
		"te":                       {get("te", "gzip"), false},
		"te twice":                 {get("te", "trailers", "te", "trailers"), false},
		"another host":             {get("host", "b"), false},
		"two hosts":                {get("host", "a", "host", "a"), false},
		"blank before a value":     {get("x", " y"), false},
		"blank behind a value":     {get("x", "y\t"), false},
		"control byte":             {get("x", "y\rz"), false},
		"upper case":               {get("X", "y"), false},
		"length that is none":      {get("content-length", "+0"), false},
		"list of lengths":          {get("content-length", "0, 0"), false},
		"two lengths":              {get("content-length", "0", "content-length", "1"), false},
		"length without content":   {get("content-length", "1"), false},
		"length beyond all bounds": {get("content-length", "9223372036854775808"), false},
	} {
		t.Run(name, func(t *testing.T) {
			lockstep(t, general(), server, echoHandler, func(_ *Conn, w *wire) {
				w.headers(1, true, tc.kv...)
				want := []string{"RST_STREAM PROTOCOL_ERROR"}
				if tc.served {
					want = []string{"HEADERS :status=200", `DATA ""`, "HEADERS x-late=1 END"}
				}
				w.want(settingsOnly, want...)
			})
		})
	}
	lockstep(t, Config{Requests: &Requests{}}, server, echoHandler, func(_ *Conn, w *wire) {
		w.headers(1, true, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/", ":authority", "a")
		w.want(settingsOnly, "RST_STREAM PROTOCOL_ERROR")
	})
}

// TestContentLength: content is as long as was said, or the stream is reset.
func TestContentLength(t *testing.T) {
	post := func(w *wire, length string) {
		w.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a", "content-length", length)
	}
	broken := []string{"RST_STREAM PROTOCOL_ERROR"}
	for name, tc := range map[string]struct {
		do   func(w *wire)
		want []string
	}{
		"right": {func(w *wire) {
			post(w, "3")
			_ = w.fr.WriteData(1, false, []byte("ab"))
			_ = w.fr.WriteDataPadded(1, true, []byte("c"), make([]byte, 9))
		}, []string{"HEADERS :status=200", `DATA "abc"`, "HEADERS x-late=1 END"}},
		"right, and trailers": {func(w *wire) {
			post(w, "1")
			_ = w.fr.WriteData(1, false, []byte("a"))
			w.headers(1, true, "x-sum", "7")
		}, []string{"HEADERS :status=200", `DATA "a" x-sum:7`, "HEADERS x-late=1 END"}},
		"too much": {func(w *wire) { post(w, "1"); _ = w.fr.WriteData(1, false, []byte("ab")) }, broken},
		"too much after a while": {func(w *wire) {
			post(w, "1")
			_ = w.fr.WriteData(1, false, []byte("a"))
			_ = w.fr.WriteData(1, false, []byte("b"))
		}, broken},
		"too little": {func(w *wire) { post(w, "2"); _ = w.fr.WriteData(1, true, []byte("a")) }, broken},
		"too little, trailers": {func(w *wire) {
			post(w, "2")
			_ = w.fr.WriteData(1, false, []byte("a"))
			w.headers(1, true, "x-sum", "7")
		}, broken},
		"forbidden trailer":   {func(w *wire) { post(w, "0"); w.headers(1, true, "content-length", "7") }, broken},
		"trailer of HTTP/1":   {func(w *wire) { post(w, "0"); w.headers(1, true, "upgrade", "7") }, broken},
		"pseudo trailer":      {func(w *wire) { post(w, "0"); w.headers(1, true, ":path", "/") }, broken},
		"trailer with blanks": {func(w *wire) { post(w, "0"); w.headers(1, true, "x", " 7") }, broken},
	} {
		t.Run(name, func(t *testing.T) {
			lockstep(t, general(), server, echoHandler, func(_ *Conn, w *wire) {
				tc.do(w)
				w.want(settingsOnly, tc.want...)
			})
		})
	}
}

// TestGivenUpIsNotWhole: a request that its client takes back reads to its end, and is not whole.
func TestGivenUpIsNotWhole(t *testing.T) {
	whole := make(chan bool, 1)
	h := func(s *Stream, _ []Field) {
		_, _ = io.ReadAll(s)
		whole <- s.Ended()
		_ = s.Close()
	}
	lockstep(t, general(), server, h, func(_ *Conn, w *wire) {
		w.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
		_ = w.fr.WriteData(1, false, []byte("half"))
		_ = w.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		if <-whole {
			t.Error("half a request passes for a whole one")
		}
	})
}

// TestAnswers: informational answers come first, and an answer that is there leaves in one write.
func TestAnswers(t *testing.T) {
	h := func(s *Stream, _ []Field) {
		_ = s.Inform([]Field{{":status", "103"}, {"link", "x"}})
		_ = s.Answer([]Field{{":status", "200"}}, []byte("abc"), true)
		if s.Inform(nil) == nil || s.Answer(nil, nil, true) == nil || s.Finish(nil, nil) == nil {
			t.Error("more than one answer")
		}
		_ = s.Close()
	}
	lockstep(t, general(), server, h, func(c *Conn, w *wire) {
		w.sent()
		before := c.Stats().Writes
		w.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
		w.want(settingsOnly, "HEADERS :status=103 link=x", "HEADERS :status=200", "DATA abcEND")
		if n := c.Stats().Writes - before; n != 2 {
			t.Errorf("%d writes, want 2", n)
		}
	})
}

// TestLargeAnswerWaitsForWindow: Answer and Finish send what windows allow, and the rest later.
func TestLargeAnswerWaitsForWindow(t *testing.T) {
	const size = 100_000
	for end, trailers := range map[string][]Field{"DATA END": nil, "HEADERS x-late=1 END": {{"x-late", "1"}}} {
		h := func(s *Stream, _ []Field) {
			_ = s.Answer([]Field{{":status", "200"}}, make([]byte, size/2), false)
			_ = s.Finish(make([]byte, size/2), trailers)
			_ = s.Close()
		}
		lockstep(t, general(), server, h, func(_ *Conn, w *wire) {
			w.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
			total := func() (n int, last string) {
				for _, f := range w.sent(settingsOnly...) {
					if data, ok := strings.CutPrefix(f, "DATA "); ok {
						n += len(strings.TrimSuffix(data, "END"))
					}
					last = f
				}
				return n, last
			}
			if n, _ := total(); n != defaultWindow {
				t.Errorf("%d bytes without leave, want %d", n, defaultWindow)
			}
			_ = w.fr.WriteWindowUpdate(0, size)
			_ = w.fr.WriteWindowUpdate(1, size)
			if n, last := total(); n != size-defaultWindow || last != end {
				t.Errorf("then %d bytes, and at last %q, want %q", n, last, end)
			}
		})
	}
}

// TestSlowHeaders: a header block that drips is given up, however alive its sender is.
func TestSlowHeaders(t *testing.T) {
	lockstep(t, Config{Requests: &Requests{HeaderTimeout: 3 * time.Second}}, server, echoHandler, func(c *Conn, w *wire) {
		w.sent()
		start := time.Now()
		_ = w.fr.WriteRawFrame(http2.FrameHeaders, 0, 1, nil)
		for c.Err() == nil {
			_ = w.fr.WriteRawFrame(http2.FrameContinuation, 0, 1, nil)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if d := time.Since(start); d < 3*time.Second || d > 5*time.Second {
			t.Errorf("given up after %v: %v", d, c.Err())
		}
	})
}

// TestHonestHaste: who asks much and gives up some of it at once, or measures the path with every piece of data, is no attacker.
func TestHonestHaste(t *testing.T) {
	h := func(s *Stream, fields []Field) {
		if fields[2].Value == "/wait" {
			_, _ = s.Read(make([]byte, 1))
		} else {
			_ = s.Answer([]Field{{":status", "200"}}, []byte("x"), true)
		}
		_ = s.Close()
	}
	lockstep(t, general(), server, h, func(c *Conn, w *wire) {
		ask := func(i int, path string, end bool) uint32 {
			id := uint32(2*i + 1)
			w.headers(id, end, ":method", "GET", ":scheme", "http", ":path", path, ":authority", "a")
			return id
		}
		for i := 0; i < 10_000 && c.Err() == nil; i += 2 {
			ask(i, "/", true)
			w.sent()
			_ = w.fr.WritePing(false, [8]byte{1})
			_ = w.fr.WriteRSTStream(ask(i+1, "/wait", false), http2.ErrCodeCancel)
			w.sent()
		}
		if err := c.Err(); err != nil {
			t.Errorf("cut off: %v", err)
		}
	})
}

// TestRapidResetOfRequests: who only gives up is cut off all the same.
func TestRapidResetOfRequests(t *testing.T) {
	h := func(s *Stream, _ []Field) { _, _ = s.Read(make([]byte, 1)); _ = s.Close() }
	lockstep(t, general(), server, h, func(c *Conn, w *wire) {
		for i := 0; i < 10_000 && c.Err() == nil; i++ {
			id := uint32(2*i + 1)
			w.headers(id, false, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
			_ = w.fr.WriteRSTStream(id, http2.ErrCodeCancel)
			w.sent()
		}
		if ce, ok := errors.AsType[*ConnError](c.Err()); !ok || ce.Code != EnhanceYourCalm {
			t.Errorf("ended by %v", c.Err())
		}
	})
}

// TestManyAnswersWait: answers to a peer that reads late wait for room; they
// neither fill the memory nor count as not being read.
func TestManyAnswersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		large := strings.Repeat("x", 16<<10)
		a, b := net.Pipe()
		c := NewServer(a, general(), func(s *Stream, _ []Field) {
			_ = s.Answer([]Field{{":status", "200"}, {"x", large}}, nil, true)
			_ = s.Close()
		})
		const asked = 200
		sent := frames(func(fr *http2.Framer, headers func(kv ...string) []byte) {
			for i := range asked {
				_ = fr.WriteHeaders(http2.HeadersFrameParam{
					StreamID: uint32(2*i + 1), EndHeaders: true, EndStream: true,
					BlockFragment: headers(":method", "GET", ":scheme", "http", ":path", "/"),
				})
			}
		})
		_, _ = b.Write(append([]byte(http2.ClientPreface), sent...))
		synctest.Wait()
		if n := c.out.queue.size; n > outboxLimit+2*len(large) {
			t.Errorf("%d bytes of answers are queued", n)
		}
		go func() { _ = http2.NewFramer(b, nil).WritePing(false, [8]byte{1}) }()
		synctest.Wait()
		fr := http2.NewFramer(nil, b)
		for n := 0; n < asked; {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatalf("after %d answers: %v; %v", n, err, c.Err())
			}
			if f.Header().Type == http2.FrameHeaders {
				n++
			}
		}
		_ = b.Close()
		c.Wait()
	})
}

// TestAnswersToAClient: informational answers come one by one, and what follows an answer is told from what does not.
func TestAnswersToAClient(t *testing.T) {
	lockstep(t, general(), client, nil, func(c *Conn, w *wire) {
		for content, kv := range map[bool][]string{true: {":status", "200", "x", "1"}, false: {":status", "204"}} {
			s, err := c.Open(t.Context(), []Field{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "a"}}, true)
			if err != nil {
				t.Fatal(err)
			}
			w.headers(s.ID(), false, ":status", "103", "link", "a")
			w.headers(s.ID(), false, ":status", "100")
			synctest.Wait()
			w.headers(s.ID(), !content, kv...)
			synctest.Wait()
			for i, want := range []string{"103", "100", kv[1], kv[1]} {
				if f, err := s.Response(t.Context()); err != nil || f[0].Value != want {
					t.Errorf("answer %d: %v, %v", i, f, err)
				}
			}
			if s.HasContent() != content {
				t.Errorf("content after %v: %v", kv, s.HasContent())
			}
			_ = s.Close()
		}
	})
}

// TestMeet: who must know how many streams a server allows can wait for its word.
func TestMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		c := NewClient(a, general())
		late, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if c.Met() || c.Meet(late) {
			t.Error("SETTINGS that nobody has sent are there")
		}
		met := make(chan bool)
		go func() { met <- c.Meet(t.Context()) }()
		synctest.Wait()
		_ = http2.NewFramer(b, nil).WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		if !<-met || !c.Met() || !c.Meet(t.Context()) || !c.Reserve() || c.Reserve() {
			t.Error("SETTINGS have no effect")
		}
		_ = c.Close()
		_ = b.Close()
		c.Wait()
	})
}
