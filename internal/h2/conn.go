package h2

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// Field is one header field; the name of a pseudo-header starts with ":".
type Field struct{ Name, Value string }

// Handler gets each request of a server connection in its own goroutine.
type Handler func(s *Stream, fields []Field)

// Conn is one HTTP/2 connection.
type Conn struct {
	nc     net.Conn
	cfg    Config
	role   role
	handle Handler // server only

	in   input         // the reading goroutine's
	wg   crew          // reading goroutine, flushers, drainers, handlers
	done chan struct{} // closed when err is set

	mu    sync.Mutex
	err   error // why the connection ended; nil while it lives
	out   outbox
	recv  connWindow // what the peer may send on the whole connection
	send  int64      // what we may send on the whole connection
	peer  peer
	life  life
	set   streamSet
	guard guard
	ping  pinger
	stats Stats

	move move
}

// move is what Export waits for.
type move struct {
	unacked int           // SETTINGS of ours that the peer has not acknowledged
	acked   chan struct{} // closed when it has all; nil if nobody waits
	stopped chan struct{} // closed by the reading goroutine; nil if it goes on
}

// Stats counts what a connection did. Frames are HTTP/2 frames (a header
// block counts once), Data their payload in DATA.
type Stats struct {
	FramesIn, FramesOut uint64
	DataIn, DataOut     uint64
	Writes              uint64 // calls to the connection's Write
	Feeds               uint64 // pieces in which input arrived
	Queued              uint64 // bytes that their stream's owner did not take at once
	Waiting             int64  // of them, not taken yet
}

// Stats is what the connection did so far.
func (c *Conn) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.FramesOut, s.Writes = c.out.frames, c.out.writes
	s.Feeds, s.Waiting = c.in.feeds.Load(), c.recv.queued
	return s
}

// peer is what the other side said in its SETTINGS.
type peer struct {
	seen       bool          // its first SETTINGS arrived
	met        chan struct{} // closed then; nil if nobody waits
	table      uint32        // of its header decoder, at most headerTable
	window     int64
	maxFrame   uint32
	maxStreams uint32
	maxHeaders uint32
}

// life is how far the end has come.
type life struct {
	peerGone bool // the peer sent GOAWAY
	goAways  int  // so often
	draining bool // we said that we go away
	final    bool // and named the last stream
	grace    bool // ended in order: read on until the peer closes as well
}

// streamSet is the open streams and their numbers.
type streamSet struct {
	open     map[uint32]*Stream
	next     uint32 // client: the next to open
	last     uint32 // server: the highest the peer opened, and that GOAWAY names
	beyond   uint32 // server: the highest that came after the final GOAWAY and was not served
	handlers int
	reserved int             // client: places promised by Reserve
	waiting  []chan struct{} // client: openers without a place, oldest first
	recent   [128]grant      // streams that we reset: what is still under way for them is no mistake
	recentAt int
}

// grant is what may still come for a stream that we reset.
type grant struct {
	id   uint32 // 0: none
	left uint32 // bytes of DATA
}

// NewClient starts the client side of a connection. It does not wait for the
// peer's settings.
func NewClient(nc net.Conn, cfg Config) *Conn {
	c := newConn(nc, cfg, client)
	c.set.next = 1
	c.mu.Lock()
	c.out.queue.push([]byte(http2.ClientPreface))
	c.greet()
	c.kick()
	c.mu.Unlock()
	c.wg.Go(c.readLoop)
	return c
}

// NewServer starts the server side of a connection.
func NewServer(nc net.Conn, cfg Config, h Handler) *Conn {
	c := newConn(nc, cfg, server)
	c.handle = h
	c.mu.Lock()
	c.greet()
	c.kick()
	c.mu.Unlock()
	c.wg.Go(c.readLoop)
	return c
}

func newConn(nc net.Conn, cfg Config, r role) *Conn {
	c := &Conn{
		nc: nc, cfg: cfg.withDefaults(r), role: r,
		done: make(chan struct{}),
		send: defaultWindow,
		peer: peer{window: defaultWindow, maxFrame: defaultMaxFrame, maxStreams: assumedStreams, table: headerTable},
		set:  streamSet{open: make(map[uint32]*Stream)},
	}
	c.recv.window = window{size: int64(c.cfg.ConnWindow), left: int64(c.cfg.ConnWindow)}
	c.guard = newGuard(c.cfg)
	c.in.init(c.cfg, r)
	c.out.init(c)
	c.ping.start(c)
	return c
}

