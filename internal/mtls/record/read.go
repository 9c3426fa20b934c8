package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/marrowmesh/marrow/internal/burst"
)

const (
	headerSize = 5
	tagSize    = 16
	maxContent = 16384            // of one record
	maxSealed  = maxContent + 256 // what a record's header may announce, RFC 8446 5.2
	// overhead is what a record of ours adds to its content: no padding.
	overhead = headerSize + 1 + tagSize

	typeChange    = 20
	typeAlert     = 21
	typeHandshake = 22
	typeData      = 23

	// maxIdle is how many records in a row may carry no content: they cost us
	// work and the peer nothing to speak of.
	maxIdle = 64
)

var (
	// errEnd is the peer's close_notify.
	errEnd = io.EOF
	// errEnough ends a Feeder's run for a Read.
	errEnough = errors.New("enough")
	// errStuck is a reader that takes nothing although nothing more fits.
	errStuck = fmt.Errorf("record: the reader takes nothing of %d bytes, and more does not fit", burst.Max)
)

// input is the receiving direction; all of it belongs to who holds mu.
type input struct {
	mu sync.Mutex
	half
	limit  uint64 // of records under one key, before we ask for another
	feeder *burst.Feeder
	once   func(s *burst.Slab, n int) (int, error) // onOnce

	// early are bytes in front of what the feeder reads. Only a hand-over, or
	// a reader that failed, leaves any.
	early []byte
	// plain is there while plain.B[from:to], opened and not taken, is not empty.
	plain    *burst.Slab
	from, to int

	idle int // records in a row without content
	post post
	err  error // final
}

// Feed reads until the peer's close_notify (nil) or an error. on gets all the
// plaintext that has arrived, in one piece, and says how much of it it is
// done with; the rest is shown again in front of what comes next. on may
// change those bytes, it must not keep them. An end without close_notify is
// io.ErrUnexpectedEOF. After a deadline, or an error of on, Feed or Read may
// go on.
func (c *Conn) Feed(on func(p []byte) (done int, err error)) error {
	c.in.mu.Lock()
	defer c.unlockIn()
	if _, err := c.pass(nil, on); err != nil {
		return ended(err)
	}
	err := c.in.feeder.Feed(func(s *burst.Slab, n int) (int, error) {
		return c.pass(s.B[burst.Head:burst.Head+n], on)
	})
	if err == nil {
		err = c.cut()
	}
	return ended(err)
}

func ended(err error) error {
	if errors.Is(err, errEnd) {
		return nil
	}
	return err
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	c.in.mu.Lock()
	defer c.unlockIn()
	in := &c.in
	for len(p) > 0 && in.from == in.to {
		if len(in.early) > 0 && in.err == nil {
			c.ingest(nil)
		}
		if in.from < in.to {
			break
		}
		if in.err != nil {
			return 0, in.err
		}
		switch err := in.feeder.Feed(in.once); {
		case err == nil:
			return 0, c.cut()
		case !errors.Is(err, errEnough):
			return 0, err
		}
	}
	n := 0
	if in.from < in.to {
		n = copy(p, in.plain.B[in.from:in.to])
		in.from += n
		in.settle()
	}
	return n, nil
}

// onOnce is a Read's part of a Feeder's run: it ends with the first content.
func (c *Conn) onOnce(s *burst.Slab, n int) (int, error) {
	used, _ := c.ingest(s.B[burst.Head : burst.Head+n])
	if c.in.err != nil || c.in.from < c.in.to {
		return used, errEnough
	}
	return used, nil
}

// cut is the end of the connection below without close_notify.
func (c *Conn) cut() error {
	if c.in.err == nil {
		c.in.err = io.ErrUnexpectedEOF
	}
	return c.in.err
}

// pass opens what there is of ct and shows it to on.
func (c *Conn) pass(ct []byte, on func(p []byte) (int, error)) (used int, err error) {
	for first := ct == nil; ; first = false {
		had := c.in.to - c.in.from
		n, full := c.ingest(ct[used:])
		used += n
		took := 0
		if first || full || c.in.to-c.in.from > had {
			took, err = c.in.show(on)
		}
		switch {
		case err == nil:
			err = c.in.err
		case full:
			// Whole records are left, and the feeder would show them again only
			// together with new ones.
			c.in.early = append(c.in.early, ct[used:]...)
			used = len(ct)
		}
		if err == nil && full && took == 0 {
			err = errStuck
		}
		if err != nil || !full {
			c.in.settle()
			return used, err
		}
	}
}

// show offers the plaintext to on.
func (in *input) show(on func(p []byte) (int, error)) (int, error) {
	if in.from == in.to {
		return 0, nil
	}
	done, err := on(in.plain.B[in.from:in.to:in.to])
	in.from += done
	return done, err
}

