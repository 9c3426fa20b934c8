package record

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
)

const (
	// rekeyAfter is how many records one key seals. The limit of AES-GCM is
	// 2^24.5 of full size, RFC 8446 5.5.
	rekeyAfter = 1 << 24
	// gatherBelow is the size from which a piece gets records of its own: to
	// copy less than this is cheaper than another record.
	gatherBelow = 4 << 10
	// lastWait is how long the last alert may take where it cannot be sent
	// without waiting.
	lastWait = time.Second
	// closeWait is how long close_notify may wait for a peer that does not read.
	closeWait = 5 * time.Second
	// updateSize is a KeyUpdate on the wire.
	updateSize = overhead + headSize + 1
)

// What the receiving direction asks of the sending one.
const (
	oweAnswer  uint32 = 1 << iota // a KeyUpdate, because the peer asked
	oweRequest                    // a KeyUpdate that asks for one
	oweAlert                      // the alert of cause, and the end
	oweEnd                        // the end
)

var errSentClose = fmt.Errorf("write after close_notify: %w", net.ErrClosed)

// output is the sending direction; all of it but owed and cause belongs to
// who holds mu.
type output struct {
	mu sync.Mutex
	half
	limit uint64 // of records under one key
	err   error  // final
	small [64]byte

	// owed is paid by who holds mu, before or after what it writes.
	owed atomic.Uint32
	// cause is why the receiving direction has failed.
	cause atomic.Pointer[AlertError]
}

// batch is what the next write(2) carries.
type batch struct {
	s *burst.Slab
	n int // bytes, from the very beginning of the slab
}

// begin takes the lock and a slab for size bytes of records, or less.
func (c *Conn) begin(size int) (batch, error) {
	c.out.mu.Lock()
	if err := c.out.err; err != nil {
		c.unlockOut()
		return batch{}, err
	}
	b := batch{s: burst.Get(min(size+updateSize, burst.Max))}
	const updates = oweAnswer | oweRequest
	if owed := c.out.owed.Load() & updates; owed != 0 {
		c.out.owed.And(^owed)
		if err := c.update(&b, owed&oweRequest != 0); err != nil {
			c.end(&b)
			return batch{}, err
		}
	}
	return b, nil
}

// end gives back what begin took.
func (c *Conn) end(b *batch) {
	b.s.Free()
	c.unlockOut()
}

// reserve makes room for a record with n bytes of content, under a key that
// may still seal one.
func (c *Conn) reserve(b *batch, n int) error {
	if b.n+n+overhead+updateSize > len(b.s.B) {
		if err := c.flush(b); err != nil {
			return err
		}
	}
	if c.out.seq < c.out.limit {
		return nil
	}
	return c.update(b, false)
}

// update adds a KeyUpdate and goes to the next key.
func (c *Conn) update(b *batch, request bool) error {
	msg := [headSize + 1]byte{msgUpdate, 0, 0, 1, 0}
	if request {
		msg[headSize] = 1
	}
	copy(b.s.B[b.n+headerSize:], msg[:])
	b.n += c.out.seal(b.s.B[b.n:], typeHandshake, len(msg))
	if err := c.out.next(); err != nil {
		c.out.err = fmt.Errorf("key update: %w", err)
		return c.out.err
	}
	return nil
}

func (c *Conn) flush(b *batch) error {
	if b.n == 0 {
		return nil
	}
	_, err := c.put(b.s.B[:b.n])
	b.n = 0
	if err != nil {
		c.out.err = err // part of a record may be on its way
	}
	return err
}

// put writes all of p.
func (c *Conn) put(p []byte) (int, error) {
	if c.w != nil {
		return c.w.Write(p)
	}
	return c.nc.Write(p)
}

func header(b []byte, content int) []byte {
	b[0], b[1], b[2] = typeData, 3, 3
	binary.BigEndian.PutUint16(b[3:], uint16(content+1+tagSize))
	return b[:headerSize]
}

