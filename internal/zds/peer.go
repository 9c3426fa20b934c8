package zds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// peer is one connected proxy.
type peer struct {
	id    int
	limit time.Duration // for hello and each ack
	conn  *net.UnixConn
	queue chan *call
	in    chan []byte   // packets of the proxy
	gone  chan struct{} // closed when the connection has ended
}

// call is a message with its descriptor on the way to a proxy.
type call struct {
	data []byte
	fd   int
	done chan error // holds the answer
	// Invariant: exactly one of caller and connection closes fd: who moves state
	// away from waiting (TestNoDescriptorLeaks).
	state atomic.Int32
}

const (
	callWaiting int32 = iota
	callTaken
	callLeft
)

func newCall(b []byte, fd int) *call { return &call{data: b, fd: fd, done: make(chan error, 1)} }

// take makes the connection the owner; false if the caller has left.
func (c *call) take() bool { return c.state.CompareAndSwap(callWaiting, callTaken) }

// leave gives up a call that the connection has not taken.
func (c *call) leave() {
	if c.state.CompareAndSwap(callWaiting, callLeft) {
		c.close()
	}
}

func (c *call) close() {
	if c.fd >= 0 {
		_ = syscall.Close(c.fd)
	}
}

// finish gives the caller its answer: the proxy's, or that there was none.
func (c *call) finish(answer, err error) {
	c.close()
	if err != nil {
		answer = fmt.Errorf("%w: %w", ErrLost, err)
	}
	c.done <- answer
}

func (p *peer) ask(ctx context.Context, c *call) error {
	p.enqueue(ctx, c)
	return p.await(ctx, c)
}

// enqueue leaves the call unqueued when the connection or ctx ends first; await
// then reports why.
func (p *peer) enqueue(ctx context.Context, c *call) {
	select {
	case p.queue <- c:
	case <-p.gone:
	case <-ctx.Done():
	}
}

func (p *peer) await(ctx context.Context, c *call) error {
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		c.leave()
		return fmt.Errorf("no answer of ztunnel: %w", context.Cause(ctx))
	case <-p.gone:
		c.leave()
		select {
		case err := <-c.done: // the answer was there already
			return err
		default:
			return ErrLost
		}
	}
}

// read hands the proxy's packets over until the connection ends. Whoever is not
// waiting for one treats it as an error: a proxy only answers.
func (p *peer) read(ctx context.Context) error {
	buf := make([]byte, packetLimit)
	for {
		b, fds, err := readPacket(p.conn, buf)
		if ctx.Err() != nil {
			closeAll(fds)
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		if len(fds) > 0 {
			closeAll(fds)
			return fmt.Errorf("%w: ztunnel sent descriptors", ErrPacket)
		}
		select {
		case p.in <- bytes.Clone(b):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *peer) receive(ctx context.Context) ([]byte, error) {
	t := time.NewTimer(p.limit)
	defer t.Stop()
	select {
	case b := <-p.in:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
		return nil, fmt.Errorf("no answer within %v", p.limit)
	}
}

// exchange sends one message and waits for its ack. answer is the proxy's (nil =
// accepted); err means that the connection is of no more use, also after a
// time-out: the late ack would be taken for the next message's.
func (p *peer) exchange(ctx context.Context, b []byte, fd int) (answer, err error) {
	if err := p.conn.SetWriteDeadline(time.Now().Add(p.limit)); err != nil {
		return nil, err
	}
	if err := writePacket(p.conn, b, fd); err != nil {
		return nil, err
	}
	in, err := p.receive(ctx)
	if err != nil {
		return nil, err
	}
	if err := decodeAck(in); errors.Is(err, ErrPacket) {
		return nil, err
	} else if err != nil {
		return err, nil // the proxy's refusal is an answer
	}
	return nil, nil
}