// greet queues our SETTINGS and opens the connection's window.
func (c *Conn) greet() {
	s := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.base())},
		{ID: http2.SettingMaxFrameSize, Val: c.cfg.FrameSize},
		{ID: http2.SettingMaxHeaderListSize, Val: c.cfg.MaxHeaderList},
	}
	if c.role == server {
		s = append(s, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.cfg.MaxStreams})
		if r := c.cfg.Requests; r != nil && r.ExtendedConnect {
			s = append(s, http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		}
	} else {
		s = append(s, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	}
	c.settings(s...)
	if more := c.cfg.ConnWindow - defaultWindow; more > 0 {
		c.out.windowUpdate(0, more)
	}
}

// Done is closed when the connection ended; Err says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is nil while the connection lives.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Wait returns when the connection ended and every goroutine of it, handlers
// too, has returned.
func (c *Conn) Wait() {
	<-c.done
	c.wg.Wait()
}

// Streams is how many streams are open, with those promised by Reserve.
func (c *Conn) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.set.open) + c.set.reserved
}

// Meet waits for the peer's first SETTINGS, before which nobody knows how many
// streams it allows, for the connection's end or for ctx's. It returns whether they
// are there.
func (c *Conn) Meet(ctx context.Context) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peer.seen {
		return true
	}
	if c.peer.met == nil {
		c.peer.met = make(chan struct{})
	}
	met := c.peer.met
	c.mu.Unlock()
	select {
	case <-met:
	case <-c.done:
	case <-ctx.Done():
	}
	c.mu.Lock()
	return c.peer.seen
}

// Met reports whether the peer's first SETTINGS are there.
func (c *Conn) Met() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer.seen
}

// GoingAway reports that no new stream can be opened.
func (c *Conn) GoingAway() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil || c.life.peerGone || c.life.draining
}

// NetConn is the connection below.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Close ends the connection and its streams now: GOAWAY, if the peer takes
// it within a second, and the socket closes. It does not wait; see Wait.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.life.grace = len(c.set.open) == 0 // nothing to cut: the last bytes may take their time
		c.fail(&ConnError{Code: NoError, Err: ErrClosed})
	}
	return nil
}

// Drain says that we go away: streams that the peer opened before it learnt
// this are served, all streams may finish, then the connection ends.
func (c *Conn) Drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.life.draining {
		return
	}
	c.life.draining = true
	if c.role == client {
		c.finalGoAway()
		return
	}
	// The number is not known yet: a stream may be under way to us. The
	// answer to a ping says that nothing older is.
	c.out.goAway(maxWindow, NoError, "")
	c.out.ping(false, drainPing)
	c.kick()
	c.ping.drain = time.AfterFunc(lingerTimeout, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.finalGoAway()
	})
}

func (c *Conn) finalGoAway() {
	if c.err != nil || c.life.final {
		return
	}
	c.life.final = true
	c.out.goAway(c.set.last, NoError, "")
	c.kick()
	c.finishIfIdle()
}

// finishIfIdle ends a connection that goes away when its last stream did.
func (c *Conn) finishIfIdle() {
	if c.err != nil || len(c.set.open) > 0 || (!c.life.peerGone && !c.life.final) {
		return
	}
	if c.role == client && c.set.reserved > 0 && !c.life.peerGone {
		return
	}
	c.life.grace = true
	c.end(&ConnError{Code: NoError, Err: ErrDrained})
}

// fail ends the connection because of err, telling the peer.
func (c *Conn) fail(err *ConnError) {
	if c.err != nil {
		return
	}
	if !err.Remote {
		c.out.goAway(c.set.last, err.Code, err.Reason)
	}
	c.end(err)
}

// end makes the connection's end known to all who wait on it. The reading
// goroutine does the rest.
func (c *Conn) end(err *ConnError) {
	c.err = err
	c.ping.stop()
	lose := err.Violation() || c.cfg.Totals.crowded()
	for _, s := range c.set.open {
		if lose {
			s.lose()
		}
		s.abort(err)
	}
	clear(c.set.open)
	for _, w := range c.set.waiting {
		close(w)
	}
	c.set.waiting = nil
	close(c.done)
	now := time.Now()
	_ = c.nc.SetReadDeadline(now.Add(-time.Second))
	_ = c.nc.SetWriteDeadline(now.Add(lingerTimeout))
}

// Serve waits for the end of the connection and all its handlers; the end of
// ctx ends it. In-order ends are no error.
func (c *Conn) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	c.Wait()
	err := c.Err()
	if ctx.Err() != nil || errors.Is(err, ErrDrained) || errors.Is(err, errPeerClosed) {
		return nil
	}
	return err
}
