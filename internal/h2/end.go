package h2

// OnEnd sets what runs once, in a goroutine of its own, when nothing more will
// arrive on the stream: the peer has ended its direction, or the stream was cut.
// What arrived before may still wait to be read. Close takes it back.
func (s *Stream) OnEnd(fn func()) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	switch {
	case s.closed:
	case s.remoteEnd || s.cause != nil:
		s.c.wg.Go(fn)
	default:
		s.hooks.end = fn
	}
}

// noMore runs what OnEnd has set; the caller holds the lock.
func (s *Stream) noMore() {
	if fn := s.hooks.end; fn != nil {
		s.hooks.end = nil
		s.c.wg.Go(fn)
	}
}
