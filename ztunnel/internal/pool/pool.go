package pool

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/run"
)

// The defaults of Config.
const (
	DefaultIdle     = 5 * time.Minute
	DefaultCapacity = 500
	DefaultStreams  = 100
)

// attempts bounds how often one request looks for a connection, when each goes away
// before it takes the request.
const attempts = 5

// ErrClosed is what a request gets when its pod's pool was closed.
var ErrClosed = errors.New("connection pool closed")

// Target says whom a tunnel must lead to and on whose behalf.
type Target struct {
	// Source is the identity to present.
	Source identity.ID
	// Expect are the identities that may answer.
	Expect []identity.ID
	// Dst is where the socket goes.
	Dst netip.AddrPort
	// SourceIP is the application's address: connections of different ones are kept apart.
	SourceIP netip.Addr
}

// key is a Target as a map key.
type key struct {
	source   identity.ID
	expect   string
	dst      netip.AddrPort
	sourceIP netip.Addr
}

func (t *Target) key() key {
	k := key{source: t.Source, dst: t.Dst, sourceIP: t.SourceIP}
	if len(t.Expect) == 1 {
		k.expect = t.Expect[0].String()
		return k
	}
	names := make([]string, len(t.Expect))
	for i, id := range t.Expect {
		names[i] = id.String()
	}
	k.expect = strings.Join(names, ",")
	return k
}

// Dialler makes one authenticated connection; its context ends when the pool closes.
type Dialler func(ctx context.Context, t Target) (*hbone.Client, error)

// Config is what a Pool needs.
type Config struct {
	Dial Dialler
	// MaxStreams per connection; 0 means DefaultStreams. The peer may allow fewer.
	MaxStreams int
	// Idle is how long a connection without streams is kept; 0 means DefaultIdle.
	Idle time.Duration
	// Capacity is how many connections are kept; 0 means DefaultCapacity. The least recently used go first.
	Capacity int
}

// Pool holds the connections of one pod.
type Pool struct {
	cfg   Config
	group *run.Group

	mu     sync.Mutex
	closed bool
	// byKey lists the connections that new requests may use.
	byKey map[key][]*conn
	dials map[key]*dial
	// all has every connection that still lives, usable or only finishing its streams.
	all map[*conn]struct{}
}

// conn is one connection to a proxy.
type conn struct {
	*hbone.Client
	key  key
	used time.Time
	// idle fires when nothing used the connection for a while.
	idle *time.Timer
}

// dial is one attempt that any number of requests wait for.
type dial struct {
	done chan struct{}
	err  error // set before done is closed
}

// New makes an empty pool. The owner must Close it.
func New(cfg Config) *Pool {
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = DefaultStreams
	}
	if cfg.Idle <= 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Capacity <= 0 {
		cfg.Capacity = DefaultCapacity
	}
	return &Pool{
		cfg: cfg, group: run.NewGroup(context.Background()),
		byKey: map[key][]*conn{}, dials: map[key]*dial{}, all: map[*conn]struct{}{},
	}
}

// Open opens a tunnel to authority. It waits as long as ctx lives.
func (p *Pool) Open(ctx context.Context, t Target, authority string, hdr []hbone.Header) (*hbone.Stream, hbone.Response, error) {
	for range attempts {
		c, err := p.reserve(ctx, t)
		if err != nil {
			return nil, hbone.Response{}, err
		}
		s, resp, err := c.Connect(ctx, authority, hdr)
		if errors.Is(err, hbone.ErrGoingAway) && ctx.Err() == nil {
			// The peer did not begin with the request: another connection may.
			p.drop(c)
			continue
		}
		return s, resp, err
	}
	return nil, hbone.Response{}, hbone.ErrGoingAway
}

// rounds bounds how many fresh connections one request sees filled by others, or by a peer that takes no streams.
const rounds = 50

// ErrNoStreams is what a request gets when connections are made but never have room for it.
var ErrNoStreams = errors.New("the peer accepts connections but no streams on them")

