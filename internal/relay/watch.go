package relay

import (
	"net"
	"time"
)

// A peer that has said all may go away before it has heard all. Whoever reads
// from it no more does not learn of that, and whoever has nothing to write to it
// does not either: the other peer would wait for ever.

// aborter is a stream that tells when it is cut.
type aborter interface{ OnAbort(fn func()) }

// watch waits beside the other direction for what src does after its end: a
// socket until it is reset or unwatch is called, while a stream tells by itself.
func (d *direction) watch() {
	if s, ok := d.src.(aborter); ok {
		s.OnAbort(d.leave)
		return
	}
	s, ok := socket(d.src)
	if _, unix := d.src.(*net.UnixConn); !ok || unix {
		return // nothing tells
	}
	rc, err := s.SyscallConn()
	if err != nil {
		return
	}
	if rc.Read(closedFD) == nil && !d.other().ended.Load() { // else both sides have said that they end
		d.leave()
	}
}

// unwatch ends watch, which may not have begun. It is for the other direction,
// when both have ended.
func (d *direction) unwatch() {
	if s, ok := socket(d.src); ok {
		_ = s.SetReadDeadline(time.Unix(1, 0))
	}
}

// leave tells the other peer that this one has gone.
func (d *direction) leave() {
	if !d.other().over.Load() {
		reset(d.dst)
		d.relay.close()
	}
}
