package conns

import (
	"context"
	"slices"
	"sync"
	"time"
)

// life is the context of a connection. There is one for each idle connection, so it is made small: the standard library's
// has a channel, a map and two objects by the time that something waits for it. It carries no values.
type life struct {
	mu    sync.Mutex
	cause error         // nil while it lasts
	done  chan struct{} // nil until somebody asks
	after []*func()
}

var _ context.Context = (*life)(nil)

// ended is the error of a life that is over: cancelled, and why.
type ended struct{ cause error }

func (e ended) Error() string        { return e.cause.Error() }
func (e ended) Unwrap() error        { return e.cause }
func (e ended) Is(target error) bool { return target == context.Canceled }

// Deadline implements context.Context.
func (l *life) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context.
func (l *life) Value(any) any { return nil }

// Done implements context.Context.
func (l *life) Done() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
		if l.cause != nil {
			close(l.done)
		}
	}
	return l.done
}

// Err implements context.Context. It is what context.Cause gives as well.
func (l *life) Err() error {
	if cause := l.why(); cause != nil {
		return ended{cause}
	}
	return nil
}

func (l *life) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

// AfterFunc is that of package context, which asks for it: f runs in a goroutine of its own after the end. stop reports
// whether it prevented that.
func (l *life) AfterFunc(f func()) (stop func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		go f()
		return func() bool { return false }
	}
	h := &f
	l.after = append(l.after, h)
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		i := slices.Index(l.after, h)
		if i < 0 {
			return false
		}
		l.after = slices.Delete(l.after, i, i+1)
		return true
	}
}

// cancel ends the life, the first time.
func (l *life) cancel(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return
	}
	l.cause = cause
	if l.done != nil {
		close(l.done)
	}
	for _, f := range l.after {
		go (*f)()
	}
	l.after = nil
}