// ingest opens the whole records of ct, of early before. full says that it
// ended for want of room.
func (c *Conn) ingest(ct []byte) (used int, full bool) {
	in := &c.in
	for len(in.early) > 0 && in.err == nil {
		size := c.size(in.early)
		if missing := size - len(in.early); missing > 0 {
			n := min(missing, len(ct)-used)
			in.early = append(in.early, ct[used:used+n]...)
			used += n
			if n < missing {
				return used, false
			}
			continue // a header may have become whole
		}
		if in.err != nil {
			return used, false
		}
		if !in.room(size, len(in.early)) {
			return used, true
		}
		c.open(in.early[:size])
		if in.early = in.early[size:]; len(in.early) == 0 {
			in.early = nil
		}
	}
	for in.err == nil {
		rest := ct[used:]
		size := c.size(rest)
		if size > len(rest) || in.err != nil {
			break
		}
		if !in.room(size, len(rest)) {
			return used, true
		}
		c.open(rest[:size])
		used += size
	}
	return used, false
}

// size is the length of the record that b begins with, of its header while
// that is not whole. A header that announces too much ends the connection
// before anything of it is kept.
func (c *Conn) size(b []byte) int {
	if len(b) < headerSize {
		return headerSize
	}
	n := int(binary.BigEndian.Uint16(b[3:]))
	switch {
	case b[0] != typeData:
		c.fatal(unexpectedMessage, fmt.Sprintf("record of type %d, want %d: all are encrypted after the handshake", b[0], typeData))
	case n > maxSealed:
		c.fatal(recordOverflow, fmt.Sprintf("record of %d bytes, at most %d", n, maxSealed))
	}
	return headerSize + n
}

// room makes room for a record of size bytes behind the plaintext that is
// there, and if possible for all that has arrived.
func (in *input) room(size, all int) bool {
	have := in.to - in.from
	switch {
	case in.plain == nil:
		in.plain = burst.Get(min(all, burst.Max))
		in.from, in.to = burst.Head, burst.Head
		return true
	case len(in.plain.B)-in.to >= size:
		return true
	case have+size > burst.Max:
		return false
	}
	in.move(min(have+all, burst.Max))
	return true
}

// move takes the plaintext to a slab of another size.
func (in *input) move(size int) {
	s := burst.Get(size)
	n := copy(s.B[burst.Head:], in.plain.B[in.from:in.to])
	in.plain.Free()
	in.plain, in.from, in.to = s, burst.Head, burst.Head+n
}

// smallest is the room of the slabs that a rest may wait in.
const smallest = 4<<10 - burst.Head - burst.Tail

// settle gives the slab back when nothing is in it, and takes a small one for
// a small rest: what waits for more may wait long.
func (in *input) settle() {
	switch have := in.to - in.from; {
	case in.plain == nil:
	case have == 0:
		in.plain.Free()
		in.plain, in.from, in.to = nil, 0, 0
	case have <= smallest && in.plain.Room() > smallest:
		in.move(have)
	}
}

// release forgets what was read.
func (in *input) release() {
	in.from = in.to
	in.settle()
	in.early = nil
	in.feeder.Free()
}

// unlockIn lets the next reader in, and forgets all if Close could not
// because of us.
func (c *Conn) unlockIn() {
	c.in.mu.Unlock()
	if c.closed.Load() && c.in.mu.TryLock() {
		c.forget()
		c.in.mu.Unlock()
	}
}

// forget ends the receiving direction of a closed connection.
func (c *Conn) forget() {
	if c.in.err == nil {
		c.in.err = net.ErrClosed
	}
	c.in.release()
	c.in.erase()
}

// open opens one whole record behind the plaintext. This is the only copy of
// what was received: the content type behind it is overwritten by the next.
func (c *Conn) open(rec []byte) {
	in := &c.in
	out, err := in.aead.Open(in.plain.B[in.to:in.to], in.tick(), rec[headerSize:], rec[:headerSize])
	if err != nil {
		c.fatal(badRecordMAC, fmt.Sprintf("record %d does not open: it was changed on its way, or is another one", in.seq-1))
		return
	}
	n := len(out)
	if n > maxContent+1 {
		c.fatal(recordOverflow, fmt.Sprintf("record with %d bytes inside, at most %d", n, maxContent+1))
		return
	}
	for n > 0 && out[n-1] == 0 {
		n--
	}
	if n == 0 {
		c.fatal(unexpectedMessage, "record with nothing but padding inside")
		return
	}
	if in.seq == in.limit {
		c.owe(oweRequest) // the peer should have thought of it
	}
	c.accept(out[n-1], out[:n-1])
}

// accept acts on what was in a record. Only content stays where it is.
func (c *Conn) accept(kind byte, content []byte) {
	in := &c.in
	if in.post.pending() && kind != typeHandshake {
		c.fatal(unexpectedMessage, fmt.Sprintf("record of type %d inside of a handshake message", kind))
		return
	}
	if kind == typeData && len(content) > 0 {
		in.idle = 0
		in.to += len(content)
		return
	}
	if in.idle++; in.idle > maxIdle {
		c.fatal(unexpectedMessage, fmt.Sprintf("%d records in a row without content", in.idle))
		return
	}
	switch kind {
	case typeData:
	case typeAlert:
		c.onAlert(content)
	case typeHandshake:
		c.onHandshake(content)
	default:
		c.fatal(unexpectedMessage, fmt.Sprintf("record of inner type %d", kind))
	}
}
