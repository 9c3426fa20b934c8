//go:build lab

package hostile_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/integration/arena"
	"github.com/marrowmesh/marrow/internal/mtls"
)

// peer is a client of the tunnel port that keeps no rule by itself.
type peer struct {
	server string // the pod's address
	raw    net.Conn
	tls    *tls.Conn
	keys   bytes.Buffer // key log of the handshake
	forger *forger
	w      *bufio.Writer // where frames go: to tls, or to forger
	frames *http2.Framer
	block  bytes.Buffer
	hpack  *hpack.Encoder
	next   uint32       // stream id
	asked  uint32       // as a server: the stream of the first request
	sent   atomic.Int64 // frames, or records

	ack   sync.Mutex // guards ping acknowledgements and settings against the flood
	ended chan struct{}
	seen
}

// seen is what the reader saw. The reader writes, others look.
type seen struct {
	goAway  atomic.Int64 // code+1; 0 = none
	answers atomic.Int64 // responses
	ok      atomic.Int64 // of status 200
	resets  atomic.Int64
	data    atomic.Int64 // bytes
	pong    atomic.Uint64
	// lastStream is the one of the last HEADERS.
	lastStream atomic.Uint32
	err        error // why reading ended; after ended
	onData     func(f *http2.DataFrame)
}

// manners say how a connection begins.
type manners struct {
	deaf     bool // nothing is ever read
	bare     bool // no preface
	forged   bool // records of the forger's making
	settings []http2.Setting
}

// dialPeer does everything right until the preface is sent.
func dialPeer(ctx context.Context, cert *mtls.Certificate, server string, m manners) (*peer, error) {
	p := &peer{server: server, next: 1, ended: make(chan struct{})}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", net.JoinHostPort(server, "15008"))
	if err != nil {
		return nil, err
	}
	p.raw = raw
	if p.tls, err = arena.Handshake(ctx, raw, cert, &p.keys); err != nil {
		return nil, err
	}
	p.through(p.tls)
	if m.forged {
		if p.forger, err = p.forge(); err != nil {
			p.close()
			return nil, err
		}
		p.through(p.forger)
	}
	p.hpack = hpack.NewEncoder(&p.block)
	if !m.bare {
		_, _ = p.w.WriteString(http2.ClientPreface)
		_ = p.frames.WriteSettings(m.settings...)
		if err := p.w.Flush(); err != nil {
			p.close()
			return nil, err
		}
	}
	if !m.deaf {
		go p.read()
	}
	return p, nil
}

// through sends all frames from now on to w.
func (p *peer) through(w io.Writer) {
	p.w = bufio.NewWriterSize(w, 64<<10)
	p.frames = http2.NewFramer(p.w, p.tls)
	p.frames.AllowIllegalWrites = true
	p.frames.AllowIllegalReads = true
	p.frames.SetMaxReadFrameSize(1 << 20)
}

func (p *peer) close() { _ = p.raw.Close() }

// reset closes so that the other side gets a RST.
func (p *peer) reset() {
	if tcp, ok := p.raw.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	p.close()
}

func (p *peer) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// do writes one or more frames at once; false when the connection is gone.
func (p *peer) do(write func(f *http2.Framer) error) bool {
	p.ack.Lock()
	defer p.ack.Unlock()
	p.sent.Add(1)
	return write(p.frames) == nil && p.w.Flush() == nil
}

// flood writes again and again, many frames per packet, until ctx ends or the server does.
func (p *peer) flood(ctx context.Context, write func(f *http2.Framer) error) {
	for ctx.Err() == nil && !p.over() {
		p.ack.Lock()
		var err error
		for range 100 {
			if err = write(p.frames); err != nil {
				break
			}
			p.sent.Add(1)
		}
		err = errors.Join(err, p.w.Flush())
		p.ack.Unlock()
		if err != nil {
			return
		}
	}
}

// encode gives a header block; it must be sent, as the encoder has a memory.
func (p *peer) encode(fields ...string) []byte {
	p.block.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		_ = p.hpack.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.block.Bytes())
}

