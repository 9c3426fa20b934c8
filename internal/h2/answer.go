package h2

import (
	"fmt"
)

// Inform sends an informational answer (1xx), which others may follow and the final
// one must.
func (s *Stream) Inform(fields []Field) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.answerable(); err != nil {
		return err
	}
	s.c.out.headers(s.id, fields, false, s.c.peer.maxFrame)
	s.c.flush(nil)
	return nil
}

// Answer sends the final answer's header and what there is of its content; with
// end that is the whole answer. It goes out in one write where windows allow,
// and waits for window as Write does, and for room if many answers wait.
func (s *Stream) Answer(fields []Field, data []byte, end bool) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.room(s)
	if err := s.answerable(); err != nil {
		return err
	}
	s.header.done = true
	s.c.guard.resets.earn(1, s.c.guard.resets.burst) // deadlines are short at times: who mostly waits may give up as often
	only := end && len(data) == 0
	s.c.out.headers(s.id, fields, only, s.c.peer.maxFrame)
	if !only {
		return s.finish(data, end, nil)
	}
	s.endLocal()
	s.c.flush(nil)
	return nil
}

// answerable is nil while the final answer has not begun.
func (s *Stream) answerable() error {
	if s.cause != nil {
		return fmt.Errorf("respond: %w", s.cause)
	}
	if s.closed || s.localEnd || s.header.done {
		return fmt.Errorf("respond on stream %d: it was answered or closed before", s.id)
	}
	return nil
}

// Finish sends what is left of our direction, and ends it: with data's last byte,
// or with the trailers if there are any.
func (s *Stream) Finish(data []byte, trailers []Field) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.finish(data, true, trailers)
}

// finish sends data, and with end that nothing follows but the trailers.
func (s *Stream) finish(data []byte, end bool, trailers []Field) error {
	c := s.c
	if err := s.sendable(); err != nil {
		return err
	}
	last := end && len(trailers) == 0
	n := int64(len(data))
	small := n <= smallWrite && n <= min(s.send, c.send, int64(c.peer.maxFrame)) && c.out.queue.size < outboxLimit && !c.out.frozen && s.w.rest == nil
	switch {
	case small && (n > 0 || last):
		c.out.data(s.id, data, last)
		c.cfg.Totals.copied(len(data))
		s.charge(len(data))
	case !small:
		if _, err := s.write(data, false); err != nil {
			return err
		}
		if err := s.sendable(); err != nil {
			return err
		}
		if last {
			c.out.data(s.id, nil, true)
		}
	}
	if len(trailers) > 0 {
		c.out.headers(s.id, trailers, true, c.peer.maxFrame)
	}
	if end {
		s.endLocal()
		s.wake.Broadcast()
	}
	c.flush(nil)
	return nil
}

// room waits until what others have queued is about to leave. A peer that does not
// read has its requests wait then, instead of filling our memory.
func (c *Conn) room(s *Stream) {
	for c.out.flushing && c.out.queue.size >= outboxLimit && c.err == nil && s.cause == nil && !s.closed {
		c.out.crowd++
		c.out.idle.Wait()
		c.out.crowd--
	}
}
