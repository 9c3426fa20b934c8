package h2http

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/marrowmesh/marrow/internal/h2"
	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
)

// TestHostilePeers: who only makes work is cut off, has few handlers at a time, and fills no memory.
func TestHostilePeers(t *testing.T) {
	const streams = 50
	big := make([]byte, 16000)
	for name, do := range map[string]func(p *peer, i int) error{
		"rapid reset": func(p *peer, i int) error {
			id := uint32(2*i + 1)
			if err := p.headers(id, true, get("/hang")...); err != nil {
				return err
			}
			return p.fr.WriteRSTStream(id, http2.ErrCodeCancel)
		},
		"made you reset": func(p *peer, i int) error {
			id := uint32(2*i + 1)
			if err := p.headers(id, false, get("/hang")...); err != nil {
				return err
			}
			return p.fr.WriteWindowUpdate(id, 0)
		},
		"made you reset by length": func(p *peer, i int) error {
			id := uint32(2*i + 1)
			if err := p.headers(id, false, append(get("/hang"), "content-length", "1")...); err != nil {
				return err
			}
			return p.fr.WriteData(id, true, nil)
		},
		"malformed": func(p *peer, i int) error {
			return p.headers(uint32(2*i+1), true, append(get("/"), "upgrade", "h2c")...)
		},
		"continuations": func(p *peer, i int) error {
			if i == 0 {
				return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(get("/")...)})
			}
			return p.fr.WriteContinuation(1, false, p.encode("x", "y"))
		},
		"empty continuations": func(p *peer, i int) error {
			if i == 0 {
				return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(get("/")...)})
			}
			return p.fr.WriteContinuation(1, false, nil)
		},
		"header bomb": func(p *peer, i int) error {
			// One large value in the table, then references to it.
			id := uint32(2*i + 1)
			block := append([]byte(nil), p.encode(append(get("/"), "x", string(big[:3000]))...)...)
			for range 2000 {
				block = append(block, 0x80|62)
			}
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: true})
		},
		"empty data": func(p *peer, i int) error {
			if i == 0 {
				return p.headers(1, false, get("/hang")...)
			}
			return p.fr.WriteData(1, false, nil)
		},
		"pings":    func(p *peer, _ int) error { return p.fr.WritePing(false, [8]byte{}) },
		"settings": func(p *peer, _ int) error { return p.fr.WriteSettings() },
		"over the window": func(p *peer, i int) error {
			if i == 0 {
				return p.headers(1, false, get("/hang")...)
			}
			return p.fr.WriteData(1, false, big)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := tcppair.New(t)
			var running, most atomic.Int64
			hold := make(chan struct{})
			s := &Server{MaxStreams: streams, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if n := running.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer running.Add(-1)
				if r.URL.Path == "/hang" {
					select {
					case <-hold:
					case <-time.After(10 * time.Second):
					}
				}
			})}
			done := make(chan error, 1)
			go func() { done <- s.Serve(context.WithoutCancel(t.Context()), b, "") }()
			go func() { _, _ = io.Copy(io.Discard, a) }()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p := newPeer(t, a)
			for i := range 200_000 {
				if do(p, i) != nil {
					break
				}
			}
			runtime.ReadMemStats(&after)
			close(hold)
			_ = a.Close()
			err := <-done
			if ce, ok := errors.AsType[*h2.ConnError](err); !ok || ce.Code != h2.EnhanceYourCalm {
				t.Errorf("ended by %v", err)
			}
			if n := most.Load(); n > 2*streams {
				t.Errorf("%d handlers at once", n)
			}
			if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 32<<20 {
				t.Errorf("%d bytes of heap", grown)
			}
		})
	}
}

// TestLargeHeader: more than may be is answered by 431, and costs the connection nothing else.
func TestLargeHeader(t *testing.T) {
	c, _ := serve(t, &Server{MaxHeader: 4 << 10, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})})
	p := newPeer(t, c)
	_ = p.headers(1, true, append(get("/"), "x", long(2<<10), "y", long(2<<10))...)
	if h, _ := p.until(http2.FrameHeaders, 1).(*http2.MetaHeadersFrame); h.PseudoValue("status") != "431" {
		t.Errorf("%v", h)
	}
	_ = p.headers(3, true, get("/")...)
	if h, _ := p.until(http2.FrameHeaders, 3).(*http2.MetaHeadersFrame); h.PseudoValue("status") != "200" {
		t.Errorf("%v", h)
	}
}

func long(n int) string { return strings.Repeat("x", n) }
