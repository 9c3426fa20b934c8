package burst

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// errStuck is a reader that takes nothing although a whole slab is full.
var errStuck = errors.New("burst: nothing taken of a full buffer")

// plainRead is one read of a connection that is no socket.
const plainRead = 16<<10 - Head - Tail

// Feeder reads one connection. One goroutine at a time may use it.
type Feeder struct {
	nc net.Conn
	rc syscall.RawConn

	on   func(s *Slab, n int) (done int, err error)
	step func(fd uintptr) bool
	slab *Slab
	left int // bytes in slab that on has not taken yet
	size int // of the next slab
	full int // full reads in a row, negative: small ones
	ran  int // bytes shown since others could run
	err  error

	calm  uint8  // turns in a row in which nobody else moved anything
	seen  uint64 // beats at the end of the last turn
	ours  uint64 // of the beats since then
	quiet bool   // nothing moved by others for long: reads may be larger

	lot *lodger // nil: it keeps its goroutine
}

// NewFeeder makes a Feeder of nc. It uses nc's RawConn if there is one.
func NewFeeder(nc net.Conn) *Feeder {
	f := &Feeder{nc: nc, size: classes[0] - Head - Tail}
	if sc, ok := nc.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			f.rc = rc
		}
	}
	f.step = f.onReady
	return f
}

// Feed is NewFeeder(nc).Feed(on), forgetting what is left over at the end.
func Feed(nc net.Conn, on func(s *Slab, n int) (done int, err error)) error {
	f := NewFeeder(nc)
	defer f.Free()
	return f.Feed(on)
}

// Feed reads until the connection's end (nil), an error of it, or an error
// of on. on gets n bytes at s.B[Head:Head+n], at least one, and says how many
// it is done with; the others are shown again in front of what comes next. It
// may change those bytes and use what is in front of and behind them. After
// an error, such as a deadline, Feed may be called again; after ErrParked not
// before Again is called.
func (f *Feeder) Feed(on func(s *Slab, n int) (done int, err error)) error {
	if f.rc == nil {
		f.on = on
		defer func() { f.on = nil }()
		return f.feedPlain()
	}
	for {
		f.on, f.err = on, nil
		quiet, err := f.waitSocket(f.step)
		f.on = nil
		if f.left == 0 {
			f.Free()
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case !quiet:
			return err
		case f.left > 0:
			continue
		}
		// Once it is parked, another goroutine may be in here.
		if err := f.lot.in.park(f); err != nil {
			return err
		}
	}
}

// Lend has step deal with the socket itself while Feed does not run, as the
// callback of a RawConn's Read. It returns when step is done, with an error of
// waiting, or with ErrParked as Feed does.
func (f *Feeder) Lend(step func(fd uintptr) bool) error {
	f.err = nil
	counted := step
	if f.lot != nil {
		counted = func(fd uintptr) bool {
			f.lot.turns.Add(1)
			return step(fd)
		}
	}
	for {
		quiet, err := f.waitSocket(counted)
		if !quiet {
			return err
		}
		if err := f.lot.in.park(f); err != nil {
			return err
		}
	}
}

// waitSocket calls step until it is done, the wait fails, or the Lot finds that
// the connection has gone quiet.
func (f *Feeder) waitSocket(step func(fd uintptr) bool) (quiet bool, err error) {
	if f.lot != nil {
		f.lot.in.enter(f)
		defer f.lot.in.leave(f)
	}
	err = f.rc.Read(step)
	switch {
	case f.err != nil:
		return false, f.err
	case f.lot != nil && errors.Is(err, os.ErrDeadlineExceeded) && f.lot.kicked.Load():
		// The deadline may as well be that of somebody who ends the connection:
		// he closes it, too, and calls Release.
		_ = f.nc.SetReadDeadline(time.Time{})
		f.lot.kicked.Store(false)
		return true, nil
	}
	return false, known(err)
}

// Left is what on has not taken; it stays valid until the next Feed or Free.
func (f *Feeder) Left() []byte {
	if f.slab == nil {
		return nil
	}
	return f.slab.B[Head : Head+f.left]
}

// Free forgets what was left over.
func (f *Feeder) Free() {
	if f.slab != nil {
		f.slab.Free()
		f.slab, f.left = nil, 0
	}
}

// onReady reads until the socket is empty; false asks the poller to wait for
// more. A short read does not prove that nothing is left: an end or a reset
// that came with the last bytes is only seen by reading again, and the poller
// has told of it already.
func (f *Feeder) onReady(fd uintptr) bool {
	for {
		dst := f.space()
		n, err := read(fd, dst)
		switch {
		case err == syscall.EINTR: //nolint:errorlint // straight from the kernel
			continue
		case err == syscall.EAGAIN: //nolint:errorlint // straight from the kernel
			f.rest()
			f.ran = 0
			return false
		case err != nil:
			f.err = os.NewSyscallError("read", err)
			return true
		case n == 0:
			f.err = io.EOF
			return true
		}
		if f.lot != nil {
			f.lot.turns.Add(1)
		}
		if f.err = f.show(n, len(dst)); f.err != nil {
			return true
		}
		if f.ran += n; f.ran >= YieldAfter {
			f.ran = 0
			Yield()
			f.look(beats.Load())
		}
	}
}

