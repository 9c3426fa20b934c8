package obs

import (
	"io"
	"sync"
	"time"
)

const (
	// batchDelay is how long a line waits for others at most.
	batchDelay = 5 * time.Millisecond
	// batchSize is how many bytes go out without waiting, and half of what is
	// held when the reader is slower than we are.
	batchSize = 32 << 10
)

// Batch is a writer of whole lines that come often: what is written within a
// few milliseconds goes out in one call. It holds a bounded number of bytes;
// whoever writes when they are used up waits for the reader, so no line is
// lost. What the last milliseconds wrote is lost if the process is killed.
type Batch struct {
	w io.Writer

	mu      sync.Mutex
	room    sync.Cond // buf became small, or nobody writes any more
	buf     []byte
	spare   []byte
	timer   *time.Timer
	waiting bool // the timer runs
	writing bool
	err     error // of the last write that failed: Write reports it once
}

// NewBatch makes a Batch. The owner must Flush it before the process ends.
func NewBatch(w io.Writer) *Batch {
	b := &Batch{w: w}
	b.room.L = &b.mu
	return b
}

// Write implements io.Writer. The error may be that of an earlier line.
func (b *Batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.writing && len(b.buf) >= batchSize {
		b.room.Wait()
	}
	b.buf = append(b.buf, p...)
	switch {
	case len(b.buf) >= batchSize:
		b.out()
	case b.waiting || b.writing: // it goes with the others
	case b.timer == nil:
		b.waiting = true
		b.timer = time.AfterFunc(batchDelay, b.late)
	default:
		b.waiting = true
		b.timer.Reset(batchDelay)
	}
	err := b.err
	b.err = nil
	return len(p), err
}

func (b *Batch) late() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = false
	b.out()
}

// out writes all there is, and what comes meanwhile, unless somebody does.
func (b *Batch) out() {
	if b.writing {
		return
	}
	b.writing = true
	for len(b.buf) > 0 {
		full := b.buf
		b.buf = b.spare[:0]
		b.mu.Unlock()
		_, err := b.w.Write(full)
		b.mu.Lock()
		if b.spare = full[:0]; cap(full) > 2*batchSize {
			b.spare = nil // one long line must not stay
		}
		if err != nil {
			b.err = err
		}
		b.room.Broadcast()
	}
	b.writing = false
	b.room.Broadcast()
}

// Flush returns when all that was written before is out.
func (b *Batch) Flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.writing {
		b.room.Wait()
	}
	b.out()
	err := b.err
	b.err = nil
	return err
}
