package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Stream is one stream of a connection, as a net.Conn with half close.
//
// A reset by the peer with NO_ERROR or CANCEL reads as the end of the data
// and writes as a broken pipe; STREAM_CLOSED is a broken pipe for both;
// other codes are a *ResetError.
type Stream struct {
	c  *Conn
	id uint32

	// All below need c.mu.
	wake      sync.Cond // something that a reader or writer waits for changed
	in        queue
	recv      window
	send      int64
	w         sending
	to        *delivery // nil: Read and WriteTo
	fed       uint64    // the last feed that had something for the stream
	late      bool      // crumbs of this feed are queued for the end of it
	localEnd  bool      // we sent END_STREAM
	remoteEnd bool      // the peer did
	cause     error     // why it was cut: *ResetError or *ConnError; nil if it was not
	closed    bool      // by our owner
	detached  bool      // its handler returned, and goes on elsewhere
	lost      bool      // what waited to be read was dropped: cause is all there is to say
	header    response
	began     time.Time  // when the peer opened it; zero at a client
	dl        *deadlines // nil if none was ever set
	hooks     hooks
}

// hooks are what OnAbort and OnEnd have set.
type hooks struct{ abort, end func() }

// response is what a client stream waits for first.
type response struct {
	fields   []Field
	done     bool      // fields are there, or the stream was cut
	informal int       // 1xx responses so far
	early    [][]Field // those that nobody has taken, on a connection of Requests
	content  *content  // of what follows the peer's header, on a connection of Requests
}

// answered lets those go on who wait for the answer.
func (s *Stream) answered() {
	s.header.done = true
	s.wake.Broadcast()
}

// lose drops what the owner has not read: a peer that attacks, and memory that
// is short, are no time to keep it.
func (s *Stream) lose() {
	if n := s.in.drop(); n > 0 {
		s.lost = true
		s.c.credit(0, -n)
	}
}

type direction int

const (
	reading direction = iota
	writing
)

type deadlines [2]struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadlines) passed(dir direction) bool {
	return d != nil && !d[dir].at.IsZero() && !time.Now().Before(d[dir].at)
}

func (c *Conn) newStream(id uint32) *Stream {
	s := &Stream{
		c: c, id: id,
		recv: window{size: c.cfg.base(), left: c.cfg.base()},
		send: c.peer.window,
	}
	s.wake.L = &c.mu
	c.set.open[id] = s
	c.guard.updates.earn(2, updatesSaved) // some peers enlarge each stream's window
	return s
}

// ID is the stream's number.
func (s *Stream) ID() uint32 { return s.id }

// Conn is the connection that carries the stream.
func (s *Stream) Conn() *Conn { return s.c }

// LocalAddr is the connection's.
func (s *Stream) LocalAddr() net.Addr { return s.c.nc.LocalAddr() }

// RemoteAddr is the connection's.
func (s *Stream) RemoteAddr() net.Addr { return s.c.nc.RemoteAddr() }

// OnAbort sets what runs once, in a goroutine of its own, when the stream is
// cut before both directions ended, or if it was already. Close takes it back,
// and so does nil.
func (s *Stream) OnAbort(fn func()) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	switch {
	case s.closed:
	case s.cause == nil:
		s.hooks.abort = fn
	case fn != nil:
		s.c.wg.Go(fn)
	}
}

// Aborted reports whether the stream was cut: nobody reads what we send.
func (s *Stream) Aborted() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.cause != nil
}

// Read implements net.Conn.
func (s *Stream) Read(p []byte) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.awaitData(); err != nil {
		return 0, err
	}
	n := s.in.read(p)
	s.consumed(n)
	return n, nil
}

// WriteTo implements io.WriterTo: bytes go from the stream's own buffers to
// w, in as large pieces as have arrived, and none is held while waiting.
func (s *Stream) WriteTo(w io.Writer) (total int64, err error) {
	for {
		s.c.mu.Lock()
		if err := s.awaitData(); err != nil {
			s.c.mu.Unlock()
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return total, err
		}
		piece := s.in.take()
		s.c.mu.Unlock()
		size := piece.w - piece.r
		n, err := w.Write(piece.bytes())
		piece.slab.Free()
		total += int64(n)
		s.c.mu.Lock()
		s.consumed(size)
		s.c.mu.Unlock()
		if err != nil {
			return total, err
		}
	}
}

// awaitData returns nil once there is something to read.
func (s *Stream) awaitData() error {
	for {
		switch {
		case s.closed:
			return net.ErrClosed
		case s.to != nil:
			return errDelivered
		case s.dl.passed(reading):
			return os.ErrDeadlineExceeded
		case s.in.size > 0:
			return nil
		case s.lost:
			return s.cause
		case s.remoteEnd:
			return io.EOF
		case s.cause != nil:
			return s.readCause()
		}
		s.wake.Wait()
	}
}

