package upstream

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

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
	drawn atomic.Pointer[picture]
	rings rings
	// youngest is when the last host came whose warm-up is not over; zero = none.
	youngest time.Time
}

// clusterStats outlives the versions of a cluster.
type clusterStats struct {
	active  atomic.Int64 // requests
	conns   atomic.Int64 // opaque connections
	retries atomic.Int64
	turn    atomic.Uint64
	changes atomic.Uint64 // of who is in rotation
	line    line
	sweep   sweep
	used    atomic.Bool // somebody was connected to it, or was about to be
	checked checked
}

// Host is an endpoint with what was learnt of it.
type Host struct {
	Endpoint
	state *hostState
}

type hostState struct {
	active atomic.Int64
	since  time.Time // in service; it does not change

	mu      sync.Mutex
	fails   [3]uint32 // in a row: 5xx, gateway errors, failures on our side
	tally   tally     // since the last sweep
	ejected time.Time // until then; zero = never
	times   uint32    // how often, less one for every interval in peace since then
	health  condition
	pools   pools
}

func newHostState(since time.Time) *hostState { return &hostState{since: since} }

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
	Avoid   []*Host  // were tried before
	Picks   int      // how many picks avoiding them is worth
	Spent   []uint32 // priorities that were tried before and are passed over
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
		c = now
	}
	if c.Config.Check != nil {
		select {
		case <-c.stats.checked.done:
		case <-ctx.Done(): // then the threshold of panic decides
		}
	}
	return c, nil
}

// IsWarm reports that Warm would return c itself, at once.
func (c *Cluster) IsWarm() bool {
	select {
	case <-c.warm:
		return c.Config.Check == nil && c.store.Get(c.Config.Name) == c
	default:
		return false
	}
}

// Pick chooses a host.
func (c *Cluster) Pick(ch Choice) (*Host, error) {
	switch c.Config.Kind {
	case KindTunnel, KindDialled:
		return c.dialled(ch)
	case KindPlumbing, KindOutside:
		return nil, fmt.Errorf("cluster %q: %w", c.Config.Name, ErrNoHealthy)
	case KindEDS, KindStatic, KindNames:
	}
	p := c.picture()
	l := p.level(ch.Spent, func() uint32 {
		if c.hashes() && ch.HasHash {
			return uint32(ch.Hash % 100)
		}
		return uint32(ch.Rand(100))
	})
	if l == nil || len(l.all.hosts) == 0 {
		return nil, fmt.Errorf("cluster %q: none of %d endpoints is usable: %w", c.Config.Name, len(c.Hosts), ErrNoHealthy)
	}
	h := c.balance(p, l, ch, 0)
	for n := range ch.Picks {
		if !contains(ch.Avoid, h) {
			break
		}
		h = c.balance(p, l, ch, n+1)
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
					e.Identity, e.Principal, e.Workload = h.Identity, h.Principal, h.Workload
				}
			}
		}
	}
	h := &Host{Endpoint: e, state: newHostState(time.Time{})}
	h.state.retire() // nobody else will find it, so it keeps no connection
	return h, nil
}

func contains(hs []*Host, h *Host) bool {
	for _, o := range hs {
		if o.state == h.state {
			return true
		}
	}
	return false
}

func (c *Cluster) hashes() bool {
	return c.Config.Balancer.Policy == RingHash || c.Config.Balancer.Policy == Maglev
}

// balance chooses among a level's hosts. attempt counts the picks that were not good enough.
func (c *Cluster) balance(p *picture, l *level, ch Choice, attempt int) *Host {
	if c.hashes() {
		if !ch.HasHash {
			ch.Hash = ch.Rand(math.MaxUint64)
		}
		if h := c.rings.of(p, l, &c.Config.Balancer).find(ch.Hash, attempt); h != nil {
			return h
		}
	}
	g := &l.all
	if len(l.groups) > 0 {
		g = draw(l.groups, func(g *pool) float64 { return g.weight }, ch.Rand)
	}
	switch {
	case len(g.hosts) == 1:
		return g.hosts[0]
	case c.warming():
		now := c.store.now()
		return *draw(g.hosts, func(h **Host) float64 { return c.warmth(*h, now) * c.load(*h) }, ch.Rand)
	case c.Config.Balancer.Policy == RoundRobin:
		return byTurn(g, c.stats.turn.Add(1)-1)
	case c.Config.Balancer.Policy == LeastRequest && !g.even:
		return *draw(g.hosts, func(h **Host) float64 { return c.load(*h) }, ch.Rand)
	case c.Config.Balancer.Policy == LeastRequest:
		best := g.hosts[ch.Rand(uint64(len(g.hosts)))]
		for range c.Config.Balancer.Choices - 1 {
			if h := g.hosts[ch.Rand(uint64(len(g.hosts)))]; h.Active() < best.Active() {
				best = h
			}
		}
		return best
	case g.even:
		return g.hosts[ch.Rand(uint64(len(g.hosts)))]
	}
	return hostAt(g, ch.Rand(g.total))
}

// load is a host's weight, for least request less the more requests are open.
func (c *Cluster) load(h *Host) float64 {
	w := float64(h.Weight)
	if b := &c.Config.Balancer; b.Policy == LeastRequest && b.Bias > 0 {
		w /= math.Pow(float64(h.Active()+1), b.Bias)
	}
	return w
}

// warming says that some host is still fresh.
func (c *Cluster) warming() bool {
	b := &c.Config.Balancer
	return b.Warmup > 0 && !c.youngest.IsZero() && c.store.now().Sub(c.youngest) < b.Warmup
}

// warmth is the share of its weight that a host has come to.
func (c *Cluster) warmth(h *Host, now time.Time) float64 {
	b := &c.Config.Balancer
	age := now.Sub(h.state.since)
	if h.state.since.IsZero() || age >= b.Warmup {
		return 1
	}
	part := math.Pow(max(float64(age), float64(time.Millisecond))/float64(b.Warmup), 1/b.Aggression)
	return max(part, b.MinWeight)
}

// draw takes one by weight.
func draw[T any](from []T, weight func(*T) float64, rnd match.Rand) *T {
	total := 0.0
	for i := range from {
		total += weight(&from[i])
	}
	const steps = 1 << 53
	left := float64(rnd(steps)) / steps * total
	for i := range from {
		if left -= weight(&from[i]); left < 0 {
			return &from[i]
		}
	}
	return &from[len(from)-1]
}

// hostAt maps a number below the sum of the weights to a host.
func hostAt(p *pool, n uint64) *Host {
	for _, h := range p.hosts {
		if n < uint64(h.Weight) {
			return h
		}
		n -= uint64(h.Weight)
	}
	return p.hosts[len(p.hosts)-1]
}

// byTurn goes round. Among hosts of different weight it strides, so that a heavy one's turns do not follow each other.
func byTurn(p *pool, turn uint64) *Host {
	if p.even {
		return p.hosts[turn%uint64(len(p.hosts))]
	}
	return hostAt(p, turn%p.total*stride(p.total)%p.total)
}

// stride is near the golden section of n and has no divisor in common with it.
func stride(n uint64) uint64 {
	s := uint64(float64(n) * 0.618)
	for s > 1 && gcd(s, n) != 1 {
		s--
	}
	return max(s, 1)
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
