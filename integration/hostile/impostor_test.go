//go:build lab

package hostile_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/internal/mtls"
)

// Impostor is the far end of a tunnel in hostile hands: a pod that takes HBONE itself, with its own certificate.
type Impostor struct {
	once  sync.Once
	cert  *mtls.Certificate
	mu    sync.Mutex
	row   attack
	over  time.Time
	out   Outcome
	peers map[*peer]bool
	busy  atomic.Int64 // connections
}

// Begin behaves as a row of the table says from now on, on every connection that comes.
func (m *Impostor) Begin(a Assault, _ *None) error {
	var err error
	m.once.Do(func() {
		if m.cert, err = certificate(a.Pod); err != nil {
			return
		}
		var ln net.Listener
		if ln, err = net.Listen("tcp", ":15008"); err == nil {
			go m.accept(ln)
		}
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.row, m.over = attack{}, time.Now().Add(a.For)
	for _, r := range impostures() {
		if r.name == a.Name {
			m.row = r
		}
	}
	if m.row.run == nil {
		return fmt.Errorf("no imposture %q", a.Name)
	}
	m.out, m.peers = Outcome{Ends: map[string]int{}}, map[*peer]bool{}
	return nil
}

// End closes all connections and says how those went that had ended by themselves.
func (m *Impostor) End(_ None, out *Outcome) error {
	// A flood that the other side should end has a second for it.
	for end := time.Now().Add(2 * time.Second); m.busy.Load() > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.peers {
		p.close()
	}
	*out = m.out
	return nil
}

func (m *Impostor) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go m.serve(c)
	}
}