// reserve finds or makes a connection and promises one of its streams to the caller.
func (p *Pool) reserve(ctx context.Context, t Target) (*conn, error) {
	k := t.key()
	for range rounds {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, ErrClosed
		}
		if c := p.usable(k); c != nil {
			p.mu.Unlock()
			return c, nil
		}
		d := p.dials[k]
		if d == nil {
			d = p.startDial(k, t)
		}
		p.mu.Unlock()
		select {
		case <-d.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if d.err != nil {
			return nil, d.err
		}
	}
	return nil, ErrNoStreams
}

// usable reserves a stream on a connection of the key, forgetting those that go away. p.mu is held.
func (p *Pool) usable(k key) *conn {
	kept := p.byKey[k][:0]
	var found *conn
	for _, c := range p.byKey[k] {
		if ended(c) || c.GoingAway() {
			continue
		}
		kept = append(kept, c)
		if found == nil && c.Streams() < p.cfg.MaxStreams && c.Reserve() {
			found = c
			c.used = time.Now()
			c.idle.Reset(p.cfg.Idle)
		}
	}
	p.keep(k, kept)
	return found
}

// keep stores the usable connections of a key. p.mu is held.
func (p *Pool) keep(k key, conns []*conn) {
	if len(conns) == 0 {
		delete(p.byKey, k)
		return
	}
	p.byKey[k] = conns
}

// startDial begins a connection that belongs to the pool, not to the request that needed it first:
// the others go on waiting when that one gives up. p.mu is held.
func (p *Pool) startDial(k key, t Target) *dial {
	d := &dial{done: make(chan struct{})}
	p.dials[k] = d
	run := func(ctx context.Context) error {
		client, err := p.cfg.Dial(ctx, t)
		p.mu.Lock()
		delete(p.dials, k)
		if err == nil && p.closed {
			_ = client.Close()
			err = ErrClosed
		}
		if d.err = err; err == nil {
			p.add(k, client)
		}
		p.mu.Unlock()
		close(d.done)
		return nil
	}
	if !p.group.Go("dial", run) {
		d.err = ErrClosed
		delete(p.dials, k)
		close(d.done)
	}
	return d
}

// add takes over a new connection. p.mu is held.
func (p *Pool) add(k key, client *hbone.Client) {
	c := &conn{Client: client, key: k, used: time.Now()}
	c.idle = time.AfterFunc(p.cfg.Idle, func() { p.idled(c) })
	p.byKey[k] = append(p.byKey[k], c)
	p.all[c] = struct{}{}
	if len(p.all) > p.cfg.Capacity {
		p.evict()
	}
	p.group.Go("connection", func(ctx context.Context) error {
		select {
		case <-c.Closed():
		case <-ctx.Done():
			_ = c.Close()
		}
		c.Wait()
		p.mu.Lock()
		p.forget(c)
		delete(p.all, c)
		p.mu.Unlock()
		c.idle.Stop()
		return nil
	})
}

// evict lets the least recently used connection go; its streams may finish. p.mu is held.
func (p *Pool) evict() {
	var oldest *conn
	for _, conns := range p.byKey {
		for _, c := range conns {
			if oldest == nil || c.used.Before(oldest.used) {
				oldest = c
			}
		}
	}
	if oldest != nil {
		p.forget(oldest)
		oldest.Drain()
	}
}

// forget makes new requests use other connections. p.mu is held.
func (p *Pool) forget(c *conn) {
	kept := p.byKey[c.key][:0]
	for _, o := range p.byKey[c.key] {
		if o != c {
			kept = append(kept, o)
		}
	}
	p.keep(c.key, kept)
}

func (p *Pool) drop(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(c)
}

// idled closes a connection that nothing used for the idle time; one with streams is looked at again later.
func (p *Pool) idled(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case ended(c):
	case c.Streams() > 0:
		c.idle.Reset(p.cfg.Idle)
	default:
		p.forget(c)
		c.Drain()
	}
}

func ended(c *conn) bool {
	select {
	case <-c.Closed():
		return true
	default:
		return false
	}
}

// Conns is how many connections live.
func (p *Pool) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all)
}

// Close ends all connections and their streams, and waits until nothing is left.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.group.Stop()
	_ = p.group.Wait()
}
