package h2

// window is receive-side flow control. Invariant: left + what is buffered +
// unsaid == size (TestWindowsAreConserved).
type window struct {
	size   int64
	left   int64 // what the peer may still send
	unsaid int64 // consumed and not yet given back
}

// take charges n received bytes; false if the peer had no right to send them.
func (w *window) take(n int64) bool {
	if n > w.left {
		return false
	}
	w.left -= n
	return true
}

// give returns the update to send now, 0 if it can wait: an update for every
// read would double the packets of a small-message tunnel.
func (w *window) give(n int64) uint32 {
	w.unsaid += n
	if w.unsaid < w.size/4 {
		return 0
	}
	n = w.unsaid
	w.left += n
	w.unsaid = 0
	return uint32(n)
}

// consumed gives n bytes back to the connection's window and, if the peer
// still sends on it, to the stream's.
func (c *Conn) consumed(s *Stream, n int) {
	if n == 0 || c.err != nil {
		return
	}
	if up := c.recv.give(int64(n)); up > 0 {
		c.out.windowUpdate(0, up)
	}
	if s != nil && !s.remoteEnd && s.cause == nil {
		if up := s.recv.give(int64(n)); up > 0 {
			c.out.windowUpdate(s.id, up)
		}
	}
	c.kick()
}
