package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
)

// Duplex is one end: a connection whose sending side can be closed alone.
type Duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Result says what was delivered and how it ended.
type Result struct {
	Sent     int64 // bytes from down to up
	Received int64 // bytes from up to down
	Err      error // nil if both sides ended, or one went away as connections do
	// Down and Up are the part of Err that broke at that end; both are nil
	// when ctx ended the relay.
	Down, Up error
}

// Both relays until both directions ended, an error that makes going on
// pointless, or the end of ctx. It closes both ends before it returns.
// onBytes, if given, is told increments as they are delivered: bytes from
// down to up, and bytes from up to down; it may be called by two goroutines
// at once.
func Both(ctx context.Context, down, up Duplex, onBytes func(sent, received int64)) Result {
	r := Start(ctx, down, up, onBytes)
	r.Wait()
	return r.Result()
}

// Relay is one pair of connections. It is made once and holds all that an idle
// connection costs.
type Relay struct {
	out, back direction
	onBytes   func(sent, received int64)
	ctx       context.Context //nolint:containedctx // the life of the caller's connection
	unhook    func() bool
	here      *direction // the one that is carried by Wait
	there     *direction // the other one, if Wait carries both; nil = it goes by itself
	// parks are the feeders that may be in a lot, which must learn of close.
	parks [2]atomic.Pointer[burst.Feeder]
	// left is how many directions Then waits for.
	left atomic.Int32
	// others counts what runs beside the caller's goroutine.
	others sync.WaitGroup
}

// Start is the first part of Both. The caller must call Wait at once, which
// carries one of the directions: it is apart so that an idle connection waits
// with a shallow stack.
func Start(ctx context.Context, down, up Duplex, onBytes func(sent, received int64)) *Relay {
	r := &Relay{onBytes: onBytes, ctx: ctx}
	r.out = direction{relay: r, src: down, dst: up}
	r.back = direction{relay: r, src: up, dst: down, back: true}
	if c, ok := ctx.(afterFuncer); ok {
		r.unhook = c.AfterFunc(r.close) // without the objects that package context puts in between
	} else {
		r.unhook = context.AfterFunc(ctx, r.close)
	}
	here, other := &r.out, &r.back
	if here.deliverable() {
		here, other = other, here
	}
	r.here = here
	switch {
	case here.pair():
		r.there = other
		other.prepare()
	case other.deliverable():
		other.deliver()
	default:
		r.others.Go(other.run)
	}
	here.prepare()
	return r
}

// afterFuncer is what package context asks contexts for, too.
type afterFuncer interface {
	AfterFunc(f func()) (stop func() bool)
}

// Wait returns when both directions have ended.
func (r *Relay) Wait() {
	if r.there != nil {
		r.others.Go(func() { r.there.fed(r.there.feed()) })
	}
	if r.here.feeder != nil {
		r.here.fed(r.here.feed())
	} else {
		r.here.run()
	}
	r.others.Wait()
}

// Then is Wait, and done afterwards; but a connection that goes quiet waits in
// lot, each direction for itself, Then returns, and both happen in another
// goroutine. Only connections of sockets, and of a socket and a tunnel's stream,
// do so. lot may be nil.
func (r *Relay) Then(lot *burst.Lot, done func()) {
	if r.here.feeder == nil || lot == nil {
		r.Wait()
		done()
		return
	}
	carried := [...]*direction{r.here, r.there}
	for i, d := range carried {
		if d != nil {
			r.left.Add(1)
			d.feeder.Park(lot, func() { d.carry(done) })
			r.parks[i].Store(d.feeder)
		}
	}
	if r.there != nil {
		lot.Go(func() { r.there.carry(done) })
	}
	r.here.carry(done)
}

// carry is Wait for one direction, from wherever it stands; the last one calls
// done.
func (d *direction) carry(done func()) {
	err := d.feed()
	if errors.Is(err, burst.ErrParked) {
		return // and nothing may be touched any more
	}
	d.fed(err)
	if d.relay.left.Add(-1) == 0 {
		d.relay.others.Wait()
		done()
	}
}

// Result closes both ends and says what happened. Call it once, after Wait.
func (r *Relay) Result() Result {
	cut := !r.unhook() && r.ctx.Err() != nil
	r.close()
	res := Result{Sent: r.out.bytes.Load(), Received: r.back.bytes.Load()}
	if cut {
		res.Err = fmt.Errorf("relay stopped: %w", context.Cause(r.ctx))
		return res
	}
	res.Down, res.Up = r.broken()
	res.Err = errors.Join(res.Down, res.Up)
	return res
}

// close ends both connections. Whoever reads a socket may be writing to the
// other end meanwhile, and a socket's Close waits for its reader: so all waits
// are ended first, and streams are closed before sockets.
func (r *Relay) close() {
	ends := [...]Duplex{r.out.src, r.out.dst}
	for _, end := range ends {
		if s, ok := socket(end); ok {
			_ = s.SetDeadline(time.Unix(1, 0))
		} else {
			_ = end.Close()
		}
	}
	for _, end := range ends {
		if _, ok := socket(end); ok {
			_ = end.Close()
		}
	}
	for i := range r.parks {
		if f := r.parks[i].Load(); f != nil {
			f.Release()
		}
	}
}

