package h2

// window is receive-side flow control of one stream. Invariant: left + what
// is queued + unsaid == size (TestWindowsAreConserved).
type window struct {
	size   int64 // between the base and Config.StreamWindow
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

// connWindow is receive-side flow control of a connection. It is given back
// on receipt, so that streams whose owners do not read cannot stop the
// others, except for what is queued beyond the budget.
//
// While the connections of a process queue too much together, each holds back
// all that it queues itself: one whose streams are read goes on as before.
//
// Invariants: left + unsaid + held == size, and held == max(0, queued -
// Config.Queue), or queued (TestWindowsAreConserved); so at most Config.Queue +
// size bytes are ever queued (TestMemoryOfStalledStreams), and size once there
// are too many (TestCrowdedProcess).
type connWindow struct {
	window
	queued int64 // in all streams
	held   int64 // of it, not given back until consumed
	extra  int64 // sum of what streams' windows are above the base; <= extraLimit
}

// credit notes that n bytes were received and done with or queued, and that
// what is queued changed; it gives back what may be given back.
func (c *Conn) credit(received, queued int) {
	w := &c.recv
	w.queued += int64(queued)
	c.cfg.Totals.queue(queued)
	if c.err != nil {
		return
	}
	held := max(0, w.queued-c.cfg.Queue)
	if c.cfg.Totals.crowded() {
		held = w.queued
	}
	w.unsaid += int64(received) + w.held - held
	w.held = held
	// An update for every read would double the packets of a small-message tunnel.
	if w.unsaid >= w.size/4 && w.unsaid > 0 {
		w.left += w.unsaid
		c.out.windowUpdate(0, uint32(w.unsaid))
		w.unsaid = 0
		c.kick()
	}
}

// give returns n bytes to the stream's window and says so when half of it is
// used up. An owner who keeps up then gets twice as much, one who lags no
// more than the base.
func (s *Stream) give(n int) {
	c, w := s.c, &s.recv
	if n == 0 || s.remoteEnd || s.cause != nil || c.err != nil {
		return
	}
	w.unsaid += int64(n)
	lags := s.in.size > 0
	if over := w.size - c.cfg.base(); lags && over > 0 {
		back := min(over, w.unsaid)
		w.size -= back
		w.unsaid -= back
		c.recv.extra -= back
	}
	if w.unsaid < w.size/2 || w.unsaid == 0 {
		return
	}
	if !lags {
		// Half of what is left for all, so that the first streams do not take everything.
		more := max(0, min(w.size, int64(c.cfg.StreamWindow)-w.size, (extraLimit-c.recv.extra)/2))
		w.size += more
		w.unsaid += more
		c.recv.extra += more
	}
	w.left += w.unsaid
	c.out.windowUpdate(s.id, uint32(w.unsaid))
	w.unsaid = 0
	c.kick()
}

// consumed notes that n queued bytes are gone.
func (s *Stream) consumed(n int) {
	s.c.credit(0, -n)
	s.give(n)
}
