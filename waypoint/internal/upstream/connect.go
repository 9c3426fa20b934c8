package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
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
func (c *Cluster) Dial(ctx context.Context, h *Host, baggage string) (Conn, error) {
	t := h.target(c.Config.ConnectTimeout)
	t.Baggage = baggage
	return c.open(ctx, t)
}

func (c *Cluster) open(ctx context.Context, t Target) (Conn, error) {
	limited, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	conn, err := c.store.open.Open(limited, t)
	if err != nil {
		late := errors.Is(limited.Err(), context.DeadlineExceeded) && ctx.Err() == nil
		return nil, &ConnectError{Target: t, Timeout: late, Err: err}
	}
	return conn, nil
}

// pools are a host's kept HTTP connections, one transport per protocol.
type pools struct {
	mu      sync.Mutex
	h1, h2  *http.Transport
	retired bool
}

// Transport speaks HTTP to h: HTTP/2 when the cluster says so, or the client does and the cluster follows it.
func (c *Cluster) Transport(h *Host, downstreamMajor int) http.RoundTripper {
	two := c.Config.Protocol == HTTP2 || c.Config.Protocol == AsDownstream && downstreamMajor == 2
	p := &h.state.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	at := &p.h1
	if two {
		at = &p.h2
	}
	if *at == nil {
		*at = c.newTransport(h.target(c.Config.ConnectTimeout), two)
		(*at).DisableKeepAlives = p.retired && !two // nobody will look for this connection again
	}
	return *at
}

func (c *Cluster) newTransport(t Target, two bool) *http.Transport {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!two)
	protocols.SetUnencryptedHTTP2(two)
	return &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return c.open(ctx, t) },
		Protocols:              protocols,
		DisableCompression:     true, // what the client asked for goes through as it is
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        c.Config.IdleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 64 << 10,
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
	for _, t := range []*http.Transport{p.h1, p.h2} {
		if t != nil {
			t.CloseIdleConnections()
		}
	}
}