// broken says what broke at either end: a direction reads at one and writes
// at the other.
func (r *Relay) broken() (down, up error) {
	blame := func(err error, reads, writes *error) {
		if err == nil || gone(err) {
			return
		}
		at := reads
		if _, ok := errors.AsType[*writeError](err); ok {
			at = writes
		}
		*at = errors.Join(*at, err)
	}
	blame(r.out.err, &down, &up)
	blame(r.back.err, &up, &down)
	return down, up
}

// direction is one way through a relay.
type direction struct {
	relay    *Relay
	src, dst Duplex
	back     bool
	bytes    atomic.Int64
	// feeder and take are set where a socket is read into a stream, or into another
	// socket.
	feeder *burst.Feeder
	take   func(s *burst.Slab, n int) (done int, err error)
	// ended is set before our side of dst is closed in order, over when the
	// direction is done with both.
	ended, over atomic.Bool
	// bulk is how many bytes have come between two sockets in large reads, and
	// refused says that the kernel does not splice them.
	bulk    int
	refused bool
	// truncated says that src ended without saying that it had said all.
	truncated bool
	// err is how the direction ended. It is set before others.Wait returns.
	err error
}

func (d *direction) count(n int) {
	d.bytes.Add(int64(n))
	burst.Beat()
	switch {
	case d.relay.onBytes == nil:
	case d.back:
		d.relay.onBytes(0, int64(n))
	default:
		d.relay.onBytes(int64(n), 0)
	}
}

func (d *direction) run() { d.finish(d.pump()) }

// finish passes the end of src on, and stays until the other direction has
// ended or nothing can come of it any more.
func (d *direction) finish(err error) {
	inOrder := err == nil
	if inOrder {
		inOrder = d.finishInOrder()
	} else {
		d.finishBroken(err)
	}
	d.over.Store(true)
	switch other := d.other(); {
	case other.over.Load():
		other.unwatch()
	case inOrder:
		d.watch()
	}
}

// other is the direction that writes where this one reads.
func (d *direction) other() *direction {
	if d.back {
		return &d.relay.out
	}
	return &d.relay.back
}

// finishBroken passes on an end that is not orderly, which takes the other
// direction with it.
func (d *direction) finishBroken(err error) {
	d.err = err
	if w, ok := errors.AsType[*writeError](err); ok {
		// Nobody takes our bytes any more, but what the same peer sent before
		// may still be on its way to us: the other direction reads it to its
		// end, which a reset makes come soon.
		if !gone(w.err) {
			d.relay.close()
		}
		return
	}
	if !closedHere(err) {
		reset(d.dst)
	}
	d.relay.close()
}

// finishInOrder passes on an end that is in order by all that is known, and
// reports whether it was.
func (d *direction) finishInOrder() bool {
	if d.truncated || d.wasReset() {
		reset(d.dst)
		d.relay.close()
		return false
	}
	d.ended.Store(true)
	if err := d.dst.CloseWrite(); err != nil && !gone(err) {
		d.err = &writeError{fmt.Errorf("close for writing: %w", err)}
		d.relay.close()
		return false
	}
	if e, ok := d.src.(interface{ Aborted() bool }); ok && e.Aborted() {
		// The peer reset the stream without an error, or after its end: it will not read either.
		reset(d.dst)
		d.relay.close()
		return false
	}
	return true
}

// wasReset says whether the end of a socket was a reset. Of its two users, the
// one who writes may have taken the socket's only error: the other one reads
// an end as after a FIN.
func (d *direction) wasReset() bool {
	s, ok := socket(d.src)
	// If the other direction has ended, it is closed because both sides have said so.
	return ok && closedState(s) && !d.other().ended.Load()
}

// reset makes a socket's Close tell the peer that its bytes are not all there.
func reset(end Duplex) {
	if s, ok := end.(interface{ SetLinger(sec int) error }); ok {
		_ = s.SetLinger(0)
	}
}

// pump copies until src ends (nil) or either side fails.
func (d *direction) pump() error {
	if src, ok := socket(d.src); ok {
		return d.pumpSocket(src)
	}
	if s, ok := d.src.(io.WriterTo); ok {
		_, err := s.WriteTo(counting{d})
		return err
	}
	return d.copy()
}

// writeError is an error of the end that was written to.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// write sends p to dst and counts what it took.
func (d *direction) write(p []byte) (int, error) {
	n, err := d.dst.Write(p)
	if n > 0 {
		d.count(n)
	}
	if err != nil {
		return n, &writeError{err}
	}
	return n, nil
}

// counting is a direction's far end as an io.Writer.
type counting struct{ d *direction }

func (c counting) Write(p []byte) (int, error) { return c.d.write(p) }

// gone reports the errors of a peer that went away: not connected, unexpected
// end, reset, broken pipe; and of an end that the other direction closed.
func gone(err error) bool {
	for _, e := range []error{syscall.ENOTCONN, syscall.ECONNRESET, syscall.EPIPE, io.ErrUnexpectedEOF, io.EOF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return closedHere(err)
}

// closedHere reports the errors of an end that we closed ourselves, deadlines
// included: nobody else sets any.
func closedHere(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrClosedPipe)
}
