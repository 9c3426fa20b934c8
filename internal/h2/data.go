package h2

import (
	"time"

	"golang.org/x/net/http2"
)

// startData begins a DATA frame; rest is its padding length if it has one.
func (c *Conn) startData(fh http2.FrameHeader, rest []byte) error {
	if fh.StreamID == 0 {
		return violation(ProtocolError, "DATA on stream 0")
	}
	left, pad := int(fh.Length), 0
	if fh.Flags.Has(http2.FlagDataPadded) {
		if left == 0 {
			return violation(FrameSizeError, "padded DATA frame without a padding length")
		}
		left--
		if pad = int(rest[0]); pad > left {
			return violation(ProtocolError, "DATA padding of %d bytes in %d", pad, left)
		}
		left -= pad
	}
	s, err := c.beginData(fh, left)
	if err != nil {
		return err
	}
	c.in.part = dataFrame{s: s, left: left, pad: pad, open: true, end: fh.Flags.Has(http2.FlagDataEndStream)}
	if left+pad == 0 {
		c.dataPiece(nil)
	}
	return nil
}

// dataPiece takes what of the DATA frame under way is at the front of p.
func (c *Conn) dataPiece(p []byte) int {
	d := &c.in.part
	n := min(d.left, len(p))
	d.left -= n
	skip := min(d.pad, len(p)-n)
	d.pad -= skip
	d.open = d.left+d.pad > 0
	s, end := d.s, d.end && !d.open
	if !d.open {
		d.s = nil
	}
	if n > 0 || end {
		c.deliver(s, p[:n], end, len(p) > n+skip)
	}
	return n + skip
}

// beginData charges the frame to the windows. A nil stream without an error
// means that the payload is to be thrown away.
func (c *Conn) beginData(fh http2.FrameHeader, payload int) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.FramesIn++
	if c.err != nil {
		return nil, nil
	}
	n := int64(fh.Length)
	if !c.recv.take(n) {
		return nil, violation(FlowControl, "DATA of %d bytes, the connection's window has %d", n, c.recv.left)
	}
	overhead := int(fh.Length) - payload
	c.credit(overhead, 0)
	s := c.set.open[fh.StreamID]
	switch {
	case s == nil:
		return nil, c.strayData(fh)
	case s.remoteEnd:
		return nil, c.mistake(s, &ResetError{Code: StreamClosed, Reason: "DATA after END_STREAM"})
	case c.role == client && !s.header.done:
		return nil, c.mistake(s, &ResetError{Code: ProtocolError, Reason: "DATA before the response"})
	case !s.recv.take(n):
		return nil, c.mistake(s, &ResetError{Code: FlowControl, Reason: "DATA over the stream's window"})
	}
	if reason := s.header.content.take(payload, fh.Flags.Has(http2.FlagDataEndStream)); reason != "" {
		return nil, c.mistake(s, &ResetError{Code: ProtocolError, Reason: reason})
	}
	s.give(overhead)
	if payload == 0 && !fh.Flags.Has(http2.FlagDataEndStream) {
		return s, c.guard.empty.spend(time.Now())
	}
	return s, nil
}

// strayData judges DATA for a stream that is no more; its bytes go back to the
// connection's window as they pass, so that the neighbours lose nothing. After
// a reset what the stream's window still had may come and is free. Nobody who
// keeps the windows can send more, so more ends the connection.
func (c *Conn) strayData(fh http2.FrameHeader) error {
	g := c.set.recently(fh.StreamID)
	if g == nil {
		if err := c.closedStream(fh.StreamID, fh.Type); err != nil {
			return err
		}
		return c.guard.waste.take(time.Now(), float64(fh.Length))
	}
	if fh.Length > g.left {
		return violation(EnhanceYourCalm, "DATA of %d bytes on stream %d, which was reset: its window has %d", fh.Length, fh.StreamID, g.left)
	}
	g.left -= fh.Length
	switch {
	case fh.Flags.Has(http2.FlagDataEndStream):
		*g = grant{} // that was the last
	case fh.Length == 0:
		return c.guard.empty.spend(time.Now())
	}
	return nil
}

// deliver hands a piece of DATA on: to the stream's sink if that takes it
// now, else to its queue. more says that this feed goes on behind it: what is
// small then waits for the rest, so that a peer who cuts its data into crumbs
// does not have us make a call to the system for each.
func (c *Conn) deliver(s *Stream, piece []byte, end, more bool) {
	if s != nil && s.late && len(piece) >= crumbPiece {
		c.offer(s)
	}
	c.mu.Lock()
	c.stats.DataIn += uint64(len(piece))
	if s == nil || s.cause != nil || s.unwanted() {
		c.credit(len(piece), 0) // thrown away
		c.mu.Unlock()
		return
	}
	taken := 0
	again := s.fed == c.in.round
	s.fed = c.in.round
	if s.to != nil && !s.to.busy && s.in.size == 0 && len(piece) > 0 {
		if again && more && len(piece) < crumbPiece {
			s.late = true
			c.in.late = append(c.in.late, s)
		} else {
			taken = s.try(piece)
			if s.unwanted() {
				taken = len(piece)
			}
			c.credit(taken, 0)
		}
	}
	if rest := piece[taken:]; len(rest) > 0 {
		s.in.push(rest)
		c.cfg.Totals.copied(len(rest))
		c.credit(len(rest), len(rest))
		if !s.late {
			c.stats.Queued += uint64(len(rest))
			s.wake.Broadcast()
			s.drainLater()
		}
	}
	s.give(taken)
	if end && s.cause == nil {
		s.endRemote()
	}
	done, err := s.settle()
	c.mu.Unlock()
	if done != nil {
		done(err)
	}
}
