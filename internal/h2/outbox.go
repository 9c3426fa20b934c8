package h2

import (
	"bytes"
	"net"
	"runtime"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/internal/burst"
)

// ownedWriter is a connection that seals the bytes where they are: it may
// change them and one behind each piece.
type ownedWriter interface {
	WriteOwned(bufs [][]byte) error
}

// outbox is what was not yet given to the connection. All methods need the
// connection's lock. It is the Framer's writer: framing only appends here.
//
// Frames are copied into its queue, or stay in the memory of a WriteSlab that
// waits in turns. One write is the queue, then turns; so frames of a stream
// go out in the order in which they were made, and a small frame never waits
// for more than the write under way.
type outbox struct {
	queue    queue
	turns    []*Stream // have something to send and window for it, oldest first
	lent     []loan    // what the write under way has of streams' own memory
	flushing bool
	frozen   bool      // turns wait: Export wants the queue empty
	frames   uint64    // so far
	told     uint64    // of them, in Config.Totals
	writes   uint64    // calls to the connection
	idle     sync.Cond // flushing became false, or somebody waits for room and there is some
	crowd    int       // so many do
	fr       *http2.Framer
	enc      *hpack.Encoder
	block    bytes.Buffer

	// The writer's own, used without the lock while flushing is set.
	parts []part
	bufs  [][]byte
	owned ownedWriter // the connection, if it is one
	rest  func()      // Conn.flushRest, made once
	plain bool        // the connection is a TCP socket, which writes many pieces at once
}

// loan is a frame in a stream's own memory, on its way.
type loan struct {
	s     *Stream
	n     int  // bytes of payload
	saved byte // what follows them, which the connection may overwrite
}

func (o *outbox) init(c *Conn) {
	o.idle.L = &c.mu
	o.rest = c.flushRest
	o.fr = http2.NewFramer(o, nil)
	o.enc = hpack.NewEncoder(&o.block)
	o.owned, _ = c.nc.(ownedWriter)
	_, o.plain = c.nc.(*net.TCPConn)
}

func (o *outbox) Write(p []byte) (int, error) {
	o.frames++ // the Framer writes each in one piece
	o.queue.push(p)
	return len(p), nil
}

// bounded is for whoever has just read a frame: what we answer is not held back by any window, so a peer that asks and
// never reads could make us remember without end.
func (o *outbox) bounded() error {
	if n := o.queue.size; n > backlogLimit {
		return violation(EnhanceYourCalm, "%d bytes are waiting to be read: the peer asks but does not listen", n)
	}
	return nil
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

// dataHeader makes the header of a DATA frame with n bytes. It is made by
// hand: the Framer would copy the payload twice.
func dataHeader(id uint32, n int, end bool) [Headroom]byte {
	var flags byte
	if end {
		flags = byte(http2.FlagDataEndStream)
	}
	return [Headroom]byte{
		byte(n >> 16), byte(n >> 8), byte(n), byte(http2.FrameData), flags,
		byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id),
	}
}

