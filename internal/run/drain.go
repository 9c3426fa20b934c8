package run

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrDrained is the cancellation cause of work that a drain cut off. Its text is
// what operators of ztunnel know from the access log.
var ErrDrained = errors.New("connection closed due to connection drain")

// Drain is the end of something that carries connections, in two phases.
// Start: accept nothing new, tell peers politely, let the rest finish. Cut: end
// what is left now.
type Drain struct {
	mu       sync.Mutex
	parent   *Drain
	children map[*Drain]struct{}
	started  chan struct{}
	// Invariant: cut closed => started closed (TestDrainCutImpliesStart).
	cut context.Context //nolint:containedctx // carries the cause to the connections
	end context.CancelCauseFunc
	on  bool
}

// NewDrain makes a drain without parent.
func NewDrain() *Drain {
	ctx, end := context.WithCancelCause(context.Background())
	return &Drain{children: map[*Drain]struct{}{}, started: make(chan struct{}), cut: ctx, end: end}
}

// Child makes a drain that follows d and can be drained alone. Release it with
// Detach when its object is gone.
func (d *Drain) Child() *Drain {
	c := NewDrain()
	c.parent = d
	d.mu.Lock()
	d.children[c] = struct{}{}
	on, cut := d.on, d.cut.Err() != nil
	d.mu.Unlock()
	if cut {
		c.Cut()
	} else if on {
		c.Start()
	}
	return c
}

// Detach makes d's parent forget it.
func (d *Drain) Detach() {
	if p := d.parent; p != nil {
		p.mu.Lock()
		delete(p.children, d)
		p.mu.Unlock()
	}
}

// Start begins the polite phase, here and in all children.
func (d *Drain) Start() {
	for _, c := range d.begin() {
		c.Start()
	}
}

// Cut ends the polite phase (starting it if need be), here and in all children.
func (d *Drain) Cut() {
	kids := d.begin()
	d.end(ErrDrained)
	for _, c := range kids {
		c.Cut()
	}
}

func (d *Drain) begin() []*Drain {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on {
		d.on = true
		close(d.started)
	}
	kids := make([]*Drain, 0, len(d.children))
	for c := range d.children {
		kids = append(kids, c)
	}
	return kids
}

// Started is closed when the polite phase begins.
func (d *Drain) Started() <-chan struct{} { return d.started }

// Draining reports whether the polite phase has begun.
func (d *Drain) Draining() bool {
	select {
	case <-d.started:
		return true
	default:
		return false
	}
}

// Forced is closed when what is left must end now.
func (d *Drain) Forced() <-chan struct{} { return d.cut.Done() }

// Err is ErrDrained once the drain was cut, nil before. Contexts made by Context
// end a moment later: who saw something break in between asks here for the cause.
func (d *Drain) Err() error {
	if d.cut.Err() != nil {
		return ErrDrained
	}
	return nil
}

// Context derives from ctx one that ends, with cause ErrDrained, when the drain
// is cut.
func (d *Drain) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	c, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(d.cut, func() { cancel(ErrDrained) })
	return c, func() { stop(); cancel(context.Canceled) }
}

// Finish starts the drain and cuts it after limit, or as soon as done is
// closed. It returns true when done came first, that is when nothing was lost.
func (d *Drain) Finish(done <-chan struct{}, limit time.Duration) bool {
	d.Start()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		d.Cut()
		return true
	case <-t.C:
		d.Cut()
		return false
	}
}