// connect is the header block of an honest request for a port of the pod.
func (p *peer) connect(port string, more ...string) []byte {
	return p.encode(append([]string{":method", "CONNECT", ":authority", net.JoinHostPort(p.server, port)}, more...)...)
}

// open sends an honest CONNECT and gives its stream.
func (p *peer) open(port string) uint32 {
	id := p.next
	p.next += 2
	block := p.connect(port)
	p.do(func(f *http2.Framer) error { return headers(f, id, block) })
	return id
}

func headers(f *http2.Framer, id uint32, block []byte) error {
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true})
}

// opened waits until n requests were answered.
func (p *peer) opened(ctx context.Context, n int64) bool {
	return p.until(ctx, func() bool { return p.answers.Load() >= n })
}

func (p *peer) until(ctx context.Context, done func() bool) bool {
	for !done() {
		select {
		case <-ctx.Done():
			return done()
		case <-p.ended:
			return done()
		case <-time.After(time.Millisecond):
		}
	}
	return true
}

func (p *peer) read() {
	defer close(p.ended)
	dec := hpack.NewDecoder(4096, nil)
	in := http2.NewFramer(io.Discard, bufio.NewReaderSize(p.tls, 64<<10))
	in.AllowIllegalReads = true
	in.SetMaxReadFrameSize(1 << 20)
	for {
		f, err := in.ReadFrame()
		if err != nil {
			p.err = err
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				p.aside(func(w *http2.Framer) error { return w.WriteSettingsAck() })
			}
		case *http2.PingFrame:
			if f.IsAck() {
				if f.Data == alive {
					p.pong.Add(1)
				}
			} else {
				p.aside(func(w *http2.Framer) error { return w.WritePing(true, f.Data) })
			}
		case *http2.GoAwayFrame:
			// A drain may come before the reason.
			p.goAway.Store(int64(f.ErrCode) + 1)
		case *http2.HeadersFrame:
			fields, _ := dec.DecodeFull(f.HeaderBlockFragment())
			for _, hf := range fields {
				if hf.Name == ":status" && hf.Value == "200" {
					p.ok.Add(1)
				}
			}
			p.lastStream.Store(f.StreamID)
			p.answers.Add(1)
		case *http2.DataFrame:
			p.data.Add(int64(len(f.Data())))
			if p.onData != nil {
				p.onData(f)
			}
		case *http2.RSTStreamFrame:
			p.resets.Add(1)
		}
	}
}

// aside answers from the reader. It must not wait for a flood that waits for the reader. Who forges records answers
// nothing: an answer in the middle of a forged frame would break it.
func (p *peer) aside(write func(w *http2.Framer) error) {
	if p.forger != nil {
		return
	}
	go p.do(write)
}

const (
	tolerated = "tolerated" // the connection serves on
	closed    = "closed"    // it was closed, with no reason that HTTP/2 could carry
	stuck     = "stuck"     // neither: never expected
)

// alive is what only the last question says, so that answers to a flood are not taken for its answer.
var alive = [8]byte{'a', 'l', 'i', 'v', 'e'}

// goAway is how a connection ends that was told why.
func goAway(code http2.ErrCode) string { return "GOAWAY " + code.String() }

// end says what became of the connection. One that is alive proves it by an answer.
func (p *peer) end(patience time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	before := p.pong.Load()
	go p.do(func(w *http2.Framer) error { return w.WritePing(false, alive) })
	p.until(ctx, func() bool { return p.pong.Load() > before && p.goAway.Load() <= 1 })
	switch code := p.goAway.Load(); {
	case code > 1:
		return goAway(http2.ErrCode(code - 1))
	case p.over():
		return closed
	case p.pong.Load() > before:
		return tolerated
	}
	return stuck
}

// why is the reader's error, for the log.
func (p *peer) why() string {
	if !p.over() {
		return ""
	}
	return fmt.Sprint(p.err)
}
