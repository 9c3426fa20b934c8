package h2http

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
	"github.com/marrowmesh/marrow/waypoint/internal/handoff"
)

// asker is a client that allocates nothing: it sends the same request again and again.
type asker struct {
	c     net.Conn
	frame []byte // HEADERS, with END_STREAM unless there is a body
	body  []byte // DATA with END_STREAM
	id    uint32
	buf   []byte
	r, w  int
}

func newAsker(tb testing.TB, c net.Conn, body int) *asker {
	tb.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.SetMaxDynamicTableSize(0) // every block is the same
	for _, f := range [][2]string{
		{":method", "GET"},
		{":scheme", "http"},
		{":path", "/catalog/items?page=7"},
		{":authority", "catalog.shop.svc.cluster.local:8080"},
		{"user-agent", "bench/1"},
		{"accept", "application/json"},
		{"x-request-id", "0c7be54c-8dcf-4c4b-9b9b-4a1f8b8f8b8f"},
		{"traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
	} {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	var out bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: body == 0})
	a := &asker{c: c, frame: bytes.Clone(out.Bytes()), id: 1, buf: make([]byte, 64<<10)}
	if body > 0 {
		out.Reset()
		_ = fr.WriteData(1, true, make([]byte, body))
		a.body = bytes.Clone(out.Bytes())
		a.frame = append(a.frame, a.body...)
	}
	_, _ = io.WriteString(c, http2.ClientPreface)
	fr = http2.NewFramer(c, nil)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	_ = fr.WriteWindowUpdate(0, 1<<31-1-65535)
	_ = fr.WriteSettingsAck()
	return a
}

// ask sends the request and reads to the end of its answer; it returns the bytes of the answer's content.
func (a *asker) ask(tb testing.TB) (n int) {
	binary.BigEndian.PutUint32(a.frame[5:], a.id)
	if a.body != nil {
		binary.BigEndian.PutUint32(a.frame[len(a.frame)-len(a.body)+5:], a.id)
	}
	a.id += 2
	if _, err := a.c.Write(a.frame); err != nil {
		tb.Fatal(err)
	}
	for {
		for a.w-a.r < 9 {
			a.fill(tb)
		}
		h := a.buf[a.r:]
		size, kind, flags := int(h[0])<<16|int(h[1])<<8|int(h[2]), h[3], h[4]
		for a.w-a.r < 9+size {
			a.fill(tb)
		}
		a.r += 9 + size
		if kind == 0 {
			n += size
		}
		if kind == 3 || kind == 7 {
			tb.Fatalf("frame of kind %d", kind)
		}
		if kind <= 1 && flags&1 != 0 {
			return n
		}
	}
}

func (a *asker) fill(tb testing.TB) {
	if a.r > 0 {
		a.w = copy(a.buf, a.buf[a.r:a.w])
		a.r = 0
	}
	n, err := a.c.Read(a.buf[a.w:])
	if err != nil {
		tb.Fatal(err)
	}
	a.w += n
}

const answerSize = 1000

func benchHandler() http.Handler {
	content := make([]byte, answerSize)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		h := w.Header()
		h["Content-Type"] = []string{"application/json"}
		h["Content-Length"] = []string{"1000"}
		_, _ = w.Write(content)
	})
}

func oursOn(tb testing.TB) net.Conn {
	a, b := tcppair.New(tb)
	s := &Server{Handler: benchHandler()}
	over := make(chan struct{})
	go func() { defer close(over); _ = s.Serve(context.Background(), b, "192.0.2.1:7") }()
	tb.Cleanup(func() { _ = a.Close(); <-over })
	return a
}

func theirsOn(tb testing.TB) net.Conn {
	a, b := tcppair.New(tb)
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: benchHandler(), Protocols: p}
	l := handoff.New()
	over := make(chan struct{})
	go func() { defer close(over); _ = s.Serve(l) }()
	l.Offer(b)
	tb.Cleanup(func() { _ = a.Close(); l.End(); _ = s.Close(); <-over })
	return a
}

// BenchmarkRequest is a GET, and a POST of 1000 bytes, that are answered with 1000 bytes.
func BenchmarkRequest(b *testing.B) {
	for name, start := range map[string]func(testing.TB) net.Conn{"ours": oursOn, "nethttp": theirsOn} {
		for kind, body := range map[string]int{"get": 0, "post": 1000} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				a := newAsker(b, start(b), body)
				b.ReportAllocs()
				for b.Loop() {
					if a.ask(b) != answerSize {
						b.Fatal("short")
					}
				}
			})
		}
	}
}

// TestAllocations: a request costs less than two thirds of what it costs at net/http's server.
func TestAllocations(t *testing.T) {
	for kind, body := range map[string]int{"get": 0, "post": 1000} {
		ours, theirs := newAsker(t, oursOn(t), body), newAsker(t, theirsOn(t), body)
		n := testing.AllocsPerRun(300, func() { ours.ask(t) })
		m := testing.AllocsPerRun(300, func() { theirs.ask(t) })
		if n > m*2/3 {
			t.Errorf("%s: %.0f allocations, net/http %.0f", kind, n, m)
		}
	}
}
