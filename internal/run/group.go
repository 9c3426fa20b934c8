package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ErrStopped is the cancellation cause of a group that was stopped on purpose.
var ErrStopped = errors.New("stopped")

// Group is a set of named goroutines with one owner. The owner calls Wait; the
// first function that fails stops all the others.
type Group struct {
	ctx    context.Context //nolint:containedctx // the group is the life of its goroutines
	cancel context.CancelCauseFunc

	mu sync.Mutex
	// running counts live goroutines by name.
	// Invariant: its sum is zero when Wait returns (TestGroupWaitsForAll).
	running map[string]int
	live    int
	err     error
	over    bool          // Wait has returned, nothing may start any more
	idle    chan struct{} // non-nil while somebody waits for live == 0
}

// NewGroup makes a group whose goroutines end with ctx.
func NewGroup(ctx context.Context) *Group {
	c, cancel := context.WithCancelCause(ctx)
	return &Group{ctx: c, cancel: cancel, running: map[string]int{}}
}

// Context is what the group's functions get; it ends with Stop, with the
// parent, or with the first failure.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs fn in its own goroutine. It reports false, and does not run fn, only
// when Wait has already returned; a caller that passes a resource into fn
// must then release it. A group that is merely stopping still runs fn, with an
// ended context, so that fn's own clean-up happens.
func (g *Group) Go(name string, fn func(context.Context) error) bool {
	g.mu.Lock()
	if g.over {
		g.mu.Unlock()
		return false
	}
	g.running[name]++
	g.live++
	g.mu.Unlock()
	go func() {
		err := fn(g.ctx)
		g.finish(name, err)
	}()
	return true
}

// Hold has Wait wait for something that is no goroutine at the moment, until
// release is called, once; Running lists it by its name. Like Go it reports false
// only when Wait has already returned.
func (g *Group) Hold(name string) (release func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return func() {}, false
	}
	g.running[name]++
	g.live++
	return func() { g.finish(name, nil) }, true
}

func (g *Group) finish(name string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// After the end of the context its error is an echo, not a failure.
	echo := g.ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ErrStopped))
	if err != nil && !echo && g.err == nil {
		g.err = fmt.Errorf("%s: %w", name, err)
		g.cancel(g.err)
	}
	if g.running[name]--; g.running[name] == 0 {
		delete(g.running, name)
	}
	g.live--
	if g.live == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// Stop ends the group's context. It does not wait.
func (g *Group) Stop() { g.cancel(ErrStopped) }

// Wait returns when every goroutine has ended, with the first failure. The
// group cannot be used afterwards.
func (g *Group) Wait() error {
	for {
		g.mu.Lock()
		if g.live == 0 {
			g.over = true
			err := g.err
			g.mu.Unlock()
			g.cancel(ErrStopped)
			return err
		}
		if g.idle == nil {
			g.idle = make(chan struct{})
		}
		idle := g.idle
		g.mu.Unlock()
		<-idle
	}
}

// Running lists the names of goroutines that have not ended, sorted, for a
// message about who holds up an end.
func (g *Group) Running() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := make([]string, 0, len(g.running))
	for n := range g.running {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
