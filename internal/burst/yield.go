package burst

import (
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// YieldAfter is how many bytes a Feeder shows before it lets others run: one
	// large read, a few tenths of a millisecond of work.
	YieldAfter = 128 << 10
	// yieldersKept is how many wait for their next use, and yieldersFor how long.
	yieldersKept = 16
	yieldersFor  = 2 * time.Second
)

// Yield lets everybody run who is ready, those included whose sockets have
// become ready since the poller was last asked. runtime.Gosched is not enough
// for that: the runtime asks the poller when it has nothing else to do, and a
// goroutine that always has something is something to do. On one thread a
// neighbour's message would then wait until the monitor thread comes by, for
// 10 ms.
//
// It waits for an event of its own which has happened already: the runtime
// finds it when it asks the poller, with all others that are there.
func Yield() {
	y, ok := yielders.Get()
	if !ok {
		y = newYielder()
	}
	if y == nil {
		runtime.Gosched() // no descriptors left
		return
	}
	y.told = false
	if y.rc.Read(y.step) != nil {
		_ = y.f.Close()
		return
	}
	yielders.Put(y)
}

//nolint:gochecknoglobals // a count, of which only differences mean something
var beats atomic.Uint64

// Beat notes that a piece of somebody's data was moved. By these a Feeder knows
// whether it has neighbours.
func Beat() { beats.Add(1) }

// yielder is an eventfd. Its count is never read: each write is an event.
type yielder struct {
	f    *os.File
	rc   syscall.RawConn
	step func(fd uintptr) bool
	told bool
}

func newYielder() *yielder {
	const initial, flags = 0, syscall.O_NONBLOCK | syscall.O_CLOEXEC
	fd, _, errno := syscall.RawSyscall(syscall.SYS_EVENTFD2, initial, flags, 0)
	if errno != 0 {
		return nil
	}
	y := &yielder{f: os.NewFile(fd, "yield")}
	rc, err := y.f.SyscallConn()
	if err != nil {
		_ = y.f.Close()
		return nil
	}
	y.rc = rc
	y.step = y.tell
	return y
}

// one is what is added to an eventfd.
//
//nolint:gochecknoglobals // a constant, but for the type
var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// tell makes the event and then waits for it. The count wraps after 2^56
// turns on a big-endian machine and 2^64 on others.
func (y *yielder) tell(fd uintptr) bool {
	if y.told {
		return true
	}
	y.told = true
	_, err := raw(syscall.SYS_WRITE, fd, one)
	return err != nil
}

//nolint:gochecknoglobals // a free list has no state that anybody can act on
var yielders = Spares[*yielder]{Most: yieldersKept, For: yieldersFor, Close: func(y *yielder) { _ = y.f.Close() }}