func (m *Impostor) serve(raw net.Conn) {
	m.busy.Add(1)
	defer m.busy.Add(-1)
	defer raw.Close()
	m.mu.Lock()
	row, over := m.row, m.over
	m.mu.Unlock()
	p := &peer{raw: raw, next: 2, ended: make(chan struct{})}
	p.tls = tls.Server(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{mtls.Protocol}, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &m.cert.TLS, nil },
	})
	_ = raw.SetDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.ReadFull(p.tls, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	m.mu.Lock()
	m.peers[p] = true
	m.mu.Unlock()
	p.through(p.tls)
	p.hpack = hpack.NewEncoder(&p.block)
	if !row.manners.bare {
		p.do(func(f *http2.Framer) error { return f.WriteSettings(row.manners.settings...) })
	}
	go p.read()
	ctx, cancel := context.WithDeadline(context.Background(), over)
	defer cancel()
	patient, done := context.WithTimeout(context.Background(), 5*time.Second)
	defer done()
	p.opened(patient, 1) // the first request
	p.asked = p.lastStream.Load()
	row.run(ctx, p)
	end := row.finish(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out.Ends[end]++
	m.out.Sent += p.sent.Load()
	if why := p.why(); len(m.out.Notes) < 2 && why != "" {
		m.out.Notes = append(m.out.Notes, why)
	}
}

// answer says 200 to the first request.
func (p *peer) answer() {
	block := p.encode(":status", "200")
	p.do(func(f *http2.Framer) error { return headers(f, p.asked, block) })
}

// impostures are what a hostile server does after the first request. want is the end of the connection that the client's
// proxy may choose; tolerated is none where that would let the impostor go on for ever at no cost of its own.
func impostures() []attack {
	flood := func(name string, want []string, write func(p *peer, f *http2.Framer) error) attack {
		return attack{name: name, want: want, run: func(_ context.Context, p *peer) {
			long, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			p.answer()
			p.flood(long, func(f *http2.Framer) error { return write(p, f) })
		}}
	}
	once := func(name string, want []string, write func(p *peer, f *http2.Framer) error) attack {
		return attack{name: name, want: want, run: func(_ context.Context, p *peer) {
			p.do(func(f *http2.Framer) error { return write(p, f) })
		}}
	}
	codes := []string{calm, protocol, goAway(http2.ErrCodeCompression), goAway(http2.ErrCodeFrameSize), goAway(http2.ErrCodeFlowControl), closed}
	whatever := append([]string{tolerated}, codes...)
	return []attack{
		flood("SETTINGS flood", codes, func(_ *peer, f *http2.Framer) error { return f.WriteSettings() }),
		flood("PING flood", codes, func(_ *peer, f *http2.Framer) error { return f.WritePing(false, [8]byte{}) }),
		flood("priority flood", codes, func(_ *peer, f *http2.Framer) error { return f.WritePriority(1, http2.PriorityParam{Weight: 3}) }),
		flood("unknown frames", codes, func(_ *peer, f *http2.Framer) error { return f.WriteRawFrame(0xbe, 0, 0, nil) }),
		flood("GOAWAY spam", codes, func(p *peer, f *http2.Framer) error { return f.WriteGoAway(p.asked, http2.ErrCodeNo, []byte("x")) }),
		flood("empty DATA", codes, func(p *peer, f *http2.Framer) error { return f.WriteData(p.asked, false, nil) }),
		flood("HEADERS again and again", whatever, func(p *peer, f *http2.Framer) error { return headers(f, p.asked, p.encode(":status", "200")) }),
		flood("resets of streams that nobody opened", codes, func(p *peer, f *http2.Framer) error { return f.WriteRSTStream(p.stream()*2+1, 8) }),
		flood("toggled initial window", codes, func(p *peer, f *http2.Framer) error {
			return f.WriteSettings(window(uint32(p.sent.Load()) % 2 << 16)...)
		}),
		{name: "informational answers without end", want: whatever, run: func(_ context.Context, p *peer) {
			long, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			p.flood(long, func(f *http2.Framer) error { return headers(f, p.asked, p.encode(":status", "103")) })
		}},
		{name: "CONTINUATION without end", want: codes, run: func(_ context.Context, p *peer) {
			long, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			block := p.encode(":status", "200", "x-more", strings.Repeat("z", 60))
			p.do(func(f *http2.Framer) error {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: p.asked, BlockFragment: block})
			})
			p.flood(long, func(f *http2.Framer) error { return f.WriteContinuation(p.asked, false, block[1:]) })
		}},
		{name: "header bomb", want: whatever, run: func(_ context.Context, p *peer) {
			first := p.encode(":status", "103", strings.Repeat("n", 2000), strings.Repeat("v", 2000))
			bomb := append(p.encode(":status", "200"), bytes.Repeat([]byte{0x80 | 62}, 15<<10)...)
			p.do(func(f *http2.Framer) error { return headers(f, p.asked, first) })
			p.do(func(f *http2.Framer) error { return headers(f, p.asked, bomb) })
		}},
		once("PUSH_PROMISE", codes, func(p *peer, f *http2.Framer) error {
			return f.WritePushPromise(http2.PushPromiseParam{StreamID: p.asked, PromiseID: 2, BlockFragment: p.encode(":method", "GET"), EndHeaders: true})
		}),
		once("DATA before the answer", whatever, func(p *peer, f *http2.Framer) error { return f.WriteData(p.asked, false, []byte("early")) }),
		once("an answer on a stream of its own", codes, func(p *peer, f *http2.Framer) error { return headers(f, 2, p.encode(":status", "200")) }),
		once("an answer to what was never asked", codes, func(p *peer, f *http2.Framer) error { return headers(f, 99, p.encode(":status", "200")) }),
		once("a frame of 16 MiB", codes, func(p *peer, _ *http2.Framer) error {
			_, err := p.w.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1})
			return err
		}),
		once("no status", whatever, func(p *peer, f *http2.Framer) error { return headers(f, p.asked, p.encode("x-y", "z")) }),
		once("a status that is none", whatever, func(p *peer, f *http2.Framer) error { return headers(f, p.asked, p.encode(":status", "20O")) }),
		once("HTTP/1.1", codes, func(p *peer, _ *http2.Framer) error {
			_, err := p.w.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			return err
		}),
		// It may cost the stream alone, unless there is no end of what still comes for that.
		{name: "DATA beyond the window", want: codes, deafApp: true, run: func(_ context.Context, p *peer) {
			long, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			p.answer()
			piece := make([]byte, 16<<10)
			p.flood(long, func(f *http2.Framer) error { return f.WriteData(p.asked, false, piece) })
		}},
		{name: "no answer", want: whatever, run: func(ctx context.Context, _ *peer) { <-ctx.Done() }},
		{name: "no stream allowed", manners: manners{settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}}, want: whatever, run: func(ctx context.Context, _ *peer) { <-ctx.Done() }},
		{name: "no SETTINGS", manners: manners{bare: true}, want: whatever, run: func(ctx context.Context, _ *peer) { <-ctx.Done() }},
		{name: "never a byte taken", manners: manners{settings: window(0)}, want: whatever, run: func(ctx context.Context, p *peer) {
			p.answer()
			<-ctx.Done()
		}},
	}
}

// Caller is an application that calls whoever it is told, many times at once, and writes more than is ever taken.
type Caller struct{}

// Call keeps eight connections busy until the time is over.
func (*Caller) Call(w Window, out *Outcome) error {
	last()
	out.Ends = map[string]int{}
	var mu sync.Mutex
	end := time.Now().Add(w.For)
	each(8, 8, func(int) {
		for time.Now().Before(end) {
			word := call(w, end)
			mu.Lock()
			out.Ends[word]++
			mu.Unlock()
		}
	})
	return nil
}

func call(w Window, end time.Time) string {
	c, err := net.DialTimeout("tcp", w.Addr, 5*time.Second)
	if err != nil {
		return "not connected"
	}
	defer c.Close()
	_ = c.SetDeadline(end)
	go func() { _, _ = io.Copy(c, io.LimitReader(zeros{}, 64<<20)) }()
	if w.Deaf {
		time.Sleep(time.Until(end))
	}
	n, err := io.Copy(io.Discard, c)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "kept waiting"
	case n > 0:
		return "got something"
	}
	return "refused"
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
