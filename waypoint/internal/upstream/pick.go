package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// Errors of a choice.
var (
	ErrNoHealthy = errors.New("no healthy upstream")
	ErrOverflow  = errors.New("limit of open requests is reached")
)

// Cluster is one cluster with its endpoints at one moment.
type Cluster struct {
	Config *Config
	Hosts  []*Host

	list  *Assignment
	store *Store
	stats *clusterStats
	warm  chan struct{} // closed once the endpoints are known
}

// clusterStats outlives the versions of a cluster.
type clusterStats struct {
	active  atomic.Int64
	retries atomic.Int64
	turn    atomic.Uint64
}

// Host is an endpoint with what was learnt of it.
type Host struct {
	Endpoint
	state *hostState
}

type hostState struct {
	active atomic.Int64

	mu      sync.Mutex
	fails   [3]uint32 // in a row: 5xx, gateway errors, failures on our side
	ejected time.Time // until then; zero = never
	times   uint32    // how often in a row
	pools   pools
}

func newHostState() *hostState { return &hostState{} }

// Active is the number of open requests, for the admin page.
func (h *Host) Active() int64 { return h.state.active.Load() }

// EjectedUntil is when an ejection ends; zero when the host is in rotation.
func (h *Host) EjectedUntil(now time.Time) time.Time {
	h.state.mu.Lock()
	defer h.state.mu.Unlock()
	if now.Before(h.state.ejected) {
		return h.state.ejected
	}
	return time.Time{}
}

// Choice is what a pick depends on.
type Choice struct {
	Rand    match.Rand
	Hash    uint64
	HasHash bool
	Avoid   []*Host // were tried before
	Picks   int     // how many picks avoiding them is worth
	Dialled netip.AddrPort
}

// Warm waits until the cluster's endpoints are known, or ctx ends.
func (c *Cluster) Warm(ctx context.Context) (*Cluster, error) {
	select {
	case <-c.warm:
	case <-ctx.Done():
		return nil, fmt.Errorf("cluster %q has no endpoints yet: %w", c.Config.Name, ErrNoHealthy)
	}
	if now := c.store.Get(c.Config.Name); now != nil {
		return now, nil
	}
	return c, nil
}

// Pick chooses a host.
func (c *Cluster) Pick(ch Choice) (*Host, error) {
	switch c.Config.Kind {
	case KindTunnel, KindDialled:
		return c.dialled(ch)
	case KindPlumbing:
		return nil, fmt.Errorf("cluster %q: %w", c.Config.Name, ErrNoHealthy)
	case KindEDS, KindStatic:
	}
	hosts := c.usable()
	if len(hosts) == 0 {
		return nil, fmt.Errorf("cluster %q: none of %d endpoints is usable: %w", c.Config.Name, len(c.Hosts), ErrNoHealthy)
	}
	h := c.balance(hosts, ch)
	for range ch.Picks {
		if !contains(ch.Avoid, h) {
			break
		}
		ch.HasHash = false // the hash would name the same host again
		h = c.balance(hosts, ch)
	}
	return h, nil
}

// dialled makes a host of the address that the client asked for. Its identity comes from any list that has the address.
func (c *Cluster) dialled(ch Choice) (*Host, error) {
	if !ch.Dialled.IsValid() {
		return nil, fmt.Errorf("cluster %q: the client dialled a name, not an address: %w", c.Config.Name, ErrNoHealthy)
	}
	e := Endpoint{Addr: ch.Dialled, Healthy: true, Weight: 1}
	if c.Config.Kind == KindTunnel {
		e.Hop = netip.AddrPortFrom(ch.Dialled.Addr(), HBONEPort)
		for _, other := range c.store.All() {
			for _, h := range other.Hosts {
				if h.Tunnelled() && h.Addr.Addr() == e.Addr.Addr() {
					e.Identity, e.Workload = h.Identity, h.Workload
				}
			}
		}
	}
	h := &Host{Endpoint: e, state: newHostState()}
	h.state.retire() // nobody else will find it, so it keeps no connection
	return h, nil
}

