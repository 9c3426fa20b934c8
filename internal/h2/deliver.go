package h2

import (
	"errors"
	"fmt"
	"net"
)

// Sink is where the bytes of a stream go. It is an alias so that rooms which
// do not know this one can ask whether something delivers.
type Sink = interface {
	TryWrite(p []byte) (int, error) // never waits; short = would block
	Write(p []byte) (int, error)
}

// SinkError is a stream that ended because its Sink failed.
type SinkError struct{ Err error }

func (e *SinkError) Error() string { return fmt.Sprintf("write to the stream's sink: %v", e.Err) }

func (e *SinkError) Unwrap() error { return e.Err }

// errDelivered refuses to read what goes to a Sink.
var errDelivered = errors.New("http2 stream is read by Deliver")

// delivery is a stream's Sink. All but the calls to sink and done need the
// connection's lock.
//
// Invariant: one goroutine at a time is at the sink, and done is called when
// none is any more and none will be (TestDeliver).
type delivery struct {
	sink Sink
	done func(error) // nil once it was called, or is about to be
	busy bool        // the reading goroutine or a drainer is at the sink
	err  error       // of the sink
}

func (d *delivery) broken() bool { return d != nil && d.err != nil }

// Deliver gives everything that arrives on the stream to sink: from the
// connection's reading goroutine as long as sink takes it, else from a
// goroutine that lives until nothing is queued any more.
//
// done is called once, when sink is not used any more: with nil after
// END_STREAM and the last byte, with a *SinkError, or with why the stream was
// cut: io.EOF if by the peer without an error, net.ErrClosed if by its owner.
// It must not wait. Whoever closes the
// stream while sink.Write waits must unblock it too.
func (s *Stream) Deliver(sink Sink, done func(error)) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.to != nil {
		s.c.wg.Go(func() { done(errDelivered) })
		return
	}
	s.to = &delivery{sink: sink, done: done}
	s.drainLater()
	s.settleLater()
}

// try offers piece to the sink, without the lock, and returns how much it
// took.
func (s *Stream) try(piece []byte) int {
	c, d := s.c, s.to
	d.busy = true
	c.mu.Unlock()
	n, err := d.sink.TryWrite(piece)
	c.mu.Lock()
	d.busy = false
	if err != nil {
		d.err = &SinkError{Err: err}
	}
	return max(0, min(n, len(piece)))
}

// unwanted reports that nobody will take what arrives.
func (s *Stream) unwanted() bool { return s.closed || s.to.broken() }

// offer gives a stream's late crumbs to its sink; the reading goroutine calls
// it at the end of a feed at the latest. What the sink does not take is left
// to a drainer.
func (c *Conn) offer(s *Stream) {
	c.mu.Lock()
	s.late = false
	taken := 0
	for !s.to.busy && s.in.size > 0 && !s.unwanted() {
		p := s.in.take()
		n := s.try(p.bytes())
		if p.r += n; p.r < p.w && !s.unwanted() {
			s.in.unread(p)
			taken += n
			break
		}
		taken += n + p.w - p.r
		p.slab.Free()
	}
	if s.to.broken() {
		taken += s.in.drop()
	}
	s.consumed(taken)
	c.stats.Queued += uint64(s.in.size)
	s.drainLater()
	done, err := s.settle()
	c.mu.Unlock()
	if done != nil {
		done(err)
	}
}

// drainLater starts a drainer if there is something for it.
func (s *Stream) drainLater() {
	if d := s.to; d != nil && !d.busy && d.err == nil && s.in.size > 0 && !s.closed {
		d.busy = true
		s.c.wg.Go(s.drain)
	}
}

// drain writes what is queued, waiting for the sink.
func (s *Stream) drain() {
	c, d := s.c, s.to
	c.mu.Lock()
	for s.in.size > 0 && d.err == nil && !s.closed {
		p := s.in.take()
		c.mu.Unlock()
		size := p.w - p.r
		_, err := d.sink.Write(p.bytes())
		p.slab.Free()
		c.mu.Lock()
		s.consumed(size)
		if err != nil {
			d.err = &SinkError{Err: err}
		}
	}
	d.busy = false
	if d.err != nil {
		c.credit(0, -s.in.drop())
	}
	done, err := s.settle()
	c.mu.Unlock()
	if done != nil {
		done(err)
	}
}

// settle returns done and its argument if the time has come; the caller calls
// it without the lock.
func (s *Stream) settle() (func(error), error) {
	d := s.to
	if d == nil || d.busy || d.done == nil {
		return nil, nil
	}
	var err error
	switch {
	case d.err != nil:
		err = d.err
	case s.closed:
		err = net.ErrClosed
	case s.in.size > 0:
		return nil, nil
	case s.lost:
		err = s.cause
	case s.remoteEnd:
	case s.cause != nil:
		err = s.readCause()
	default:
		return nil, nil
	}
	done := d.done
	d.done = nil
	return done, err
}

// settleLater is settle for callers who cannot let go of the lock.
func (s *Stream) settleLater() {
	if done, err := s.settle(); done != nil {
		s.c.wg.Go(func() { done(err) })
	}
}
