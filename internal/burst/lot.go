package burst

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrParked is the end of a Feed whose connection has gone quiet: the caller's
// goroutine may end, and Again is called in another one when there is something
// to read, or to end.
var ErrParked = errors.New("burst: connection waits in the lot")

const (
	// lotQuiet is how often a Lot looks for connections of which nothing came
	// since it looked last.
	lotQuiet = time.Second
	// lotKicks bounds how many goroutines one look ends, and lotPause is the time
	// until it goes on with the others.
	lotKicks = 512
	lotPause = 50 * time.Millisecond
	// lotEvents is how many ready connections are learnt of in one call.
	lotEvents = 128
)

// Lot holds connections that are quiet, without a goroutine: a descriptor of
// the kernel's poller waits for all of them. Only the sockets of Feeders that
// were given a Lot get there, after one to two seconds in which nothing arrived.
//
// Nothing runs while the Lot is empty; what does run ends by Close.
type Lot struct {
	start func(func())
	quiet time.Duration

	mu     sync.Mutex
	f      *os.File // of the poller, nil until something was parked
	rc     syscall.RawConn
	fd     int
	awake  *Feeder // a ring of those that are being fed
	count  int     // of the ring
	rest   int     // of a round that was broken off, to be looked at soon
	parked []*Feeder
	free   []int32 // places in parked
	timer  *time.Timer
	closed bool
	loop   sync.WaitGroup
}

// NewLot makes a Lot. start runs a function in a goroutine that somebody waits
// for; it is called with what Again goes on with. Close ends the Lot.
func NewLot(start func(fn func())) *Lot {
	return &Lot{start: start, quiet: lotQuiet, fd: -1}
}

// Go runs fn in a goroutine as those are in which connections go on.
func (l *Lot) Go(fn func()) { l.start(fn) }

// Parked is how many connections wait without a goroutine.
func (l *Lot) Parked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.parked) - len(l.free)
}

// Close lets nobody in any more, has those inside go on, and waits for the
// Lot's own goroutine. It does not wait for theirs.
func (l *Lot) Close() {
	l.mu.Lock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	for _, f := range l.parked {
		if f != nil {
			l.leavePlace(f)
			l.start(f.lot.again)
		}
	}
	file := l.f
	l.f = nil
	l.mu.Unlock()
	if file != nil {
		_ = file.Close()
	}
	l.loop.Wait()
}

// lodger is what a Feeder has to do with its Lot.
type lodger struct {
	in         *Lot
	again      func()
	next, prev *Feeder       // in the ring; guarded by the Lot
	turns      atomic.Uint32 // how often something arrived
	seen       uint32        // turns at the last look; guarded by the Lot
	kicked     atomic.Bool   // the Lot has ended its wait
	place      int32         // in parked, plus one; guarded by the Lot
	known      bool          // the poller knows the descriptor; guarded by the Lot
	gone       bool          // Release was called; guarded by the Lot
}

// Park lets the connection wait in lot while it is quiet; again, in a goroutine
// that the Lot's owner starts, has to call Feed once more. Call it before Feed;
// Release must be called when the connection is closed.
func (f *Feeder) Park(lot *Lot, again func()) {
	if f.rc == nil || lot == nil {
		return
	}
	f.lot = &lodger{in: lot, again: again}
}

// Release takes the connection out of the Lot: whoever has closed it says so,
// for a poller forgets a closed descriptor without a word. If it was parked, it
// goes on, to find that it is closed.
func (f *Feeder) Release() {
	if f.lot == nil {
		return
	}
	l := f.lot.in
	l.mu.Lock()
	defer l.mu.Unlock()
	f.lot.gone = true
	if f.lot.place > 0 {
		l.leavePlace(f)
		l.start(f.lot.again)
	}
}

// enter puts a Feeder that begins to wait for its socket into the ring.
func (l *Lot) enter(f *Feeder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.awake == nil {
		f.lot.next, f.lot.prev = f, f
		l.awake = f
	} else {
		last := l.awake.lot.prev
		f.lot.next, f.lot.prev = l.awake, last
		last.lot.next, l.awake.lot.prev = f, f
	}
	l.count++
	f.lot.seen = f.lot.turns.Load() - 1 // it has just come
	if l.timer == nil && !l.closed {
		l.timer = time.AfterFunc(l.quiet, l.look)
	}
}

