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
		c.deliver(s, p[:n], end)
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
		return nil, c.closedStream(fh.StreamID, fh.Type)
	case s.remoteEnd:
		return nil, c.mistake(s, &ResetError{Code: StreamClosed, Reason: "DATA after END_STREAM"})
	case c.role == client && !s.header.done:
		return nil, c.mistake(s, &ResetError{Code: ProtocolError, Reason: "DATA before the response"})
	case !s.recv.take(n):
		return nil, c.mistake(s, &ResetError{Code: FlowControl, Reason: "DATA over the stream's window"})
	}
	s.give(overhead)
	if payload == 0 && !fh.Flags.Has(http2.FlagDataEndStream) {
		return s, c.guard.empty.spend(time.Now())
	}
	return s, nil
}

// deliver hands a piece of DATA on: to the stream's sink if that takes it
// now, else to its queue.
func (c *Conn) deliver(s *Stream, piece []byte, end bool) {
	c.mu.Lock()
	c.stats.DataIn += uint64(len(piece))
	taken, direct := 0, 0
	switch {
	case s == nil || s.closed || s.cause != nil || s.to.broken():
		c.credit(len(piece), 0) // thrown away
		taken = len(piece)
	case s.to != nil && !s.to.busy && s.in.size == 0 && len(piece) > 0:
		direct = s.direct(piece)
		taken = direct
	}
	if s == nil {
		c.mu.Unlock()
		return
	}
	if taken < len(piece) {
		s.in.push(piece[taken:])
		c.stats.Queued += uint64(len(piece) - taken)
		c.credit(len(piece)-taken, len(piece)-taken)
		s.wake.Broadcast()
		s.drainLater()
	}
	s.give(direct)
	if end && s.cause == nil {
		s.endRemote()
	}
	done, err := s.settle()
	c.mu.Unlock()
	if done != nil {
		done(err)
	}
}
