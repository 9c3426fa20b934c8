package h2

import (
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
)

// Headroom is how many bytes in front of a WriteSlab's data are the frame's
// header.
const Headroom = 9

// sending is the writer of a stream who waits.
type sending struct {
	rest  []byte // not sent yet, Headroom bytes first; nil if nobody waits
	sent  int
	slab  bool // rest may be changed and written where it is
	lent  bool // a piece of rest is being written
	turn  bool // in the outbox's turns
	other int  // further writers that wait for this one
}

// Write implements net.Conn. It returns when the bytes are queued.
func (s *Stream) Write(p []byte) (total int, err error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.write(p, false)
}

// WriteSlab sends b[Headroom:] as DATA, waiting for window and room. The
// bytes of b, and one behind its end, may be changed; b is the caller's again
// on return. Nothing is copied unless somebody else is writing, or the peer
// takes small frames only.
func (s *Stream) WriteSlab(b []byte) (sent int, err error) {
	if len(b) < Headroom {
		return 0, fmt.Errorf("write slab of %d bytes: the first %d are for the frame's header", len(b), Headroom)
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.write(b, true)
}

// write sends p, which begins with Headroom bytes to spare if it is a slab.
func (s *Stream) write(p []byte, slab bool) (int, error) {
	c := s.c
	for s.w.rest != nil { // one writer at a time
		s.w.other++
		s.wake.Wait()
		s.w.other--
	}
	data := p
	if slab {
		data = p[Headroom:]
	}
	err := s.sendable()
	if err != nil || len(data) == 0 {
		return 0, err
	}
	if n := int64(len(data)); n <= smallWrite && n <= min(s.send, c.send, int64(c.peer.maxFrame)) && c.out.queue.size < outboxLimit &&
		(c.out.flushing || !slab) && !c.out.frozen {
		s.copyOut(data)
		c.flush(nil)
		return len(data), nil
	}
	s.w.rest, s.w.slab, s.w.sent = p, slab, 0
	s.queueTurn()
	for s.w.rest != nil {
		switch {
		case s.w.lent:
			s.wake.Wait()
		case s.sendable() != nil:
			err = s.sendable()
			s.giveUp()
		case s.w.turn && c.send > 0 && !c.out.flushing && !c.out.frozen:
			c.flush(s)
		default:
			s.wake.Wait()
		}
	}
	sent := s.w.sent
	if s.w.other > 0 {
		s.wake.Broadcast()
	}
	c.kick() // what others left to us
	return sent, err
}

// sendable is nil if the stream can be written to.
func (s *Stream) sendable() error {
	switch {
	case s.closed:
		return net.ErrClosed
	case s.cause != nil:
		return fmt.Errorf("write: %w", s.cause)
	case s.localEnd:
		return fmt.Errorf("write after the end of the stream: %w", syscall.EPIPE)
	case s.dl.passed(writing):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// queueTurn has the stream wait for its turn if it has what it takes.
func (s *Stream) queueTurn() {
	if s.w.rest == nil || s.w.lent || s.w.turn || s.send <= 0 {
		return
	}
	s.w.turn = true
	s.c.out.turns = append(s.c.out.turns, s)
}

// giveUp takes the writer out of the line.
func (s *Stream) giveUp() {
	s.w.rest = nil
	if s.w.turn {
		s.w.turn = false
		s.c.out.turns = slices.DeleteFunc(s.c.out.turns, func(o *Stream) bool { return o == s })
	}
}

// resume looks again at a stream whose window has changed.
func (s *Stream) resume() {
	if s.w.rest == nil {
		return
	}
	s.queueTurn()
	if !s.c.out.flushing { // else whoever writes comes to it
		s.wake.Broadcast()
	}
}

// resumeFirst looks again at the streams that wait for the connection's
// window: the first of them writes for all.
func (c *Conn) resumeFirst() {
	if len(c.out.turns) > 0 && c.send > 0 && !c.out.flushing {
		c.out.turns[0].wake.Broadcast()
	}
}

// lend puts at most limit bytes of rest into the next write: where they are,
// or copied if they may not be changed or need many headers.
func (s *Stream) lend(limit int) int {
	c := s.c
	data := s.w.rest
	if s.w.slab {
		data = data[Headroom:]
	}
	if len(data) <= limit+limit/8 {
		limit = len(data) // rather than a frame for the crumbs
	}
	n := int(min(int64(len(data)), int64(limit), s.send, c.send))
	if s.w.slab && n <= int(c.peer.maxFrame) {
		h := dataHeader(s.id, n, false)
		copy(s.w.rest, h[:])
		l := loan{s: s, n: n}
		if n < len(data) {
			l.saved = data[n]
		}
		s.w.lent = true
		c.out.lent = append(c.out.lent, l)
		s.charge(n)
		c.out.frames++
		return n
	}
	for left := data[:n]; len(left) > 0; {
		frame := left[:min(len(left), int(c.peer.maxFrame))]
		s.copyOut(frame)
		left = left[len(frame):]
	}
	s.advance(n)
	return n
}

// copyOut queues one DATA frame.
func (s *Stream) copyOut(p []byte) {
	s.c.out.data(s.id, p, false)
	s.c.cfg.Totals.copied(len(p))
	s.charge(len(p))
}

func (s *Stream) charge(n int) {
	s.send -= int64(n)
	s.c.send -= int64(n)
	s.c.stats.DataOut += uint64(n)
	s.c.guard.updates.earn(float64(2*(1+n/crumbSize)), updatesSaved)
	if s.c.cfg.Requests != nil {
		s.c.guard.pings.earn(1, s.c.guard.pings.burst) // gRPC's peers measure the path by them, one for each round trip that brings data
	}
}

// returned takes back a piece of rest that the connection is done with.
func (s *Stream) returned(l loan, ok bool) {
	s.w.lent = false
	if Headroom+l.n < len(s.w.rest) {
		s.w.rest[Headroom+l.n] = l.saved
	}
	if !ok {
		s.wake.Broadcast()
		return
	}
	s.advance(l.n)
}

// advance notes that n bytes of rest are on their way. What is in front of
// the others is free for the next header.
func (s *Stream) advance(n int) {
	s.w.sent += n
	s.w.rest = s.w.rest[n:]
	left := len(s.w.rest)
	if s.w.slab {
		left -= Headroom
	}
	if left > 0 {
		s.queueTurn()
		if s.sendable() != nil {
			s.wake.Broadcast() // it was cut while its piece was on loan: nobody else will wake the writer
		}
		return
	}
	s.w.rest = nil
	s.wake.Broadcast()
}

// CloseWrite ends our direction: END_STREAM.
func (s *Stream) CloseWrite() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	switch {
	case s.closed:
		return net.ErrClosed
	case s.cause != nil:
		return fmt.Errorf("end stream: %w", s.cause)
	case s.localEnd:
		return nil
	}
	s.c.out.data(s.id, nil, true)
	s.endLocal()
	s.wake.Broadcast()
	s.c.flush(nil)
	return nil
}
