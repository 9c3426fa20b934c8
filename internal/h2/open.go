package h2

import (
	"context"
	"fmt"
)

// limit is how many streams a client may have open now.
func (c *Conn) limit() int {
	return int(min(c.cfg.MaxStreams, c.peer.maxStreams))
}

func (c *Conn) usable() error {
	switch {
	case c.err != nil:
		return fmt.Errorf("%w: %w", ErrGoingAway, c.err)
	case c.life.peerGone || c.life.draining:
		return ErrGoingAway
	case c.set.next > maxWindow:
		return fmt.Errorf("%w: stream numbers used up", ErrGoingAway)
	}
	return nil
}

// Reserve promises one place to the next Open, false if there is none.
func (c *Conn) Reserve() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.usable() != nil || len(c.set.open)+c.set.reserved >= c.limit() {
		return false
	}
	c.set.reserved++
	return true
}

// Unreserve gives a promised place back.
func (c *Conn) Unreserve() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.set.reserved > 0 {
		c.set.reserved--
		c.wakeOpener()
		c.finishIfIdle()
	}
}

// Open sends a request. It uses a place promised by Reserve if there is one,
// else it waits for a free one. With end the request has no body.
func (c *Conn) Open(ctx context.Context, fields []Field, end bool) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.place(ctx); err != nil {
		return nil, err
	}
	if size := headerSize(fields); c.peer.maxHeaders > 0 && size > int(c.peer.maxHeaders) {
		c.wakeOpener()
		return nil, fmt.Errorf("request headers of %d bytes are over the peer's limit of %d", size, c.peer.maxHeaders)
	}
	s := c.newStream(c.set.next)
	c.set.next += 2
	c.out.headers(s.id, fields, end, c.peer.maxFrame)
	s.localEnd = end
	c.flush(nil)
	return s, nil
}

func (c *Conn) place(ctx context.Context) error {
	if err := c.usable(); err != nil {
		return err
	}
	if c.set.reserved > 0 {
		c.set.reserved--
		return nil
	}
	for len(c.set.open)+c.set.reserved >= c.limit() {
		turn := make(chan struct{})
		c.set.waiting = append(c.set.waiting, turn)
		c.mu.Unlock()
		var err error
		select {
		case <-turn:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		c.mu.Lock()
		if err != nil {
			// If our turn came in the same moment, it is the next one's.
			if !c.leaveQueue(turn) {
				c.wakeOpener()
			}
			return fmt.Errorf("wait for a free stream: %w", err)
		}
		if err := c.usable(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Conn) leaveQueue(turn chan struct{}) bool {
	for i, w := range c.set.waiting {
		if w == turn {
			c.set.waiting = append(c.set.waiting[:i], c.set.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// wakeOpener lets the oldest opener look again. One that was not needed does
// no harm: whoever finds no place queues again.
func (c *Conn) wakeOpener() {
	if len(c.set.waiting) > 0 {
		close(c.set.waiting[0])
		c.set.waiting = c.set.waiting[1:]
	}
}

// headerSize is the size of RFC 9113 section 6.5.2.
func headerSize(fields []Field) int {
	n := 0
	for _, f := range fields {
		n += len(f.Name) + len(f.Value) + 32
	}
	return n
}

// Respond sends the answer to a request; with end it is the whole answer.
func (s *Stream) Respond(fields []Field, end bool) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.cause != nil {
		return fmt.Errorf("respond: %w", s.cause)
	}
	if s.closed || s.localEnd || s.header.done {
		return fmt.Errorf("respond on stream %d: it was answered or closed before", s.id)
	}
	s.header.done = true
	s.c.out.headers(s.id, fields, end, s.c.peer.maxFrame)
	if end {
		s.endLocal()
	}
	s.c.flush(nil)
	return nil
}
