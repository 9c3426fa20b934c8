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
	readable  sync.Cond
	writable  sync.Cond
	in        queue
	recv      window
	send      int64
	localEnd  bool  // we sent END_STREAM
	remoteEnd bool  // the peer did
	cause     error // why it was cut: *ResetError or *ConnError; nil if it was not
	closed    bool  // by our owner
	header    response
	deadline  [2]deadline // reading, writing
	onAbort   func()
}

// response is what a client stream waits for first.
type response struct {
	got      chan struct{} // closed when fields are there or the stream was cut
	fields   []Field
	done     bool
	informal int // 1xx responses so far
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (c *Conn) newStream(id uint32) *Stream {
	s := &Stream{
		c: c, id: id,
		recv: window{size: int64(c.cfg.StreamWindow), left: int64(c.cfg.StreamWindow)},
		send: c.peer.window,
	}
	s.readable.L, s.writable.L = &c.mu, &c.mu
	if c.role == client {
		s.header.got = make(chan struct{})
	}
	c.set.open[id] = s
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

// OnAbort sets what runs, in a goroutine of its own, when the stream is cut
// before both directions ended; at once if that already happened. Close takes
// it back.
func (s *Stream) OnAbort(fn func()) {
	s.c.mu.Lock()
	cut := s.cause != nil
	if !cut {
		s.onAbort = fn
	}
	s.c.mu.Unlock()
	if cut {
		fn()
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
	s.c.consumed(s, n)
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
		n, err := w.Write(piece.buf[piece.r:piece.w])
		piece.free()
		total += int64(n)
		s.c.mu.Lock()
		s.c.consumed(s, size)
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
		case s.deadline[0].passed():
			return os.ErrDeadlineExceeded
		case s.in.size > 0:
			return nil
		case s.remoteEnd:
			return io.EOF
		case s.cause != nil:
			return s.readCause()
		}
		s.readable.Wait()
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

// Write implements net.Conn. It returns when the bytes are queued.
func (s *Stream) Write(p []byte) (total int, err error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for {
		n, err := s.awaitRoom(len(p))
		if err != nil || len(p) == 0 {
			return total, err
		}
		s.c.out.data(s.id, p[:n], false)
		s.send -= int64(n)
		s.c.send -= int64(n)
		total += n
		p = p[n:]
		s.c.flush()
		if len(p) == 0 {
			return total, nil
		}
	}
}

// awaitRoom returns how many of want bytes may go now, at least one.
func (s *Stream) awaitRoom(want int) (int, error) {
	for {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case s.cause != nil:
			return 0, fmt.Errorf("write: %w", s.cause)
		case s.localEnd:
			return 0, fmt.Errorf("write after the end of the stream: %w", syscall.EPIPE)
		case s.deadline[1].passed():
			return 0, os.ErrDeadlineExceeded
		case want == 0:
			return 0, nil
		}
		n := min(int64(want), s.send, s.c.send, int64(s.c.peer.maxFrame), maxDataFrame)
		room := s.c.out.size() < outboxLimit
		if n > 0 && room {
			return int(n), nil
		}
		if s.send > 0 {
			s.c.blocked[s] = struct{}{}
		}
		s.writable.Wait()
		delete(s.c.blocked, s)
	}
}

// CloseWrite ends our direction: END_STREAM.
func (s *Stream) CloseWrite() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	switch {
	case s.closed:
		return net.ErrClosed
	case s.cause != nil:
		return fmt.Errorf("end stream: %w", s.cause)
	case s.localEnd:
		return nil
	}
	s.c.out.data(s.id, nil, true)
	s.endLocal()
	s.c.flush()
	return nil
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
	s.onAbort = nil
	if s.cause == nil && (!s.localEnd || !s.remoteEnd) {
		s.c.resetStream(s, &ResetError{Code: code})
	}
	s.c.consumed(s, s.in.drop())
	for i := range s.deadline {
		if t := s.deadline[i].timer; t != nil {
			t.Stop()
		}
	}
	s.readable.Broadcast()
	s.writable.Broadcast()
	s.c.kick()
	return nil
}

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.setDeadline(0, &s.readable, t) }

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(1, &s.writable, t) }

func (s *Stream) setDeadline(i int, wake *sync.Cond, t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	d := &s.deadline[i]
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
				wake.Broadcast()
			})
		}
	}
	wake.Broadcast()
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
	s.readable.Broadcast()
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
	if s.header.got != nil && !s.header.done {
		s.header.done = true
		close(s.header.got)
	}
	s.readable.Broadcast()
	s.writable.Broadcast()
	if fn := s.onAbort; fn != nil {
		s.onAbort = nil
		s.c.wg.Go(fn)
	}
}

// resetStream cuts a stream and tells the peer.
func (c *Conn) resetStream(s *Stream, cause *ResetError) {
	c.out.reset(s.id, cause.Code)
	c.set.recent[c.set.recentAt%len(c.set.recent)] = s.id
	c.set.recentAt++
	s.abort(cause)
	c.forget(s)
	c.kick()
}

// forget takes a finished stream out of the connection.
func (c *Conn) forget(s *Stream) {
	if c.set.open[s.id] != s {
		return
	}
	delete(c.set.open, s.id)
	delete(c.blocked, s)
	c.wakeOpener()
	c.finishIfIdle()
}

// Response waits for the answer to a stream that we opened.
func (s *Stream) Response(ctx context.Context) ([]Field, error) {
	select {
	case <-s.header.got:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.header.fields == nil {
		return nil, s.cause
	}
	return s.header.fields, nil
}
