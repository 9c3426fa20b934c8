package run

import (
	"context"
	"runtime"
	"syscall"
	"time"
)

const (
	// widthLook is how often a process that does something is looked at, and
	// widthRest how often one that does next to nothing is.
	widthLook = 100 * time.Millisecond
	widthRest = 400 * time.Millisecond
	// widthCalm is how long half of the threads must have been enough before
	// the other half is given up.
	widthCalm = 2 * time.Second
)

// Width lets as many threads run Go code as there is work for, at least one and
// at most most, until ctx ends. A proxy's work comes in small pieces: two
// threads share it by waking each other for every piece, which costs more than
// the piece. One thread takes what is ready in one go, so that frames of
// several connections leave in one write (docs/adr/0010). The number doubles as
// soon as the threads that there are have no rest, and is halved again when half
// of them are enough.
//
// A process that gets no more of a busy machine stays narrow: more threads
// would only add to the queue.
func Width(ctx context.Context, most int) error {
	return widen(ctx, most, cpuTime, func(n int) { runtime.GOMAXPROCS(n) })
}

func widen(ctx context.Context, most int, used func() time.Duration, set func(int)) error {
	w := width{most: max(most, 1), now: 1}
	set(1)
	look := time.NewTimer(widthLook)
	defer look.Stop()
	for at, cpu := time.Now(), used(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		now, all := time.Now(), used()
		before := w.now
		if w.see(all-cpu, now.Sub(at)); w.now != before {
			set(w.now)
		}
		pause := widthLook
		if w.idle(all-cpu, now.Sub(at)) {
			pause = widthRest
		}
		at, cpu = now, all
		look.Reset(pause)
	}
}

// width decides.
type width struct {
	most, now int
	calm      time.Duration // how long half would have been enough
}

// see takes note of how much CPU time was used while some time passed.
func (w *width) see(used, wall time.Duration) {
	cores, threads := used.Seconds()/wall.Seconds(), float64(w.now)
	switch {
	case cores >= 0.9*threads: // none had a tenth to spare
		w.now, w.calm = min(2*w.now, w.most), 0
	case w.now > 1 && cores < 0.3*threads: // half of them would be busy for 60 %
		if w.calm += wall; w.calm >= widthCalm {
			w.now, w.calm = (w.now+1)/2, 0
		}
	default:
		w.calm = 0
	}
}

// idle says that even one thread was mostly at rest.
func (w *width) idle(used, wall time.Duration) bool { return w.now == 1 && used*10 < wall*2 }

// cpuTime is what the process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
