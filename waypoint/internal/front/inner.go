package front

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// innerConn is a connection inside a tunnel, as an HTTP server sees it.
type innerConn struct {
	upstream.Conn
	session *phases.Session
	once    sync.Once
}

// Close says that nothing more will be written; the stream itself is given up by its handler, after what was written is on its way.
func (c *innerConn) Close() error {
	var err error
	c.once.Do(func() {
		err = c.CloseWrite()
		_ = c.SetReadDeadline(time.Unix(1, 0)) // whoever reads stops
	})
	return err
}

// OnEnd implements what the HTTP/1 server asks for.
func (c *innerConn) OnEnd(fn func()) { onEnd(c.Conn, fn) }

// RemoteAddr is the client's, as the node proxy kept it.
func (c *innerConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.session.Source) }

// sink is h2.Sink, which every room may name.
type sink = interface {
	TryWrite(p []byte) (int, error)
	Write(p []byte) (int, error)
}

// deliverer is a tunnel's stream, which has its bytes go where they belong from where they arrive.
type deliverer interface {
	Deliver(to sink, done func(error))
}

// pushedConn is an innerConn that shows what arrives to whoever asks by Feed, from the tunnel's own reading goroutine: no queue, no
// goroutine that has to wake up first.
type pushedConn struct {
	*innerConn
	first []byte    // was read before
	from  deliverer // the stream; nil = a connection that has to be read

	mu    sync.Mutex
	idle  sync.Cond                   // busy became false
	busy  bool                        // on runs
	on    func(p []byte) (int, error) // nil = what comes is thrown away
	begun bool
	over  chan struct{} // closed when nothing more will come
	end   error         // why, once over is closed
	set   int           // how often the deadline was
	alarm *time.Timer
	past  chan struct{} // closed when the deadline has passed
}

// push wraps the connection, whose first bytes were read already.
func push(in *innerConn) *pushedConn {
	c := &pushedConn{innerConn: in, over: make(chan struct{}), past: make(chan struct{})}
	c.idle.L = &c.mu
	inner := in.Conn
	for {
		r, ok := inner.(*replayed)
		if !ok {
			break
		}
		c.first = append(c.first, r.first...)
		inner = r.Conn
	}
	c.from, _ = inner.(deliverer)
	return c
}

// Feed runs on with what arrives until the connection's end (nil), an error of it or of on, or the deadline. It may be called again then.
func (c *pushedConn) Feed(on func(p []byte) (int, error)) error {
	if c.from == nil {
		return read(c.Conn, on)
	}
	c.mu.Lock()
	c.on = on
	begun := c.begun
	c.begun = true
	past := c.past
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for c.on = nil; c.busy; {
			c.idle.Wait()
		}
	}()
	if !begun {
		if err := c.take(c.first); err != nil {
			return err
		}
		c.first = nil
		c.from.Deliver(inlet{c}, func(err error) {
			c.end = err
			close(c.over)
		})
	}
	select {
	case <-past:
		return os.ErrDeadlineExceeded
	case <-c.over:
	}
	if errors.Is(c.end, io.EOF) { // given up, which whoever parses tells from an end
		return nil
	}
	return c.end
}

// take hands p on. One goroutine at a time is in here. The lock is not held while on runs: it may set the deadline.
func (c *pushedConn) take(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.on == nil || len(p) == 0 {
		return nil
	}
	on := c.on
	c.busy = true
	c.mu.Unlock()
	_, err := on(p)
	c.mu.Lock()
	c.busy = false
	c.idle.Broadcast()
	return err
}

// inlet is where the stream's bytes go: whoever parses takes all at once, and never waits.
type inlet struct{ c *pushedConn }

// TryWrite implements h2.Sink.
func (i inlet) TryWrite(p []byte) (int, error) { return len(p), i.c.take(p) }

// Write implements h2.Sink.
func (i inlet) Write(p []byte) (int, error) { return len(p), i.c.take(p) }

// SetReadDeadline ends Feed when t has come.
func (c *pushedConn) SetReadDeadline(t time.Time) error {
	if c.from == nil {
		return c.Conn.SetReadDeadline(t)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set++
	if c.alarm != nil {
		c.alarm.Stop()
		c.alarm = nil
	}
	select {
	case <-c.past:
		c.past = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return nil
	}
	if wait := time.Until(t); wait > 0 {
		set := c.set
		c.alarm = time.AfterFunc(wait, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if set == c.set {
				close(c.past)
			}
		})
		return nil
	}
	close(c.past)
	return nil
}

// read is Feed for a connection that delivers nothing.
func read(c net.Conn, on func(p []byte) (int, error)) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := on(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
