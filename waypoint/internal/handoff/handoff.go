package handoff

import (
	"net"
	"sync"
)

// Listener is a net.Listener. New makes one.
type Listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// New makes a Listener that nobody has ended.
func New() *Listener { return &Listener{conns: make(chan net.Conn), done: make(chan struct{})} }

// Offer waits until the server takes c; false means that it never will.
func (l *Listener) Offer(c net.Conn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.done:
		return false
	}
}

// Accept implements net.Listener; after End the error is net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The HTTP server calls it at its shutdown; connections that are still under way need it open, so only
// End ends it.
func (l *Listener) Close() error { return nil }

// End refuses all further offers. Calling it again does nothing.
func (l *Listener) End() { l.once.Do(func() { close(l.done) }) }

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return &net.TCPAddr{} }
