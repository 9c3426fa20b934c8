package memnet

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how many bytes a direction holds before writers wait.
const window = 256 << 10

// Net is one network.
type Net struct {
	rtt time.Duration

	mu        sync.Mutex
	listeners map[netip.AddrPort]*Listener
	lost      map[netip.AddrPort]bool
	ports     uint16
	dials     map[netip.AddrPort]int
}

// New makes a network; rtt is the time of one round trip between any two addresses.
func New(rtt time.Duration) *Net {
	return &Net{rtt: rtt, listeners: map[netip.AddrPort]*Listener{}, lost: map[netip.AddrPort]bool{}, ports: 40000, dials: map[netip.AddrPort]int{}}
}

// Lose makes dials to an address wait until they give up.
func (n *Net) Lose(addr netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost[addr] = true
}

// Dials is how often an address was dialled.
func (n *Net) Dials(addr netip.AddrPort) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[addr]
}

// Listener accepts connections to one address.
type Listener struct {
	net    *Net
	addr   netip.AddrPort
	queue  chan *Conn
	closed chan struct{}
	once   sync.Once
}

// Listen starts to accept.
func (n *Net) Listen(addr netip.AddrPort) (*Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: syscall.EADDRINUSE}
	}
	l := &Listener{net: n, addr: addr, queue: make(chan *Conn, 128), closed: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

// Accept returns the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptConn is Accept with the concrete type.
func (l *Listener) AcceptConn() (*Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Addr is where the listener listens.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// Close stops accepting.
func (l *Listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.net.mu.Lock()
		delete(l.net.listeners, l.addr)
		l.net.mu.Unlock()
	})
	return nil
}

// Dial connects from an address of the caller's choice, after one round trip.
func (n *Net) Dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*Conn, error) {
	fail := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	n.mu.Lock()
	n.dials[to]++
	lost := n.lost[to]
	n.ports++
	src := netip.AddrPortFrom(from, n.ports)
	n.mu.Unlock()
	wait := n.rtt
	if lost {
		wait = 10 * time.Second
	}
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, fail(ctx.Err())
		}
	}
	if lost {
		return nil, fail(os.ErrDeadlineExceeded)
	}
	n.mu.Lock()
	l := n.listeners[to]
	n.mu.Unlock()
	if l == nil {
		return nil, fail(syscall.ECONNREFUSED)
	}
	a, b := n.Pair(src, to)
	select {
	case l.queue <- b:
		return a, nil
	case <-l.closed:
		return nil, fail(syscall.ECONNREFUSED)
	}
}

// Pair makes a connection without a listener: the first end has the address a, the second b.
func (n *Net) Pair(a, b netip.AddrPort) (*Conn, *Conn) {
	there, back := newHalf(n.rtt/2), newHalf(n.rtt/2)
	x := &Conn{local: a, remote: b, out: there, in: back}
	y := &Conn{local: b, remote: a, out: back, in: there}
	return x, y
}

// half is one direction.
type half struct {
	delay time.Duration

	mu sync.Mutex
	// segs are the bytes under way or waiting, with the time of their arrival.
	segs []segment
	size int
	// finAt is when the end arrives, zero while the writer is open.
	finAt time.Time
	// unread: the reader is gone; reset: the direction was broken.
	unread, reset bool
	deadline      [2]time.Time // of the reader, of the writer
	// changed is closed and replaced at every change.
	changed chan struct{}
}

type segment struct {
	at   time.Time
	data []byte
}

func newHalf(delay time.Duration) *half { return &half{delay: delay, changed: make(chan struct{})} }

// wake tells everybody who waits. h.mu is held.
func (h *half) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// wait gives up h.mu until something changed or a moment came. The zero moment never comes.
func (h *half) wait(moments ...time.Time) {
	changed := h.changed
	var next time.Time
	for _, m := range moments {
		if !m.IsZero() && (next.IsZero() || m.Before(next)) {
			next = m
		}
	}
	h.mu.Unlock()
	defer h.mu.Lock()
	if next.IsZero() {
		<-changed
		return
	}
	t := time.NewTimer(time.Until(next))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	}
}

func passed(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.unread:
			return 0, net.ErrClosed
		case passed(h.deadline[0]):
			return 0, os.ErrDeadlineExceeded
		case len(h.segs) > 0 && passed(h.segs[0].at):
			n := copy(p, h.segs[0].data)
			h.segs[0].data = h.segs[0].data[n:]
			if len(h.segs[0].data) == 0 {
				h.segs = h.segs[1:]
			}
			h.size -= n
			h.wake()
			return n, nil
		case h.reset:
			return 0, syscall.ECONNRESET
		case len(h.segs) == 0 && passed(h.finAt):
			return 0, io.EOF
		}
		next := h.finAt
		if len(h.segs) > 0 {
			next = h.segs[0].at
		}
		h.wait(next, h.deadline[0])
	}
}

func (h *half) write(p []byte) (total int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		switch {
		case !h.finAt.IsZero():
			return total, net.ErrClosed
		case h.reset, h.unread:
			return total, syscall.EPIPE
		case passed(h.deadline[1]):
			return total, os.ErrDeadlineExceeded
		case h.size >= window:
			h.wait(h.deadline[1])
			continue
		}
		n := min(len(p), window-h.size)
		h.segs = append(h.segs, segment{time.Now().Add(h.delay), append([]byte(nil), p[:n]...)})
		h.size += n
		total += n
		p = p[n:]
		h.wake()
	}
	return total, nil
}

func (h *half) fin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.finAt.IsZero() {
		h.finAt = time.Now().Add(h.delay)
		h.wake()
	}
}

// stopReading reports whether bytes were dropped.
func (h *half) stopReading() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unread = true
	h.wake()
	return h.size > 0
}

func (h *half) breakOff() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reset = true
	h.wake()
}

func (h *half) setDeadline(i int, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deadline[i] = t
	h.wake()
}