// seal makes a record of the n bytes that are at b[headerSize:] already, and
// returns its length.
func (o *output) seal(b []byte, kind byte, n int) int {
	inner := b[headerSize : headerSize+n+1]
	inner[n] = kind
	o.aead.Seal(inner[:0], o.tick(), inner, header(b, n))
	return n + overhead
}

// sealFrom makes a record of p[:n] at b. It changes p[n] for as long as that
// takes.
func (o *output) sealFrom(b, p []byte, n int) int {
	inner := p[: n+1 : n+1]
	behind := inner[n]
	inner[n] = typeData
	o.aead.Seal(b[headerSize:headerSize], o.tick(), inner, header(b, n))
	inner[n] = behind
	return n + overhead
}

// WriteOwned seals bufs in order, one write(2) per some 300 KiB. Sealing is
// the only copy, but for small pieces, which share records. The bytes of bufs
// are not changed, but one byte behind each, within its capacity, may be
// while this runs. The error is final.
func (c *Conn) WriteOwned(bufs [][]byte) error {
	size := 0
	for _, p := range bufs {
		size += len(p) + (len(p)+maxContent-1)/maxContent*overhead
	}
	if size == 0 {
		return nil
	}
	b, err := c.begin(size)
	if err != nil {
		return err
	}
	defer c.end(&b)
	for i := 0; i < len(bufs); {
		p := bufs[i]
		for n := min(len(p), maxContent); n > 0 && (n >= gatherBelow || i == len(bufs)-1) && cap(p) > n; n = min(len(p), maxContent) {
			if err := c.reserve(&b, n); err != nil {
				return err
			}
			b.n += c.out.sealFrom(b.s.B[b.n:], p, n)
			p = p[n:]
		}
		if i, err = c.gather(&b, bufs, i, p); err != nil {
			return err
		}
	}
	return c.flush(&b)
}

// gather seals p, the rest of bufs[i], by copying, together with what small
// pieces follow. It returns the index of the first piece it left.
func (c *Conn) gather(b *batch, bufs [][]byte, i int, p []byte) (int, error) {
	for len(p) > 0 {
		n, last := min(len(p), maxContent), i
		for n >= len(p) && last+1 < len(bufs) && len(bufs[last+1]) < gatherBelow && n+len(bufs[last+1]) <= maxContent {
			last++
			n += len(bufs[last])
		}
		if err := c.reserve(b, n); err != nil {
			return i, err
		}
		to := b.s.B[b.n+headerSize:][:n]
		m := copy(to, p)
		p = p[m:]
		for ; i < last; i++ {
			m += copy(to[m:], bufs[i+1])
		}
		b.n += c.out.seal(b.s.B[b.n:], typeData, n)
	}
	return i + 1, nil
}

// Write implements net.Conn. It copies p before it seals, because p must not
// be changed, not even for a moment.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := c.begin(len(p) + (len(p)+maxContent-1)/maxContent*overhead)
	if err != nil {
		return 0, err
	}
	defer c.end(&b)
	sent, sealed := 0, 0
	for sealed < len(p) {
		n := min(len(p)-sealed, maxContent)
		full := b.n
		if err := c.reserve(&b, n); err != nil {
			return sent, err
		}
		if b.n < full {
			sent = sealed
		}
		copy(b.s.B[b.n+headerSize:], p[sealed:sealed+n])
		b.n += c.out.seal(b.s.B[b.n:], typeData, n)
		sealed += n
	}
	if err := c.flush(&b); err != nil {
		return sent, err
	}
	return len(p), nil
}

// owe has the sending direction say something, without waiting for it.
func (c *Conn) owe(what uint32) {
	c.out.owed.Or(what)
	if !c.out.mu.TryLock() {
		return // who holds it pays
	}
	if what&(oweAlert|oweEnd) != 0 {
		c.pay()
		c.unlockOut()
		return
	}
	// The socket may be full, and we are the reader. Close waits for this
	// goroutine: it holds the lock.
	go func() {
		c.pay()
		c.unlockOut()
	}()
}

