package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/h1"
	"github.com/marrowmesh/marrow/waypoint/internal/h2http"
)

// Target is where a connection goes and what is expected there.
type Target struct {
	Addr    netip.AddrPort // of the application; the authority of the CONNECT
	Hop     netip.AddrPort // of the node proxy; invalid = connect directly
	Expect  identity.ID    // zero = any of the trust domain
	Timeout time.Duration
	Baggage string // of the client, for an opaque connection; empty = none
}

// key is a target without what does not matter for sharing a tunnel.
func (t Target) key() Target { return Target{Hop: t.Hop, Expect: t.Expect} }

// Conn is a connection to an application.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Opener opens connections. An implementation that keeps tunnels has a method Retain(func(Target) bool) too.
type Opener interface {
	Open(ctx context.Context, t Target) (Conn, error)
}

// ConnectError is a connection that could not be opened.
type ConnectError struct {
	Target  Target
	Timeout bool
	Err     error
}

func (e *ConnectError) Error() string {
	way := "directly"
	if e.Target.Hop.IsValid() {
		way = "through " + e.Target.Hop.String()
	}
	return fmt.Sprintf("connect to %s %s: %v", e.Target.Addr, way, e.Err)
}

func (e *ConnectError) Unwrap() error { return e.Err }

func (h *Host) target(timeout time.Duration) Target {
	return Target{Addr: h.Addr, Hop: h.Hop, Expect: h.Identity, Timeout: timeout}
}

// Dial opens a connection of its own to h, within the cluster's time limit.
func (c *Cluster) Dial(ctx context.Context, h *Host, baggage string, via Via) (Conn, error) {
	t := h.target(c.Config.ConnectTimeout)
	t.Baggage = baggage
	return c.open(ctx, t, via)
}

// Via is what a connection to an endpoint depends on beside the endpoint.
type Via struct {
	Major               int            // of the client's HTTP
	Authority           string         // of the request
	Source, Destination netip.AddrPort // of the client's connection
}

// open connects and goes through whatever stands between the connection and the application's bytes.
func (c *Cluster) open(ctx context.Context, t Target, via Via) (Conn, error) {
	limited, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	conn, err := c.store.open.Open(limited, t)
	if err == nil {
		conn, err = c.dress(limited, conn, via)
	}
	if err != nil {
		late := errors.Is(limited.Err(), context.DeadlineExceeded) && ctx.Err() == nil
		return nil, &ConnectError{Target: t, Timeout: late, Err: err}
	}
	return conn, nil
}

// dress does to a fresh connection what the cluster asks for.
func (c *Cluster) dress(ctx context.Context, conn Conn, via Via) (Conn, error) {
	if k, ok := conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok && c.Config.Conns.KeepAlive.Enable {
		if err := k.SetKeepAliveConfig(c.Config.Conns.KeepAlive); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("TCP keep-alive: %w", err)
		}
	}
	if v := c.Config.Proxy; v > 0 {
		if _, err := conn.Write(proxyHeader(v, via.Source, via.Destination)); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("PROXY header: %w", err)
		}
	}
	if c.Config.TLS != nil {
		return c.originate(ctx, conn, via.Authority)
	}
	return conn, nil
}

type viaKey struct{}

// apart keeps connections that differ in more than their endpoint from being taken for each other: the transport's pools go by the
// host of the URL, which stands for nothing else here.
type apart struct {
	http.RoundTripper
	via  Via
	pool string
}

// RoundTrip implements http.RoundTripper.
func (a *apart) RoundTrip(r *http.Request) (*http.Response, error) {
	own := r.WithContext(context.WithValue(r.Context(), viaKey{}, a.via))
	u := *r.URL
	if own.Host == "" {
		own.Host = u.Host
	}
	u.Host, own.URL = a.pool, &u
	return a.RoundTripper.RoundTrip(own)
}

// pool names the connections that a request may share; empty = all of the endpoint's.
func (c *Cluster) pool(via Via) string {
	name := ""
	if c.Config.Proxy > 0 {
		name = fmt.Sprintf("p%x-%d-%x-%d", via.Source.Addr().AsSlice(), via.Source.Port(), via.Destination.Addr().AsSlice(), via.Destination.Port())
	}
	if t := c.Config.TLS; t != nil && t.FromHost && t.Name == "" {
		name += "s" + strconv.FormatUint(HashText(t.serverName(via.Authority)), 16)
	}
	if name == "" {
		return ""
	}
	return name + ":1"
}

// pools are a host's kept HTTP connections, one per protocol.
type pools struct {
	mu      sync.Mutex
	h1, h2  *pooled
	retired bool
}

// pooled is a transport with its connections. Where connections have a limited life it is replaced as a whole, so that none of them
// can pass the limit.
type pooled struct {
	transport
	born   time.Time
	begun  uint32
	open   atomic.Int64 // requests whose bodies are not read yet
	passed atomic.Bool  // another one took its place
}

