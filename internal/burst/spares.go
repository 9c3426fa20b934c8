package burst

import (
	"sync"
	"time"
)

// Spares keeps what is dear to make and idle for the moment, for a short while:
// descriptors that the busy use all the time and the idle must not hold. The
// one that was put last is taken first, so that those that are too many grow
// old and are closed.
type Spares[T any] struct {
	Most  int           // how many are kept
	For   time.Duration // and for how long
	Close func(T)

	mu    sync.Mutex
	free  []spare[T] // the one put last is at the end
	timer *time.Timer
}

type spare[T any] struct {
	it  T
	put time.Time
}

// Get takes one, false if there is none.
func (l *Spares[T]) Get() (it T, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.free) - 1
	if n < 0 {
		return it, false
	}
	it = l.free[n].it
	l.free[n] = spare[T]{}
	l.free = l.free[:n]
	return it, true
}

// Put keeps it, or closes it if there are enough.
func (l *Spares[T]) Put(it T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) >= l.Most {
		l.Close(it)
		return
	}
	l.free = append(l.free, spare[T]{it, time.Now()})
	if l.timer == nil {
		l.timer = time.AfterFunc(l.For, l.sweep)
	}
}

// Len is how many are kept now.
func (l *Spares[T]) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.free)
}

// sweep closes what nobody wanted for a while.
func (l *Spares[T]) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := time.Now().Add(-l.For)
	n := 0
	for n < len(l.free) && !l.free[n].put.After(old) {
		l.Close(l.free[n].it)
		n++
	}
	l.free = append(l.free[:0], l.free[n:]...)
	clear(l.free[len(l.free):cap(l.free)])
	if len(l.free) == 0 {
		l.timer = nil
		return
	}
	l.timer = time.AfterFunc(l.For, l.sweep)
}
