package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// Duplex is one end: a connection whose sending side can be closed alone.
type Duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Result says what was delivered and how it ended.
type Result struct {
	Sent     int64 // bytes from down to up
	Received int64 // bytes from up to down
	Err      error // nil if both sides ended, or one went away as connections do
}

// bufferSize is one read: large enough that a bulk transfer makes few calls.
const bufferSize = 128 << 10

// freeList hands out buffers and counts those that are out.
type freeList struct {
	pool sync.Pool
	out  atomic.Int64
}

func (f *freeList) get() *[]byte {
	f.out.Add(1)
	if b, ok := f.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, bufferSize)
	return &b
}

func (f *freeList) put(b *[]byte) {
	f.out.Add(-1)
	f.pool.Put(b)
}

// buffers is shared by every relay of the process so that idle ones hold none.
//
//nolint:gochecknoglobals // a free list has no state that anybody can act on
var buffers freeList

// Both relays until both directions ended, an error that makes going on
// pointless, or the end of ctx. It closes both ends before it returns.
// onBytes, if given, is told increments as they are delivered: bytes from
// down to up, and bytes from up to down; it may be called by two goroutines
// at once.
func Both(ctx context.Context, down, up Duplex, onBytes func(sent, received int64)) Result {
	var sent, received atomic.Int64
	count := func(s, r int64) {
		if s > 0 {
			sent.Add(s)
		} else {
			received.Add(r)
		}
		if onBytes != nil {
			onBytes(s, r)
		}
	}
	closeBoth := func() { _, _ = down.Close(), up.Close() }
	stop := context.AfterFunc(ctx, closeBoth)
	back := make(chan error, 1)
	go func() { back <- oneWay(down, up, func(n int64) { count(0, n) }, closeBoth) }()
	errOut := oneWay(up, down, func(n int64) { count(n, 0) }, closeBoth)
	errBack := <-back
	if !stop() && ctx.Err() != nil {
		errOut, errBack = fmt.Errorf("relay stopped: %w", context.Cause(ctx)), nil
	}
	closeBoth()
	return Result{Sent: sent.Load(), Received: received.Load(), Err: classify(errOut, errBack)}
}

// oneWay copies src to dst and passes the end of src on. An end that is not
// orderly takes the other direction with it: by fail.
func oneWay(dst, src Duplex, count func(int64), fail func()) error {
	err := pump(dst, src, count)
	if err != nil {
		if w, ok := errors.AsType[*writeError](err); ok {
			// Nobody takes our bytes any more, but what the same peer sent
			// before may still be on its way to us: the other direction
			// reads it to its end, which a reset makes come soon.
			if !gone(w.err) {
				fail()
			}
			return w.err
		}
		fail()
		return err
	}
	if err := dst.CloseWrite(); err != nil && !gone(err) {
		fail()
		return fmt.Errorf("close for writing: %w", err)
	}
	if e, ok := src.(interface{ Aborted() bool }); ok && e.Aborted() {
		// The peer reset the stream without an error: it will not read either.
		fail()
	}
	return nil
}

type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// pump copies until src ends (nil) or either side fails.
func pump(dst io.Writer, src io.Reader, count func(int64)) error {
	counted := &countingWriter{w: dst, count: count}
	switch s := src.(type) {
	case io.WriterTo:
		if _, tcp := src.(*net.TCPConn); !tcp {
			_, err := s.WriteTo(counted)
			return err
		}
	}
	if s, ok := src.(syscall.Conn); ok {
		rc, err := s.SyscallConn()
		if err != nil {
			return err
		}
		return pumpSocket(counted, rc)
	}
	buf := buffers.get()
	defer buffers.put(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			if _, werr := counted.Write((*buf)[:n]); werr != nil {
				return werr
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// socketReader takes a buffer only once the socket has something to read.
type socketReader struct {
	buf *[]byte
	n   int
	err error
}

// try reads without waiting; false asks the poller to wait.
func (r *socketReader) try(fd uintptr) bool {
	r.buf = buffers.get()
	for {
		r.n, r.err = syscall.Read(int(fd), *r.buf)
		if r.err != syscall.EINTR { //nolint:errorlint // straight from the kernel
			break
		}
	}
	if r.err == syscall.EAGAIN { //nolint:errorlint // straight from the kernel
		r.release()
		return false
	}
	return true
}

func (r *socketReader) release() {
	if r.buf != nil {
		buffers.put(r.buf)
		r.buf = nil
	}
}

func pumpSocket(dst io.Writer, src syscall.RawConn) error {
	var r socketReader
	try := r.try // one closure for the life of the relay
	for {
		err := src.Read(try)
		if err == nil && r.err != nil {
			err = os.NewSyscallError("read", r.err)
		}
		if err == nil && r.n > 0 {
			_, err = dst.Write((*r.buf)[:r.n])
		}
		r.release()
		if err != nil || r.n <= 0 {
			return err
		}
	}
}

type countingWriter struct {
	w     io.Writer
	count func(int64)
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if n > 0 {
		c.count(int64(n))
	}
	if err != nil {
		return n, &writeError{err: err}
	}
	return n, nil
}

// classify turns the two outcomes into one: a peer that went away is how
// connections end, not a failure.
func classify(errs ...error) error {
	var out []error
	for _, err := range errs {
		if err != nil && !gone(err) {
			out = append(out, err)
		}
	}
	return errors.Join(out...)
}

// gone reports the errors of a peer that went away: not connected, unexpected
// end, reset, broken pipe; and of an end that the other direction closed.
func gone(err error) bool {
	for _, e := range []error{
		syscall.ENOTCONN, syscall.ECONNRESET, syscall.EPIPE, io.ErrUnexpectedEOF, io.EOF,
		net.ErrClosed, os.ErrClosed, io.ErrClosedPipe,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