const (
	maxIdle   = 1024        // connections to a host
	maxHeader = 64 << 10    // bytes of an answer's head
	continues = time.Second // what a body waits for "100 Continue"
)

// transport keeps connections to one host.
type transport interface {
	http.RoundTripper
	CloseIdleConnections()
}

// two says whether requests to the cluster's endpoints are HTTP/2: when the cluster says so, or the client does and the cluster follows.
func (c *Cluster) two(downstreamMajor int) bool {
	return c.Config.Protocol == HTTP2 || c.Config.Protocol == AsDownstream && downstreamMajor == 2
}

// Transport speaks HTTP to h. The result is for one request.
func (c *Cluster) Transport(h *Host, via Via) http.RoundTripper {
	two := c.two(via.Major)
	p := &h.state.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	at := &p.h1
	if two {
		at = &p.h2
	}
	now := c.store.now()
	if old := *at; old != nil && c.worn(old, now) {
		old.passed.Store(true)
		old.CloseIdleConnections() // and whatever becomes idle from now on, for HTTP/1
		*at = nil
	}
	if *at == nil {
		// Nobody will look again for a connection to a host that is retired.
		*at = &pooled{transport: c.newTransport(h.target(c.Config.ConnectTimeout), two, p.retired && !two), born: now}
	}
	(*at).begun++
	var rt http.RoundTripper = (*at).transport
	if c.Config.Conns.MaxAge > 0 || c.Config.Conns.MaxRequests > 0 {
		(*at).open.Add(1)
		rt = *at
	}
	if pool := c.pool(via); pool != "" {
		rt = &apart{rt, via, pool}
	}
	return rt
}

func (c *Cluster) worn(p *pooled, now time.Time) bool {
	k := &c.Config.Conns
	return k.MaxRequests > 0 && p.begun >= k.MaxRequests || k.MaxAge > 0 && now.Sub(p.born) >= k.MaxAge
}

// RoundTrip implements http.RoundTripper and sees when the request is over.
func (p *pooled) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := p.transport.RoundTrip(r)
	if err != nil || resp.StatusCode == http.StatusSwitchingProtocols {
		p.over()
		return resp, err
	}
	resp.Body = &lastBody{ReadCloser: resp.Body, over: p.over}
	return resp, nil
}

// over closes the connections of a transport that was replaced when its last request ends.
func (p *pooled) over() {
	if p.open.Add(-1) == 0 && p.passed.Load() {
		p.CloseIdleConnections()
	}
}

type lastBody struct {
	io.ReadCloser
	once sync.Once
	over func()
}

func (b *lastBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.over)
	return err
}

func (c *Cluster) newTransport(t Target, two, single bool) transport {
	k := &c.Config.Conns
	dial := func(ctx context.Context) (net.Conn, error) { return c.open(ctx, t, Via{}) }
	switch plain := t.Hop.IsValid() && c.Config.Proxy == 0 && c.Config.TLS == nil; { // a stream tells by itself when it ends, and is like any other
	case plain && two:
		return &h2http.Pool{Dial: dial, IdleTimeout: k.Idle, MaxHeader: maxHeader, Ping: k.Ping, PingWait: k.PingWait, ContinueTimeout: continues}
	case plain:
		p := &h1.Pool{Dial: dial, MaxIdle: maxIdle, IdleTimeout: k.Idle, MaxHeader: maxHeader, ContinueTimeout: continues}
		if single {
			p.KeepNone()
		}
		return p
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!two)
	protocols.SetUnencryptedHTTP2(two)
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			via, _ := ctx.Value(viaKey{}).(Via)
			return c.open(ctx, t, via)
		},
		Protocols:              protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: k.Ping, PingTimeout: k.PingWait},
		DisableCompression:     true, // what the client asked for goes through as it is
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		DisableKeepAlives:      single,
		IdleConnTimeout:        k.Idle,
		ExpectContinueTimeout:  continues,
		MaxResponseHeaderBytes: maxHeader,
		WriteBufferSize:        16 << 10,
		ReadBufferSize:         16 << 10,
	}
}

// retire closes what is idle, now and when the last open request ends; open requests end in peace.
func (st *hostState) retire() {
	st.pools.mu.Lock()
	st.pools.retired = true
	st.pools.mu.Unlock()
	st.closeIdle()
}

// finish counts down an open request.
func (st *hostState) finish() {
	if st.active.Add(-1) > 0 {
		return
	}
	st.pools.mu.Lock()
	retired := st.pools.retired
	st.pools.mu.Unlock()
	if retired {
		st.closeIdle()
	}
}

func (st *hostState) closeIdle() {
	p := &st.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range []*pooled{p.h1, p.h2} {
		if t != nil {
			t.CloseIdleConnections()
		}
	}
}