func (s *Stream) readCause() error {
	if r, ok := errors.AsType[*ResetError](s.cause); ok && r.Remote {
		switch r.Code {
		case NoError, Cancel:
			return io.EOF
		case StreamClosed:
			return fmt.Errorf("%w: %w", r, syscall.EPIPE)
		default: // what was lost is the cause, as it stands
		}
	}
	return s.cause
}

// Close gives the stream up: RST_STREAM CANCEL if it is not finished. What
// was not read is dropped.
func (s *Stream) Close() error { return s.CloseCode(Cancel) }

// CloseCode is Close with another code.
func (s *Stream) CloseCode(code Code) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.hooks = hooks{}
	if s.cause == nil && (!s.localEnd || !s.remoteEnd) {
		s.c.resetStream(s, &ResetError{Code: code})
	}
	s.c.credit(0, -s.in.drop())
	if s.dl != nil {
		for i := range s.dl {
			if t := s.dl[i].timer; t != nil {
				t.Stop()
			}
		}
	}
	s.wake.Broadcast()
	s.settleLater()
	s.c.kick()
	return nil
}

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.setDeadline(reading, t) }

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(writing, t) }

func (s *Stream) setDeadline(dir direction, t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.dl == nil {
		if t.IsZero() {
			return nil
		}
		s.dl = new(deadlines)
	}
	d := &s.dl[dir]
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if !t.IsZero() {
		if wait := time.Until(t); wait > 0 {
			d.timer = time.AfterFunc(wait, func() {
				s.c.mu.Lock()
				defer s.c.mu.Unlock()
				s.wake.Broadcast()
			})
		}
	}
	s.wake.Broadcast()
	return nil
}

// endLocal and endRemote note the end of a direction; the stream leaves the
// connection when both ended.
func (s *Stream) endLocal() {
	s.localEnd = true
	if s.remoteEnd {
		s.c.forget(s)
	}
}

func (s *Stream) endRemote() {
	s.remoteEnd = true
	s.noMore()
	s.wake.Broadcast()
	if s.localEnd {
		s.c.forget(s)
	}
}

// abort cuts the stream: what arrived can be read, then cause is the answer.
// The caller takes it out of the connection.
func (s *Stream) abort(cause error) {
	if s.cause != nil {
		return
	}
	s.cause = cause
	s.noMore()
	if s.c.role == client && !s.header.done {
		s.answered()
	}
	s.wake.Broadcast()
	s.settleLater()
	if fn := s.hooks.abort; fn != nil {
		s.hooks.abort = nil
		s.c.wg.Go(fn)
	}
}

// resetStream cuts a stream and tells the peer.
func (c *Conn) resetStream(s *Stream, cause *ResetError) {
	c.out.reset(s.id, cause.Code)
	left := int64(0)
	if !s.remoteEnd {
		left = c.underWay(s.recv.left)
	}
	c.set.remember(s.id, left)
	s.abort(cause)
	c.forget(s)
	c.kick()
}

// underWay is the most DATA that can be under way on a stream whose window has
// left: no more is ever given after a reset, and what was on its way then is in
// left already. A peer that has not seen our SETTINGS reckons with what
// RFC 9113 gives.
func (c *Conn) underWay(left int64) int64 { return max(left, defaultWindow) }

// remember notes a stream that we reset.
func (t *streamSet) remember(id uint32, left int64) {
	t.recent[t.recentAt%len(t.recent)] = grant{id: id, left: uint32(left)}
	t.recentAt++
}

// recently is what may still come for a stream that we reset, nil for others.
func (t *streamSet) recently(id uint32) *grant {
	for i := range t.recent {
		if t.recent[i].id == id {
			return &t.recent[i]
		}
	}
	return nil
}

// forget takes a finished stream out of the connection.
func (c *Conn) forget(s *Stream) {
	if c.set.open[s.id] != s {
		return
	}
	delete(c.set.open, s.id)
	c.recv.extra -= s.recv.size - c.cfg.base()
	c.wakeOpener()
	c.finishIfIdle()
}

// Response waits for the answer to a stream that we opened. On a connection of
// Requests each informational answer (1xx) that comes before is one result, then the
// final one is.
func (s *Stream) Response(ctx context.Context) ([]Field, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.header.done && len(s.header.early) == 0 {
		// No channel: ctx may be the life of an idle connection, which has none.
		defer afterFunc(ctx, func() {
			s.c.mu.Lock()
			defer s.c.mu.Unlock()
			s.wake.Broadcast()
		})()
		for !s.header.done && len(s.header.early) == 0 {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			s.wake.Wait()
		}
	}
	if e := s.header.early; len(e) > 0 {
		s.header.early = e[1:]
		return e[0], nil
	}
	if s.header.fields == nil {
		return nil, s.cause
	}
	return s.header.fields, nil
}

// afterFunc is that of package context, without the objects that it puts
// between f and a context that has the method itself.
func afterFunc(ctx context.Context, f func()) (stop func() bool) {
	if c, ok := ctx.(interface {
		AfterFunc(f func()) (stop func() bool)
	}); ok {
		return c.AfterFunc(f)
	}
	return context.AfterFunc(ctx, f)
}