// data appends one DATA frame.
func (o *outbox) data(id uint32, p []byte, end bool) {
	o.frames++
	h := dataHeader(id, len(p), end)
	o.queue.push(h[:])
	o.queue.push(p)
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

// work reports whether there is something that may be written.
func (c *Conn) work() bool {
	return c.out.queue.size > 0 || !c.out.frozen && len(c.out.turns) > 0 && c.send > 0
}

// flush writes the outbox to the connection unless somebody does already.
// The lock is held on entry and exit, not while writing. own, if not nil, is
// the stream that the caller sends on: its turns are the caller's own work.
func (c *Conn) flush(own *Stream) {
	if c.out.flushing || c.err != nil {
		return
	}
	c.out.flushing = true
	c.gather(own)
	for round := 0; c.work() && c.err == nil; {
		if round == inlineRounds {
			c.wg.Add()
			go c.out.rest()
			return
		}
		c.writeOut()
		if own == nil || !own.w.turn || own.sendable() != nil {
			round++
		}
	}
	c.flushed()
}

// gather lets whoever is ready to run add to a small write: on a connection of
// several streams frames come in groups, and a write costs the same for one
// frame as for all of them. Alone it costs a look at the run queue.
func (c *Conn) gather(own *Stream) {
	pending := c.out.queue.size
	if own != nil {
		pending += len(own.w.rest)
	}
	if pending > gatherLimit || len(c.set.open) < 2 {
		return
	}
	c.mu.Unlock()
	runtime.Gosched()
	c.mu.Lock()
}

// kick has the outbox written by somebody else: for the reading goroutine,
// which must never wait for the peer to read, and for readers of streams.
func (c *Conn) kick() {
	if c.out.flushing || c.err != nil || !c.work() {
		return
	}
	c.out.flushing = true
	c.wg.Add()
	go c.out.rest()
}

func (c *Conn) flushRest() {
	defer c.wg.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.work() && c.err == nil {
		c.writeOut()
	}
	c.flushed()
}

func (c *Conn) flushed() {
	c.out.flushing = false
	c.out.idle.Broadcast()
}

// writeOut writes what is queued and as many turns as fit.
func (c *Conn) writeOut() {
	o := &c.out
	c.lend(o.queue.size)
	o.parts, o.queue.parts = o.queue.parts[o.queue.first:], o.parts[:0]
	o.queue.first, o.queue.size = 0, 0
	o.bufs = o.bufs[:0]
	for i := range o.parts {
		o.bufs = append(o.bufs, o.parts[i].bytes())
	}
	for _, l := range o.lent {
		o.bufs = append(o.bufs, l.s.w.rest[:Headroom+l.n])
	}
	if len(o.bufs) == 0 {
		return
	}
	o.writes++
	c.cfg.Totals.wrote(o.frames - o.told)
	o.told = o.frames
	c.mu.Unlock()
	err := o.put(c.nc)
	for i := range o.parts {
		o.parts[i].slab.Free()
		o.parts[i] = part{}
	}
	clear(o.bufs)
	c.mu.Lock()
	if o.crowd > 0 {
		o.idle.Broadcast()
	}
	for i, l := range o.lent {
		l.s.returned(l, err == nil)
		o.lent[i] = loan{}
	}
	o.lent = o.lent[:0]
	o.slim()
	if err != nil && c.err == nil {
		o.queue.drop()
		c.end(&ConnError{Code: InternalError, Reason: "write", Err: err})
	}
}

// slim forgets scratch memory that a burst has left large.
func (o *outbox) slim() {
	o.parts = o.parts[:0]
	if cap(o.parts) > 8 {
		o.parts = nil
	}
	if cap(o.bufs) > 16 {
		o.bufs = nil
	}
}

// put gives bufs to the connection, in one call if that can be.
func (o *outbox) put(nc net.Conn) error {
	switch {
	case o.owned != nil:
		return o.owned.WriteOwned(o.bufs)
	case len(o.bufs) == 1:
		_, err := nc.Write(o.bufs[0])
		return err
	case o.plain:
		all := net.Buffers(o.bufs)
		_, err := all.WriteTo(nc)
		return err
	}
	return joined(nc, o.bufs)
}

// joined writes bufs in as few calls as the largest slab allows.
func joined(nc net.Conn, bufs [][]byte) error {
	size := 0
	for _, b := range bufs {
		size += len(b)
	}
	slab := burst.Get(min(size, burst.MaxRead))
	defer slab.Free()
	room := slab.B[burst.Head : burst.Head+min(size, burst.MaxRead)]
	n := 0
	for i := 0; i < len(bufs); {
		k := copy(room[n:], bufs[i])
		n += k
		if bufs[i] = bufs[i][k:]; len(bufs[i]) == 0 {
			i++
		}
		if n == len(room) || i == len(bufs) {
			if _, err := nc.Write(room[:n]); err != nil {
				return err
			}
			n = 0
		}
	}
	return nil
}

// lend lets streams that wait have their turns in the next write, which has
// queued bytes already: one alone gets all the room there is, several get
// equal parts of it. It returns how much that is.
func (c *Conn) lend(queued int) (total int) {
	o := &c.out
	turn, room := soleTurn, soleTurn
	if len(o.turns) > 1 {
		turn, room = sharedTurn, maxTurn
	}
	n := 0
	for ; !o.frozen && n < len(o.turns) && c.send > 0 && (total == 0 || queued+total < room); n++ {
		s := o.turns[n]
		s.w.turn = false
		if s.cause == nil && !s.closed && !s.localEnd && s.w.rest != nil && s.send > 0 {
			total += s.lend(min(turn, max(room-queued-total, sharedTurn)))
		}
	}
	o.turns = append(o.turns[:0], o.turns[n:]...)
	return total
}

// lastWords writes what is left when the connection has ended: the deadline
// for it is set.
func (c *Conn) lastWords() {
	c.mu.Lock()
	for c.out.flushing {
		c.out.idle.Wait()
	}
	left := c.out.queue
	c.out.queue = queue{}
	c.mu.Unlock()
	for left.first < len(left.parts) {
		p := left.take()
		_, err := c.nc.Write(p.bytes())
		p.slab.Free()
		if err != nil {
			left.drop()
			return
		}
	}
}