func (l *Lot) leave(f *Feeder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count--; l.count == 0 {
		l.awake = nil
	} else {
		f.lot.prev.lot.next, f.lot.next.lot.prev = f.lot.next, f.lot.prev
		if l.awake == f {
			l.awake = f.lot.next
		}
	}
	f.lot.next, f.lot.prev = nil, nil
}

// look ends the waits of those to whom nothing has come since the last look:
// each finds out by itself whether it may park.
func (l *Lot) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = nil
	if l.closed || l.count == 0 {
		return
	}
	kicks, n := 0, l.count
	if l.rest > 0 {
		n = min(l.rest, n)
	}
	for ; n > 0 && kicks < lotKicks; n-- {
		f := l.awake
		l.awake = f.lot.next
		now := f.lot.turns.Load()
		if now == f.lot.seen && !f.lot.gone && !f.lot.kicked.Swap(true) {
			_ = f.nc.SetReadDeadline(time.Unix(1, 0))
			kicks++
		}
		f.lot.seen = now
	}
	pause := l.quiet
	if l.rest = n; n > 0 { // those behind are not judged again before their time
		pause = min(lotPause, l.quiet)
	}
	l.timer = time.AfterFunc(pause, l.look)
}

// park has the poller wait for the Feeder's socket. The error is that of a
// connection that cannot be parked and must not be waited for either.
func (l *Lot) park(f *Feeder) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case f.lot.gone:
		return net.ErrClosed
	case l.closed:
		return nil
	}
	if err := l.open(); err != nil {
		return nil // without descriptors connections keep their goroutines
	}
	place := len(l.parked)
	if n := len(l.free); n > 0 {
		place = int(l.free[n-1])
		l.free = l.free[:n-1]
	} else {
		l.parked = append(l.parked, nil)
	}
	var err error
	ctl := f.rc.Control(func(fd uintptr) { err = l.watch(f, int(fd), place) })
	if ctl != nil || err != nil {
		l.free = append(l.free, int32(place))
		return known(ctl)
	}
	l.parked[place] = f
	f.lot.place = int32(place) + 1
	return ErrParked
}

// watch asks for one event of fd.
func (l *Lot) watch(f *Feeder, fd, place int) error {
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | epollOneShot, Fd: int32(place)}
	op := syscall.EPOLL_CTL_ADD
	if f.lot.known {
		op = syscall.EPOLL_CTL_MOD
	}
	err := syscall.EpollCtl(l.fd, op, fd, &ev)
	f.lot.known = f.lot.known || err == nil
	return err
}

// epollOneShot is EPOLLONESHOT: one event, then none until it is asked for again.
const epollOneShot = 1 << 30

func (l *Lot) leavePlace(f *Feeder) {
	place := f.lot.place - 1
	l.parked[place] = nil
	l.free = append(l.free, place)
	f.lot.place = 0
}

// open makes the poller when the first connection parks.
func (l *Lot) open() error {
	if l.f != nil {
		return nil
	}
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil { // so that the runtime's poller watches ours
		_ = syscall.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	l.f, l.fd = os.NewFile(uintptr(fd), "lot"), fd
	if l.rc, err = l.f.SyscallConn(); err != nil {
		_ = l.f.Close()
		l.f = nil
		return err
	}
	rc := l.rc
	l.loop.Go(func() { l.wait(rc) })
	return nil
}

// wait lets those go on to whom something has come, until Close.
func (l *Lot) wait(rc syscall.RawConn) {
	events := make([]syscall.EpollEvent, lotEvents)
	_ = rc.Read(func(fd uintptr) bool {
		for {
			n, err := syscall.EpollWait(int(fd), events, 0)
			switch {
			case err == syscall.EINTR:
				continue
			case err != nil:
				return true
			case n == 0:
				return false
			}
			l.wake(events[:n])
		}
	})
}

func (l *Lot) wake(events []syscall.EpollEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ev := range events {
		place := int(ev.Fd)
		if place >= len(l.parked) || l.parked[place] == nil {
			continue // it was released in this moment
		}
		f := l.parked[place]
		l.leavePlace(f)
		l.start(f.lot.again)
	}
}
