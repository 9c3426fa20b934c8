package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/run"
)

// DialFunc opens a TCP connection.
type DialFunc func(ctx context.Context, dst netip.AddrPort) (Conn, error)

// Tunnels opens connections: directly, or through kept tunnels to node proxies.
type Tunnels struct {
	cert  mtls.Source
	tls   mtls.Handshaker
	dial  DialFunc
	cfg   hbone.Config
	idle  time.Duration
	group *run.Group

	mu    sync.Mutex
	kept  map[Target][]*tunnel
	calls map[Target]*call
}

// tunnel is one kept connection to a node proxy.
type tunnel struct {
	client *hbone.Client
	peer   identity.ID
	used   time.Time
}

// call is a dial that several openers wait for.
type call struct {
	done chan struct{}
	err  error
}

// NewTunnels makes an opener. Dials run in group; a tunnel without streams for idle is closed by Prune.
func NewTunnels(cert mtls.Source, tls mtls.Handshaker, dial DialFunc, cfg hbone.Config, idle time.Duration, group *run.Group) *Tunnels {
	return &Tunnels{cert: cert, tls: tls, dial: dial, cfg: cfg, idle: idle, group: group, kept: map[Target][]*tunnel{}, calls: map[Target]*call{}}
}

// Peered is a connection that knows who is at its other end.
type Peered interface {
	Peer() identity.ID
}

type tunnelled struct {
	*hbone.Stream
	peer identity.ID
}

func (t *tunnelled) Peer() identity.ID { return t.peer }

// Open implements Opener.
func (t *Tunnels) Open(ctx context.Context, target Target) (Conn, error) {
	if !target.Hop.IsValid() {
		return t.dial(ctx, target.Addr)
	}
	var hdr []hbone.Header
	if target.Baggage != "" {
		hdr = append(hdr, hbone.Header{Name: "baggage", Value: target.Baggage})
	}
	const attempts = 3 // a tunnel may begin to go away between the choice and the stream
	var err error
	for range attempts {
		var tn *tunnel
		if tn, err = t.reserve(ctx, target); err != nil {
			return nil, err
		}
		var s *hbone.Stream
		if s, _, err = tn.client.Connect(ctx, target.Addr.String(), hdr); err == nil {
			return &tunnelled{Stream: s, peer: tn.peer}, nil
		}
		if !errors.Is(err, hbone.ErrGoingAway) && tn.client.Err() == nil {
			return nil, err
		}
	}
	return nil, err
}

// reserve returns a tunnel that has room for one stream, which is promised to the caller.
func (t *Tunnels) reserve(ctx context.Context, target Target) (*tunnel, error) {
	k := target.key()
	for {
		t.mu.Lock()
		if tn := t.room(k); tn != nil {
			t.mu.Unlock()
			return tn, nil
		}
		c := t.calls[k]
		if c == nil {
			c = &call{done: make(chan struct{})}
			t.calls[k] = c
			if !t.group.Go("tunnel to "+k.Hop.String(), func(ctx context.Context) error { t.connect(ctx, k, c); return nil }) {
				delete(t.calls, k)
				t.mu.Unlock()
				return nil, fmt.Errorf("tunnel to %s: %w", k.Hop, net.ErrClosed)
			}
		}
		t.mu.Unlock()
		select {
		case <-c.done:
			if c.err != nil {
				return nil, c.err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("tunnel to %s: %w", k.Hop, context.Cause(ctx))
		}
	}
}

// room finds a kept tunnel and forgets the dead ones; the caller holds mu.
func (t *Tunnels) room(k Target) *tunnel {
	alive := t.kept[k][:0]
	var found *tunnel
	for _, tn := range t.kept[k] {
		if tn.client.Err() != nil || tn.client.GoingAway() {
			continue
		}
		alive = append(alive, tn)
		if found == nil && tn.client.Reserve() {
			found, tn.used = tn, time.Now()
		}
	}
	t.kept[k] = alive
	return found
}

func (t *Tunnels) connect(ctx context.Context, k Target, c *call) {
	const limit = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tn, err := t.dialTunnel(ctx, k)
	t.mu.Lock()
	delete(t.calls, k)
	if err == nil {
		t.kept[k] = append(t.kept[k], tn)
	}
	c.err = err
	t.mu.Unlock()
	close(c.done)
}

func (t *Tunnels) dialTunnel(ctx context.Context, k Target) (*tunnel, error) {
	cert, err := t.cert.Certificate(ctx)
	if err != nil {
		return nil, fmt.Errorf("own certificate: %w", err)
	}
	raw, err := t.dial(ctx, k.Hop)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	var peer identity.ID
	if k.Expect.IsZero() {
		conn, peer, err = t.tls.ClientTrusting(ctx, raw, cert)
	} else {
		conn, peer, err = t.tls.Client(ctx, raw, cert, []identity.ID{k.Expect})
	}
	if err != nil {
		return nil, err
	}
	client, err := hbone.NewClient(conn, t.cfg)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &tunnel{client: client, peer: peer, used: time.Now()}, nil
}

// Retain lets the tunnels that keep refuses finish their streams and end.
func (t *Tunnels) Retain(keep func(Target) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, tns := range t.kept {
		if keep(k) {
			continue
		}
		for _, tn := range tns {
			tn.client.Drain()
		}
		delete(t.kept, k)
	}
}

// Prune ends the tunnels that carried nothing for the idle time, until ctx ends; then all of them.
func (t *Tunnels) Prune(ctx context.Context) error {
	tick := time.NewTicker(max(t.idle/8, time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			t.mu.Lock()
			defer t.mu.Unlock()
			for _, tns := range t.kept {
				for _, tn := range tns {
					_ = tn.client.Close()
				}
			}
			return nil
		case now := <-tick.C:
			t.prune(now)
		}
	}
}

func (t *Tunnels) prune(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, tns := range t.kept {
		alive := tns[:0]
		for _, tn := range tns {
			switch {
			case tn.client.Err() != nil:
			case tn.client.Streams() == 0 && now.Sub(tn.used) > t.idle:
				tn.client.Drain()
			default:
				if tn.client.Streams() > 0 {
					tn.used = now
				}
				alive = append(alive, tn)
			}
		}
		if t.kept[k] = alive; len(alive) == 0 {
			delete(t.kept, k)
		}
	}
}
