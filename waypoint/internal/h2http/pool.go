package h2http

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/h2"
)

// Pool asks one server by HTTP/2 on connections that requests share. It is an
// http.RoundTripper.
type Pool struct {
	Dial        func(ctx context.Context) (net.Conn, error)
	IdleTimeout time.Duration // of a connection on which nothing is asked; 0 = it is kept
	MaxHeader   uint32        // bytes of an answer's header, as RFC 9113 section 6.5.2 counts them; 0 = 64 KiB
	// Ping is how long a connection may be silent before it is asked for life; 0 =
	// for ever. PingWait is how long the answer may take; 0 = 15 s.
	Ping, PingWait time.Duration
	// ContinueTimeout is how long a body that waits for 100 waits.
	ContinueTimeout time.Duration

	mu      sync.Mutex
	conns   []*clientConn
	dialled chan struct{} // somebody dials; closed when that is over
	err     error         // of the last dial, for those who waited for it
}

const (
	clientMemory   = 1 << 20 // bytes of answers on a connection that nobody has read yet, twice
	maxHeader      = 64 << 10
	defaultWait    = 15 * time.Second
	maxUnprocessed = 3 // times a request may find that a server goes away before it looked at it
)

// clientConn is one connection to the server.
type clientConn struct {
	*h2.Conn
	used bool // it had a request before; Pool.mu
	met  bool // its server's SETTINGS are there; Pool.mu
	idle *idleConn
}

// RoundTrip implements http.RoundTripper. A request that the server has not looked at
// is asked again where nothing of its body was read.
func (p *Pool) RoundTrip(req *http.Request) (*http.Response, error) {
	for n := 1; ; n++ {
		cc, used, err := p.take(req.Context())
		if err != nil {
			closeBody(req)
			return nil, err
		}
		x := &asked{p: p, cc: cc, req: req}
		resp, err := x.do(used)
		if err == nil {
			return resp, nil
		}
		if x.touched || n == maxUnprocessed || !unprocessed(err) || req.Context().Err() != nil {
			if !x.touched {
				closeBody(req)
			}
			return nil, err
		}
	}
}

// unprocessed says whether the server has not looked at the request, by its own word.
func unprocessed(err error) bool {
	if errors.Is(err, h2.ErrGoingAway) {
		return true
	}
	r, ok := errors.AsType[*h2.ResetError](err)
	return ok && r.Remote && r.Code == h2.RefusedStream
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// take returns a connection with a place that is promised to the caller.
func (p *Pool) take(ctx context.Context) (cc *clientConn, used bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		cc, stranger := p.room()
		if cc != nil {
			used, cc.used = cc.used, true
			return cc, used, nil
		}
		if stranger != nil {
			p.mu.Unlock()
			_ = stranger.Meet(ctx)
			p.mu.Lock()
			if ctx.Err() != nil {
				return nil, false, context.Cause(ctx)
			}
			continue
		}
		if p.dialled == nil {
			if err := p.dial(ctx); err != nil {
				return nil, false, err
			}
			continue
		}
		dialled := p.dialled
		p.mu.Unlock()
		select {
		case <-dialled:
		case <-ctx.Done():
		}
		p.mu.Lock()
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		if p.err != nil {
			return nil, false, p.err
		}
	}
}

// room finds a connection with a free place and forgets those that ended. A
// stranger has not said yet how many streams it allows: one request is all that it
// gets until then.
func (p *Pool) room() (found, stranger *clientConn) {
	alive := p.conns[:0]
	for _, cc := range p.conns {
		if cc.GoingAway() {
			continue
		}
		alive = append(alive, cc)
		if cc.met = cc.met || cc.Met(); !cc.met && cc.Streams() > 0 {
			stranger = cc
			continue
		}
		if found == nil && cc.Reserve() {
			found = cc
		}
	}
	clear(p.conns[len(alive):])
	p.conns = alive
	return found, stranger
}

// dial adds a connection. Others wait for it; they dial themselves if it failed
// because its caller had enough.
func (p *Pool) dial(ctx context.Context) error {
	dialled := make(chan struct{})
	p.dialled, p.err = dialled, nil
	p.mu.Unlock()
	c, err := p.Dial(ctx)
	p.mu.Lock()
	p.dialled, p.err = nil, err
	if err != nil && ctx.Err() != nil {
		p.err = nil
	}
	close(dialled)
	if err != nil {
		return err
	}
	cc := &clientConn{Conn: h2.NewClient(c, p.config())}
	if p.IdleTimeout > 0 {
		cc.idle = watchIdle(cc.Conn, p.IdleTimeout)
	}
	p.conns = append(p.conns, cc)
	return nil
}

func (p *Pool) config() h2.Config {
	cfg := h2.Config{
		StreamWindow: clientMemory, ConnWindow: clientMemory, Queue: clientMemory,
		MaxStreams: 1 << 20, // as many as the server allows
		// Other servers than ours tell no limit of their own for pings.
		MaxHeaderList: p.MaxHeader, PingInterval: p.Ping, PingTimeout: p.PingWait,
		Requests: &h2.Requests{},
	}
	if cfg.MaxHeaderList == 0 {
		cfg.MaxHeaderList = maxHeader
	}
	if cfg.PingInterval <= 0 {
		cfg.PingInterval = -1
	}
	if cfg.PingTimeout <= 0 {
		cfg.PingTimeout = defaultWait
	}
	return cfg
}

// CloseIdleConnections ends the connections on which nothing is asked now.
func (p *Pool) CloseIdleConnections() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, cc := range p.conns {
		if cc.Streams() == 0 {
			cc.Drain()
		}
	}
}

// idleConn ends a connection on which nothing was asked for a while. Requests only
// note when they end.
type idleConn struct {
	mu   sync.Mutex
	last time.Time
}

func (i *idleConn) note() {
	if i == nil {
		return
	}
	i.mu.Lock()
	i.last = time.Now()
	i.mu.Unlock()
}

func watchIdle(c *h2.Conn, limit time.Duration) *idleConn {
	i := &idleConn{last: time.Now()}
	var t *time.Timer
	i.mu.Lock()
	defer i.mu.Unlock()
	t = time.AfterFunc(limit, func() {
		if c.Err() != nil {
			return
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		wait := limit
		if c.Streams() == 0 {
			if wait = limit - time.Since(i.last); wait <= 0 {
				c.Drain()
				return
			}
		}
		t.Reset(wait)
	})
	return i
}
