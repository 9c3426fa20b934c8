package h2

import (
	"bytes"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// outbox is what was not yet given to the connection. All methods need the
// connection's lock. It is the Framer's writer: framing only appends here.
type outbox struct {
	buf      *[]byte // nil when empty
	flushing bool
	idle     sync.Cond // flushing became false
	fr       *http2.Framer
	enc      *hpack.Encoder
	block    bytes.Buffer
}

func (o *outbox) init(mu *sync.Mutex) {
	o.idle.L = mu
	o.fr = http2.NewFramer(o, nil)
	o.enc = hpack.NewEncoder(&o.block)
}

func (o *outbox) Write(p []byte) (int, error) {
	if o.buf == nil {
		o.buf = outputs.Get().(*[]byte)
	}
	*o.buf = append(*o.buf, p...)
	return len(p), nil
}

// bounded is for whoever has just read a frame: what we answer is not held back by any window, so a peer that asks and
// never reads could make us remember without end.
func (o *outbox) bounded() error {
	if n := o.size(); n > backlogLimit {
		return violation(EnhanceYourCalm, "%d bytes are waiting to be read: the peer asks but does not listen", n)
	}
	return nil
}

func (o *outbox) size() int {
	if o.buf == nil {
		return 0
	}
	return len(*o.buf)
}

// The frames below go to memory, which cannot fail; what the Framer refuses
// to write would be a mistake of this package that the tests show.

func (o *outbox) settings(s ...http2.Setting) { _ = o.fr.WriteSettings(s...) }
func (o *outbox) settingsAck()                { _ = o.fr.WriteSettingsAck() }
func (o *outbox) ping(ack bool, data [8]byte) { _ = o.fr.WritePing(ack, data) }
func (o *outbox) windowUpdate(id, n uint32)   { _ = o.fr.WriteWindowUpdate(id, n) }
func (o *outbox) reset(id uint32, code Code)  { _ = o.fr.WriteRSTStream(id, http2.ErrCode(code)) }
func (o *outbox) goAway(last uint32, code Code, why string) {
	_ = o.fr.WriteGoAway(last, http2.ErrCode(code), []byte(why))
}

// data appends one DATA frame. The header is made by hand: the Framer would
// copy the payload twice.
func (o *outbox) data(id uint32, p []byte, end bool) {
	var flags byte
	if end {
		flags = byte(http2.FlagDataEndStream)
	}
	n := len(p)
	_, _ = o.Write([]byte{
		byte(n >> 16), byte(n >> 8), byte(n), byte(http2.FrameData), flags,
		byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id),
	})
	_, _ = o.Write(p)
}

// headers appends a HEADERS frame and as many CONTINUATIONs as the peer's
// frame size asks for.
func (o *outbox) headers(id uint32, fields []Field, end bool, maxFrame uint32) {
	o.block.Reset()
	for _, f := range fields {
		_ = o.enc.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value})
	}
	rest := o.block.Bytes()
	for first := true; first || len(rest) > 0; first = false {
		frag := rest[:min(len(rest), int(maxFrame))]
		rest = rest[len(frag):]
		if first {
			_ = o.fr.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: frag, EndStream: end, EndHeaders: len(rest) == 0,
			})
			continue
		}
		_ = o.fr.WriteContinuation(id, len(rest) == 0, frag)
	}
}

// inlineRounds is how often a writer writes what others queued meanwhile
// before it hands the work over and goes back to its own.
const inlineRounds = 2

// flush writes the outbox to the connection unless somebody does already.
// The lock is held on entry and exit, not while writing.
func (c *Conn) flush() {
	if c.out.flushing || c.err != nil {
		return
	}
	c.out.flushing = true
	for round := 0; c.out.size() > 0 && c.err == nil; round++ {
		if round == inlineRounds {
			c.wg.Go(func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.flushRest()
			})
			return
		}
		c.writeOut()
	}
	c.flushed()
}

// kick has the outbox written by somebody else: for the reading goroutine,
// which must never wait for the peer to read, and for readers of streams.
func (c *Conn) kick() {
	if c.out.flushing || c.err != nil || c.out.size() == 0 {
		return
	}
	c.out.flushing = true
	c.wg.Go(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.flushRest()
	})
}

func (c *Conn) flushRest() {
	for c.out.size() > 0 && c.err == nil {
		c.writeOut()
	}
	c.flushed()
}

func (c *Conn) flushed() {
	c.out.flushing = false
	c.out.idle.Broadcast()
}

func (c *Conn) writeOut() {
	buf := c.out.buf
	c.out.buf = nil
	c.mu.Unlock()
	_, err := c.nc.Write(*buf)
	if cap(*buf) <= 2*outboxLimit {
		*buf = (*buf)[:0]
		outputs.Put(buf)
	}
	c.mu.Lock()
	if err != nil && c.err == nil {
		c.out.buf = nil
		c.end(&ConnError{Code: InternalError, Reason: "write", Err: err})
	}
	c.wakeBlocked()
}

// lastWords writes what is left when the connection has ended: the deadline
// for it is set.
func (c *Conn) lastWords() {
	c.mu.Lock()
	for c.out.flushing {
		c.out.idle.Wait()
	}
	buf := c.out.buf
	c.out.buf = nil
	c.mu.Unlock()
	if buf != nil {
		_, _ = c.nc.Write(*buf)
	}
}

func (c *Conn) wakeBlocked() {
	for s := range c.blocked {
		s.writable.Broadcast()
	}
	clear(c.blocked)
}
