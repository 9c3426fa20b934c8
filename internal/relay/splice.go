package relay

import (
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
)

const (
	// bulky is how many bytes must have come in large reads before the kernel
	// is asked to move them: for small messages read and write are as fast and
	// need no pipe.
	bulky = 128 << 10
	// large is the smallest read that counts as bulk.
	large = 32 << 10
	// small is a piece for which splice is of no use, and calm how many of them
	// in a row end it.
	small = 16 << 10
	calm  = 32
)

// errBulk stops a Feed whose bytes are better spliced.
var errBulk = errors.New("bulk")

// takeForSocket writes what was read until the connection has proven bulky; then
// the kernel moves the bytes, as long as they come in large pieces.
func (d *direction) takeForSocket(s *burst.Slab, n int) (int, error) {
	done, err := d.write(s.B[burst.Head : burst.Head+n])
	if err != nil {
		return done, err
	}
	if d.bulk += n; n < large {
		d.bulk = 0
	}
	if d.bulk >= bulky && !d.refused {
		return n, errBulk
	}
	return n, nil
}

// splice has the kernel move bytes between the sockets; ended says that src has.
func (d *direction) splice() (ended bool, err error) {
	d.bulk = 0
	dst, _ := socket(d.dst)
	s, err := newSplicer(d.feeder, dst, d.count)
	if err != nil {
		return false, err
	}
	ended, err = s.run()
	if !errors.Is(err, burst.ErrParked) { // else nothing may be touched any more
		d.refused = s.refused
	}
	return ended, err
}

// splicer moves bytes between two sockets inside the kernel. It holds a pipe
// only while there are bytes to move.
type splicer struct {
	src   *burst.Feeder // whose socket it is
	dst   syscall.RawConn
	count func(int)
	move  func(from, to, n int) (int, error)

	pipe    *pipe
	in      int // bytes in the pipe
	small   int // small pieces in a row
	ran     int // bytes moved since others could run
	ended   bool
	refused bool // the kernel does not splice these sockets
	err     error
	drain   func(fd uintptr) bool
}

func newSplicer(src *burst.Feeder, dst syscall.Conn, count func(int)) (*splicer, error) {
	s := &splicer{src: src, count: count, move: splice}
	var err error
	if s.dst, err = dst.SyscallConn(); err != nil {
		return nil, &writeError{err}
	}
	s.drain = s.onWritable
	return s, nil
}

// run ends with src (true), an error, or when splicing is of no more use.
func (s *splicer) run() (ended bool, err error) {
	err = s.src.Lend(s.onReadable)
	if errors.Is(err, burst.ErrParked) {
		return false, err // it holds nothing
	}
	s.release()
	if s.err != nil {
		err = s.err
	}
	return s.ended, err
}

// release gives the pipe back, or closes one that still has bytes in it.
func (s *splicer) release() {
	switch {
	case s.pipe == nil:
	case s.in > 0:
		s.pipe.close()
	default:
		pipes.Put(s.pipe)
	}
	s.pipe = nil
}

// onReadable moves what the socket has; false asks the poller to wait.
func (s *splicer) onReadable(fd uintptr) bool {
	for {
		if s.pipe == nil {
			if s.pipe, s.err = takePipe(); s.err != nil {
				s.refused, s.err = true, nil // out of descriptors: read and write do without
				return true
			}
		}
		n, err := s.move(int(fd), s.pipe.w, pipeSize)
		switch {
		case err == syscall.EAGAIN: //nolint:errorlint // straight from the kernel
			s.release()
			s.ran = 0
			return false
		case err == syscall.EINVAL, err == syscall.ENOSYS: //nolint:errorlint // straight from the kernel
			s.refused = true
			return true
		case err != nil:
			s.err = os.NewSyscallError("splice", err)
			return true
		case n == 0:
			s.ended = true
			return true
		}
		s.in = n
		if s.err = s.empty(); s.err != nil {
			return true
		}
		if s.ran += n; s.ran >= burst.YieldAfter {
			s.ran = 0
			burst.Yield()
		}
		if s.small++; n >= small {
			s.small = 0
		}
		if s.small >= calm || s.refused {
			return true
		}
	}
}

// empty moves what is in the pipe to the other socket.
func (s *splicer) empty() error {
	err := s.dst.Write(s.drain)
	if s.err != nil {
		err = s.err
	}
	if err == nil && s.in > 0 {
		err = s.pour()
	}
	if err != nil {
		return &writeError{err}
	}
	return nil
}

func (s *splicer) onWritable(fd uintptr) bool {
	for s.in > 0 {
		n, err := s.move(s.pipe.r, int(fd), s.in)
		switch {
		case err == syscall.EAGAIN: //nolint:errorlint // straight from the kernel
			return false
		case err == syscall.EINVAL, err == syscall.ENOSYS: //nolint:errorlint // straight from the kernel
			s.refused = true
			return true
		case err != nil:
			s.err = os.NewSyscallError("splice", err)
			return true
		}
		s.in -= n
		s.count(n)
	}
	return true
}

// pour takes the bytes of a pipe that the other socket does not take from it.
func (s *splicer) pour() error {
	slab := burst.Get(min(s.in, burst.MaxRead))
	defer slab.Free()
	for s.in > 0 {
		n, err := syscall.Read(s.pipe.r, slab.B[:min(s.in, len(slab.B))])
		if err != nil {
			return os.NewSyscallError("read from pipe", err)
		}
		s.in -= n
		w := rawWriter{p: slab.B[:n]}
		err = s.dst.Write(w.step)
		if s.count(n - len(w.p)); err == nil {
			err = w.err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rawWriter writes all of p.
type rawWriter struct {
	p   []byte
	err error
}

func (w *rawWriter) step(fd uintptr) bool {
	for len(w.p) > 0 {
		n, err := syscall.Write(int(fd), w.p)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return false
		case err != nil:
			w.err = os.NewSyscallError("write", err)
			return true
		default:
			w.p = w.p[n:]
		}
	}
	return true
}

const (
	spliceMove     = 1 // SPLICE_F_MOVE
	spliceNonblock = 2 // SPLICE_F_NONBLOCK
	setPipeSize    = 1031
	// pipeSize bounds what one direction has under way inside the kernel: the
	// most that unprivileged pipes may have. With a quarter of it bulk costs a
	// fifth more CPU.
	pipeSize = 1 << 20
)

func splice(from, to, n int) (int, error) {
	for {
		m, err := syscall.Splice(from, nil, to, nil, n, spliceMove|spliceNonblock)
		if err == syscall.EINTR {
			continue
		}
		return int(m), err
	}
}

// pipe is empty whenever it is in nobody's hands.
type pipe struct {
	r, w int
}

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	// Refused, the pipe keeps its size and takes less at a time.
	_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, uintptr(fds[1]), setPipeSize, pipeSize)
	return &pipe{r: fds[0], w: fds[1]}, nil
}

func (p *pipe) close() { _, _ = syscall.Close(p.r), syscall.Close(p.w) }

const (
	// pipesKept is how many unused pipes wait for the next bytes.
	pipesKept = 64
	// pipesFor is how long they wait.
	pipesFor = 2 * time.Second
)

// pipes is shared by all relays, so that idle ones hold none.
//
//nolint:gochecknoglobals // a free list has no state that anybody can act on
var pipes = burst.Spares[*pipe]{Most: pipesKept, For: pipesFor, Close: (*pipe).close}

// takePipe returns an empty one.
func takePipe() (*pipe, error) {
	if p, ok := pipes.Get(); ok {
		return p, nil
	}
	return newPipe()
}
