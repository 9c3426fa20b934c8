package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/marrowmesh/marrow/perf/latency"
)

// greetEcho makes a connection an echo of messages of a size.
func greetEcho(size int) func(int, *net.TCPConn) error {
	return func(_ int, c *net.TCPConn) error {
		if _, err := c.Write(binary.BigEndian.AppendUint32([]byte{modeEcho}, uint32(size))); err != nil {
			return err
		}
		// One round trip: a mesh opens its side of the connection only now.
		return trip(c, make([]byte, size))
	}
}

func trip(c net.Conn, buf []byte) error {
	if _, err := c.Write(buf); err != nil {
		return err
	}
	_, err := io.ReadFull(c, buf)
	return err
}

// closed asks again as soon as the answer is there.
type closed struct {
	set
	size int
}

func newClosed(ctx context.Context, s Spec) (*closed, error) {
	conns, err := dial(ctx, s.Targets[0], s.Conns, greetEcho(s.Size))
	return &closed{set: conns, size: s.Size}, err
}

func (w *closed) phase(ctx context.Context, d time.Duration) (Report, error) {
	return together(w.set, d, func(c *net.TCPConn, end time.Time) (Report, error) {
		r := Report{Latency: &latency.Histogram{}}
		buf := make([]byte, w.size)
		for now := time.Now(); now.Before(end) && ctx.Err() == nil; {
			if err := trip(c, buf); err != nil {
				return r, err
			}
			then := time.Now()
			r.Latency.Record(then.Sub(now))
			r.Ops++
			r.Bytes += uint64(2 * w.size)
			now = then
		}
		return r, nil
	})
}

// open asks at fixed times, whatever the answers do.
type open struct {
	set
	spec Spec
}

func newOpen(ctx context.Context, s Spec) (*open, error) {
	// The pacer sits in a system call most of the time and holds a processor
	// of Go's while it does: the readers need theirs.
	runtime.GOMAXPROCS(runtime.NumCPU() + 2)
	conns, err := dial(ctx, s.Targets[0], s.Conns, greetEcho(s.Size))
	return &open{set: conns, spec: s}, err
}

// reader takes the answers of one connection and knows when each question
// should have been asked.
type reader struct {
	due chan time.Time
	rep Report
	err error
}

func (w *open) phase(ctx context.Context, d time.Duration) (Report, error) {
	step := time.Duration(float64(time.Second) / w.spec.Rate)
	total := int(d / step)
	readers := make([]*reader, len(w.set))
	var work sync.WaitGroup
	for i, c := range w.set {
		_ = c.SetDeadline(time.Now().Add(d + patience))
		// Room for all of them: the pacer never waits for a reader.
		r := &reader{due: make(chan time.Time, total/len(w.set)+1), rep: Report{Latency: &latency.Histogram{}}}
		readers[i] = r
		work.Go(func() { r.read(c, w.spec.Size) })
	}
	sum := Report{Late: &latency.Histogram{}}
	began := time.Now()
	err := w.pace(ctx, began, step, total, readers, sum.Late)
	for _, r := range readers {
		close(r.due)
	}
	if err != nil {
		w.close() // ends the readers
	}
	work.Wait()
	sum.Seconds = time.Since(began).Seconds()
	errs := []error{err}
	for _, r := range readers {
		sum.add(r.rep)
		errs = append(errs, r.err)
	}
	return sum, errors.Join(errs...)
}

// pace sends the questions.
func (w *open) pace(ctx context.Context, began time.Time, step time.Duration, total int, readers []*reader, late *latency.Histogram) error {
	message := make([]byte, w.spec.Size)
	return onTime(ctx, began, step, total, func(i int, due time.Time) error {
		k := i % len(w.set)
		late.Record(time.Since(due))
		readers[k].due <- due
		if _, err := w.set[k].Write(message); err != nil {
			return fmt.Errorf("send request %d: %w", i, err)
		}
		return nil
	})
}

// onTime calls each, total times, when it is due. It has a thread of its own
// and sleeps in the kernel: Go's timers may be a millisecond late.
func onTime(ctx context.Context, began time.Time, step time.Duration, total int, each func(i int, due time.Time) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const setTimerSlack = 29 // PR_SET_TIMERSLACK, in nanoseconds
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setTimerSlack, 1, 0)
	for i := range total {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		due := began.Add(time.Duration(i) * step)
		for wait := time.Until(due); wait > 0; wait = time.Until(due) {
			ts := syscall.NsecToTimespec(int64(wait))
			_ = syscall.Nanosleep(&ts, nil) // woken early: it sleeps again
		}
		if err := each(i, due); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) read(c net.Conn, size int) {
	buf := make([]byte, size)
	for due := range r.due {
		if r.err != nil {
			continue // empties the queue
		}
		if _, r.err = io.ReadFull(c, buf); r.err != nil {
			continue
		}
		r.rep.Latency.Record(time.Since(due))
		r.rep.Ops++
		r.rep.Bytes += uint64(2 * size)
	}
}
