package relay

import (
	"errors"
	"io"
	"net"
	"syscall"

	"github.com/marrowmesh/marrow/internal/burst"
)

// headroom is how many bytes of a slab a stream wants in front of the data.
const headroom = 9

// slabWriter is a stream that frames in place.
type slabWriter interface {
	// WriteSlab sends b[headroom:]; it may change b and one byte behind its end.
	WriteSlab(b []byte) (sent int, err error)
}

// deliverer is a stream whose bytes come from its connection's reading
// goroutine. done is called once, after the last byte or with what broke.
type deliverer interface {
	Deliver(s Sink, done func(error))
}

// Sink takes the bytes of a stream.
type Sink = interface {
	TryWrite(p []byte) (int, error) // never waits; short means that it would
	Write(p []byte) (int, error)
}

// tcpSocket is what the kernel's file operations work on.
type tcpSocket interface {
	net.Conn
	syscall.Conn
}

// bare is a socket of another type, whose method says that it is no more
// than that.
type bare interface {
	tcpSocket
	Bare()
}

// socket unwraps nothing: a type around a socket may give other bytes.
func socket(end Duplex) (tcpSocket, bool) {
	switch c := end.(type) {
	case *net.TCPConn:
		return c, true
	case *net.UnixConn:
		return c, true
	case bare:
		return c, true
	}
	return nil, false
}

// closedState says whether the kernel has given up a TCP connection: it was
// reset, or both sides have closed it.
func closedState(s tcpSocket) bool {
	if _, unix := s.(*net.UnixConn); unix {
		return false
	}
	rc, err := s.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	_ = rc.Control(func(fd uintptr) { closed = closedFD(fd) })
	return closed
}

func closedFD(fd uintptr) bool {
	// The state is the first byte of what this option tells.
	info, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
	return err == nil && info&0xff == tcpClose
}

// tcpClose is TCP_CLOSE of the kernel's states.
const tcpClose = 7

// pair reports that both ends are sockets.
func (d *direction) pair() bool {
	_, src := socket(d.src)
	_, dst := socket(d.dst)
	return src && dst
}

// prepare has a socket's bytes go to a stream in the slab that they are read into,
// or to a socket.
func (d *direction) prepare() {
	src, ok := socket(d.src)
	if !ok {
		return
	}
	if d.pair() {
		d.feeder, d.take = burst.NewFeeder(src), d.takeForSocket
		return
	}
	dst, ok := d.dst.(slabWriter)
	if !ok {
		return
	}
	d.feeder = burst.NewFeeder(src)
	d.take = func(s *burst.Slab, n int) (int, error) {
		sent, err := dst.WriteSlab(s.B[burst.Head-headroom : burst.Head+n])
		if sent > 0 {
			d.count(sent)
		}
		if err != nil {
			return sent, &writeError{err}
		}
		return n, nil
	}
}

func (d *direction) fed(err error) {
	d.feeder.Free()
	d.finish(err)
}

// feed carries the direction until it ends; burst.ErrParked is no end.
func (d *direction) feed() error {
	for {
		if err := d.feeder.Feed(d.take); !errors.Is(err, errBulk) {
			return err
		}
		if ended, err := d.splice(); err != nil || ended {
			return err
		}
	}
}

func (d *direction) pumpSocket(src tcpSocket) error {
	return burst.Feed(src, func(s *burst.Slab, n int) (int, error) { return d.write(s.B[burst.Head : burst.Head+n]) })
}

// copySize is one read of an end of which nothing is known.
const copySize = 64<<10 - burst.Head - burst.Tail

// copy is for ends that are neither sockets nor streams.
func (d *direction) copy() error {
	s := burst.Get(copySize)
	defer s.Free()
	for {
		n, err := d.src.Read(s.B)
		if n > 0 {
			if _, err := d.write(s.B[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (d *direction) deliverable() bool {
	if _, ok := d.src.(deliverer); !ok {
		return false
	}
	_, ok := socket(d.dst)
	return ok
}

// deliver lets the stream's connection write to the socket. It returns at once.
func (d *direction) deliver() {
	dst, _ := socket(d.dst)
	w, err := burst.NewWriter(dst)
	d.relay.others.Add(1)
	if err != nil {
		d.relay.others.Go(func() { d.finish(&writeError{err}) })
		d.relay.others.Done()
		return
	}
	out := &outlet{w: w, d: d}
	d.src.(deliverer).Deliver(out, out.done)
}

// outlet is a socket as the sink of a stream.
type outlet struct {
	w *burst.Writer
	d *direction
	// err is why the socket takes nothing any more.
	err error
}

// TryWrite implements Sink.
func (o *outlet) TryWrite(p []byte) (int, error) { return o.wrote(o.w.TryWrite(p)) }

// Write implements Sink.
func (o *outlet) Write(p []byte) (int, error) { return o.wrote(o.w.Write(p)) }

func (o *outlet) wrote(n int, err error) (int, error) {
	if n > 0 {
		o.d.count(n)
	}
	if err != nil {
		o.err = err
	}
	return n, err
}

// done runs on the goroutine that reads the stream's connection, which must
// not wait: ends other than in order are passed on beside it.
func (o *outlet) done(err error) {
	switch {
	case o.err != nil:
		err = &writeError{o.err}
	case errors.Is(err, io.EOF):
		o.d.truncated, err = true, nil
	}
	if e, ok := o.d.src.(interface{ Aborted() bool }); err == nil && !o.d.truncated && ok && !e.Aborted() {
		o.d.finish(nil)
	} else {
		o.d.relay.others.Go(func() { o.d.finish(err) })
	}
	o.d.relay.others.Done()
}