func (f *Feeder) feedPlain() error {
	for {
		f.size = plainRead
		dst := f.space()
		n, err := f.nc.Read(dst)
		if n > 0 {
			if err := f.show(n, len(dst)); err != nil {
				return err
			}
		}
		if f.left == 0 {
			f.rest()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// space is where the next read goes.
func (f *Feeder) space() []byte {
	if f.slab == nil {
		f.slab = Get(f.allowed())
	} else if room := f.slab.Room(); f.left > 0 && room-f.left < room/2 && f.size > room {
		f.grow(f.size)
	} else if f.left == room && room < MaxRead {
		f.grow(min(4*room, MaxRead)) // an error of on came when it was full
	}
	return f.slab.B[Head+f.left : len(f.slab.B)-Tail]
}

func (f *Feeder) grow(size int) {
	bigger := Get(size)
	copy(bigger.B[Head:], f.slab.B[Head:Head+f.left])
	f.slab.Free()
	f.slab = bigger
}

// rest gives the slab back if it holds nothing.
func (f *Feeder) rest() {
	if f.slab != nil && f.left == 0 {
		f.slab.Free()
		f.slab = nil
	}
}

// show offers what is there to on and keeps what it leaves.
func (f *Feeder) show(n, asked int) error {
	f.adapt(n, asked)
	n += f.left
	f.left = n
	before := beats.Load()
	done, err := f.on(f.slab, n)
	f.ours += beats.Load() - before
	f.left = n - done
	if f.left > 0 && done > 0 {
		copy(f.slab.B[Head:], f.slab.B[Head+done:Head+n])
	}
	switch {
	case err != nil:
		return err
	case f.left == 0 && f.size != f.slab.Room():
		f.rest() // the next one has the size that fits now
	case f.left == f.slab.Room():
		if f.left >= MaxRead {
			return errStuck
		}
		f.grow(min(4*f.left, MaxRead))
	}
	return nil
}

// shrinkAfter is how many reads in a row must leave most of the room unused
// before the next slab is smaller.
const shrinkAfter = 4

// adapt chooses the size of the next slab: two full reads in a row quadruple
// it.
func (f *Feeder) adapt(n, asked int) {
	switch {
	case n == asked:
		f.full = max(f.full, 0) + 1
		if f.full >= 2 && f.size < f.most() {
			f.size, f.full = f.larger(), 0
		}
	case n < asked/8:
		f.full = min(f.full, 0) - 1
		if f.full <= -shrinkAfter && f.size > classes[0] {
			f.size, f.full = max(classFor((f.size+Head+Tail)/4-Head-Tail), classes[0]-Head-Tail), 0
		}
	default:
		f.full = 0
	}
}

// alone is how many turns of YieldAfter bytes or more nobody else must have
// moved anything before reads become larger: some tens of milliseconds, so that
// whoever talks now and then has neighbours that let it.
const alone = 64

// look takes note of who else did something in the turn that has just ended.
func (f *Feeder) look(now uint64) {
	others := now - f.seen - f.ours
	f.seen, f.ours = now, 0
	if others == 0 {
		f.calm = min(f.calm+1, alone)
	} else {
		f.calm = 0
	}
	if f.quiet = f.calm == alone; !f.quiet {
		f.size = min(f.size, MaxRead)
	}
}

// most is the largest read now. One large read, with all that is done with
// its bytes, is the time that a neighbour waits; without neighbours it is what
// costs the least.
func (f *Feeder) most() int {
	if f.quiet {
		return MaxAlone
	}
	return MaxRead
}

// mostBig is how many slabs beyond MaxRead may be in use before reads stay at
// MaxRead: those whose owners have stalled keep theirs.
const mostBig = 8

// allowed is the size of the next slab.
func (f *Feeder) allowed() int {
	if f.size > MaxRead && big.Load() >= mostBig {
		f.size = MaxRead
	}
	return f.size
}

func (f *Feeder) larger() int {
	if f.size >= MaxRead {
		return MaxAlone
	}
	return classFor(f.size + 1)
}

// classFor is the room of the smallest class that has room for size, at most
// MaxRead.
func classFor(size int) int {
	for _, whole := range classes {
		if room := whole - Head - Tail; size <= room {
			return min(room, MaxRead)
		}
	}
	return MaxRead
}