// usable are the hosts of the first priority that has any in rotation.
func (c *Cluster) usable() []*Host {
	now := c.store.now()
	healthy, total, best := make([]*Host, 0, len(c.Hosts)), 0, uint32(0)
	for _, h := range c.Hosts {
		if h.Weight == 0 {
			continue
		}
		total++
		if !h.Healthy || !h.EjectedUntil(now).IsZero() {
			continue
		}
		switch {
		case len(healthy) == 0 || h.Priority < best:
			healthy, best = append(healthy[:0], h), h.Priority
		case h.Priority == best:
			healthy = append(healthy, h)
		}
	}
	if c.Config.Panic > 0 && total > 0 && float64(len(healthy))*100 < c.Config.Panic*float64(total) && best == 0 {
		return c.Hosts // better all than too few
	}
	return healthy
}

func contains(hs []*Host, h *Host) bool {
	for _, o := range hs {
		if o.state == h.state {
			return true
		}
	}
	return false
}

func (c *Cluster) balance(hosts []*Host, ch Choice) *Host {
	if len(hosts) == 1 {
		return hosts[0]
	}
	switch c.Config.Balancer {
	case RoundRobin:
		return byWeight(hosts, func(total uint64) uint64 { return (c.stats.turn.Add(1) - 1) % total })
	case Hash:
		if ch.HasHash {
			return rendezvous(hosts, ch.Hash)
		}
	case LeastRequest:
		a, b := byWeight(hosts, ch.Rand), byWeight(hosts, ch.Rand)
		if b.Active() < a.Active() {
			return b
		}
		return a
	case Random:
	}
	return byWeight(hosts, ch.Rand)
}

// byWeight maps a number below the sum of the weights to a host.
func byWeight(hosts []*Host, number func(total uint64) uint64) *Host {
	total := uint64(0)
	for _, h := range hosts {
		total += uint64(max(h.Weight, 1))
	}
	at := number(total)
	for _, h := range hosts {
		w := uint64(max(h.Weight, 1))
		if at < w {
			return h
		}
		at -= w
	}
	return hosts[len(hosts)-1]
}

// rendezvous gives every host a score from the hash and its own address; the highest wins. Another host's coming or going moves only
// what that host wins or held.
func rendezvous(hosts []*Host, hash uint64) *Host {
	var best *Host
	var score uint64
	var b [8]byte
	for i := range b {
		b[i] = byte(hash >> (8 * i))
	}
	for _, h := range hosts {
		text := h.Addr.String()
		for i := range max(h.Weight, 1) { // a host of twice the weight draws twice
			d := xxhash.New()
			_, _ = d.Write(b[:])
			_, _ = d.WriteString(text)
			_, _ = d.Write([]byte{byte(i), byte(i >> 8)})
			if s := d.Sum64(); best == nil || s > score {
				best, score = h, s
			}
		}
	}
	return best
}

// HashText is the number that stands for a text in a Choice.
func HashText(s string) uint64 { return xxhash.Sum64String(s) }

// Begin counts a request to h. The end has to be called once.
func (c *Cluster) Begin(h *Host) (end func(), err error) {
	l := c.Config.Limits
	limit := int64(l.Requests)
	if c.Config.Protocol == HTTP1 { // one request per connection, the rest wait in line
		limit = min(limit, int64(l.Connections)+int64(l.Pending))
	}
	if c.stats.active.Add(1) > limit {
		c.stats.active.Add(-1)
		return nil, fmt.Errorf("cluster %q, limit %d: %w", c.Config.Name, limit, ErrOverflow)
	}
	h.state.active.Add(1)
	var once sync.Once
	return func() {
		once.Do(func() {
			c.stats.active.Add(-1)
			h.state.finish()
		})
	}, nil
}

// BeginRetry counts a retry; ok is false when there are too many already.
func (c *Cluster) BeginRetry() (end func(), ok bool) {
	if c.stats.retries.Add(1) > int64(c.Config.Limits.Retries) {
		c.stats.retries.Add(-1)
		return nil, false
	}
	var once sync.Once
	return func() { once.Do(func() { c.stats.retries.Add(-1) }) }, true
}