// unlockOut lets the next writer in and sees to it that what was owed
// meanwhile is paid.
func (c *Conn) unlockOut() {
	for {
		c.out.mu.Unlock()
		if c.out.owed.Load() == 0 || !c.out.mu.TryLock() {
			return
		}
		c.pay()
	}
}

// pay does what is owed. The lock is held.
func (c *Conn) pay() {
	owed := c.out.owed.Swap(0)
	if owed&(oweAlert|oweEnd) != 0 {
		cause := c.out.cause.Load()
		if c.out.err == nil && owed&oweAlert != 0 {
			c.last(levelFatal, cause.Alert)
		}
		if c.out.err == nil || errors.Is(c.out.err, errSentClose) {
			c.out.err = cause
		}
		return
	}
	if owed == 0 || c.out.err != nil {
		return
	}
	b := batch{s: burst.Get(updateSize)}
	defer b.s.Free()
	if c.update(&b, owed&oweRequest != 0) == nil {
		_ = c.flush(&b) // the next writer gets the error
	}
}

// last sends an alert without waiting if nc is a socket, else not for long:
// the connection ends, and that must not depend on the peer. The lock is held.
func (c *Conn) last(level byte, alert tls.AlertError) {
	b := c.out.small[:]
	b[headerSize], b[headerSize+1] = level, byte(alert)
	b = b[:c.out.seal(b, typeAlert, 2)]
	_ = c.nc.SetWriteDeadline(time.Now().Add(lastWait))
	if c.w != nil {
		_, _ = c.w.TryWrite(b)
		return
	}
	_, _ = c.nc.Write(b)
}

// fatal ends both directions because of what the peer did, and tells it.
func (c *Conn) fatal(alert tls.AlertError, reason string) {
	c.fail(&AlertError{Alert: alert, Reason: reason}, oweAlert)
}

// lost ends both directions because the peer said so.
func (c *Conn) lost(alert byte) {
	c.fail(&AlertError{Alert: tls.AlertError(alert), Remote: true}, oweEnd)
}

func (c *Conn) fail(err *AlertError, how uint32) {
	c.in.err = err
	c.out.cause.Store(err)
	// Who waits for the peer to read need not do so for ever.
	_ = c.nc.SetWriteDeadline(time.Now().Add(lastWait))
	c.owe(how)
}

// CloseWrite sends close_notify: the peer's reader gets its end, ours goes on.
// It waits for a writer that is under way, and for a peer that does not read,
// but not for ever.
func (c *Conn) CloseWrite() error {
	if !c.out.mu.TryLock() {
		_ = c.nc.SetWriteDeadline(time.Now().Add(closeWait))
		c.out.mu.Lock()
	}
	defer c.unlockOut()
	if errors.Is(c.out.err, errSentClose) {
		return nil
	}
	if c.out.err != nil {
		return c.out.err
	}
	b := c.out.small[:]
	b[headerSize], b[headerSize+1] = levelWarning, byte(closeNotify)
	_ = c.nc.SetWriteDeadline(time.Now().Add(closeWait))
	_, err := c.put(b[:c.out.seal(b, typeAlert, 2)])
	c.out.err = errSentClose
	if err != nil {
		c.out.err = err
	}
	return err
}

// Close sends close_notify if that needs no waiting for a writer, and closes
// the connection below, which ends whoever reads or writes.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	if c.out.mu.TryLock() {
		if c.out.err == nil {
			c.last(levelWarning, closeNotify)
		}
		c.out.mu.Unlock()
	}
	err := c.nc.Close()
	c.out.mu.Lock()
	if c.out.err == nil || errors.Is(c.out.err, errSentClose) {
		c.out.err = net.ErrClosed
	}
	c.out.owed.Store(0)
	c.out.erase()
	c.out.mu.Unlock()
	if c.in.mu.TryLock() {
		c.forget()
		c.in.mu.Unlock()
	}
	return err
}
