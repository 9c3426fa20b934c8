package h2

import (
	"time"

	"golang.org/x/net/http2"
)

// readData moves the payload of a DATA frame into its stream, piece by piece
// as it arrives.
func (c *Conn) readData(fh http2.FrameHeader) error {
	if fh.StreamID == 0 {
		return violation(ProtocolError, "DATA on stream 0")
	}
	left, pad := int(fh.Length), 0
	if fh.Flags.Has(http2.FlagDataPadded) {
		if left == 0 {
			return violation(FrameSizeError, "padded DATA frame without a padding length")
		}
		b, err := c.in.br.ReadByte()
		if err != nil {
			return err
		}
		left--
		if pad = int(b); pad > left {
			return violation(ProtocolError, "DATA padding of %d bytes in %d", pad, left)
		}
		left -= pad
	}
	s, err := c.beginData(fh, left)
	if err != nil {
		return err
	}
	for left > 0 {
		// Peek waits for one byte; what else has arrived comes along.
		if _, err := c.in.br.Peek(1); err != nil {
			return err
		}
		piece, _ := c.in.br.Peek(min(left, c.in.br.Buffered()))
		c.mu.Lock()
		c.deliver(s, piece)
		c.mu.Unlock()
		left -= len(piece)
		if _, err := c.in.br.Discard(len(piece)); err != nil {
			return err
		}
	}
	if _, err := c.in.br.Discard(pad); err != nil {
		return err
	}
	if s != nil && fh.Flags.Has(http2.FlagDataEndStream) {
		c.mu.Lock()
		if s.cause == nil {
			s.endRemote()
		}
		c.mu.Unlock()
	}
	return nil
}

// beginData charges the frame to the windows. A nil stream without an error
// means that the payload is to be thrown away.
func (c *Conn) beginData(fh http2.FrameHeader, payload int) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, nil
	}
	n := int64(fh.Length)
	if !c.recv.take(n) {
		return nil, violation(FlowControl, "DATA of %d bytes, the connection's window has %d", n, c.recv.left)
	}
	overhead := int(fh.Length) - payload
	s := c.set.open[fh.StreamID]
	switch {
	case s == nil:
		c.consumed(nil, overhead)
		return nil, c.closedStream(fh.StreamID, fh.Type)
	case s.remoteEnd:
		c.consumed(nil, overhead)
		c.resetStream(s, &ResetError{Code: StreamClosed, Reason: "DATA after END_STREAM"})
		return nil, nil
	case c.role == client && !s.header.done:
		c.consumed(nil, overhead)
		c.resetStream(s, &ResetError{Code: ProtocolError, Reason: "DATA before the response"})
		return nil, nil
	case !s.recv.take(n):
		c.consumed(nil, overhead)
		c.resetStream(s, &ResetError{Code: FlowControl, Reason: "DATA over the stream's window"})
		return nil, nil
	}
	c.consumed(s, overhead)
	if payload == 0 && !fh.Flags.Has(http2.FlagDataEndStream) {
		return s, c.guard.empty.spend(time.Now())
	}
	return s, nil
}

func (c *Conn) deliver(s *Stream, piece []byte) {
	if s == nil || s.closed || s.cause != nil {
		c.consumed(nil, len(piece))
		return
	}
	s.in.push(piece)
	s.readable.Signal()
}
