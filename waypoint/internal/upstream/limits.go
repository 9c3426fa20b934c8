package upstream

import (
	"context"
	"fmt"
	"math"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Limits are the circuit breakers.
type Limits struct {
	Connections, Pending, Requests, Retries uint32
	Budget                                  *Budget // instead of Retries; nil = none
}

// Budget lets a share of the open requests be retries.
type Budget struct {
	Percent float64
	Min     uint32 // retries that may always run
}

// defaultLimits are Envoy's.
func defaultLimits() Limits {
	return Limits{Connections: 1024, Pending: 1024, Requests: 1024, Retries: 3}
}

func (c *Config) compileLimits(p *clusterv3.CircuitBreakers) error {
	for _, t := range p.GetThresholds() {
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue
		}
		if err := strict.Only(t, "priority", "max_connections", "max_pending_requests", "max_requests", "max_retries", "retry_budget",
			"track_remaining"); err != nil {
			return err
		}
		set := func(into *uint32, v *wrapperspb.UInt32Value) {
			if v != nil {
				*into = v.GetValue()
			}
		}
		set(&c.Limits.Connections, t.GetMaxConnections())
		set(&c.Limits.Pending, t.GetMaxPendingRequests())
		set(&c.Limits.Requests, t.GetMaxRequests())
		set(&c.Limits.Retries, t.GetMaxRetries())
		b := t.GetRetryBudget()
		if b == nil {
			continue
		}
		if err := strict.Only(b, "budget_percent", "min_retry_concurrency"); err != nil {
			return fmt.Errorf("retry_budget: %w", err)
		}
		c.Limits.Budget = &Budget{Percent: 20, Min: 3}
		if v := b.GetBudgetPercent(); v != nil {
			c.Limits.Budget.Percent = v.GetValue()
		}
		set(&c.Limits.Budget.Min, b.GetMinRetryConcurrency())
	}
	return nil
}

// line is where requests wait for one of a limited number of connections, in order of their coming.
type line struct {
	mu      sync.Mutex
	taken   int64
	waiting []chan struct{} // closed when its turn has come
}

// enter takes a place, or waits for one. full is true when too many wait already.
func (l *line) enter(ctx context.Context, places, queue uint32) (full bool, err error) {
	l.mu.Lock()
	if l.taken < int64(places) {
		l.taken++
		l.mu.Unlock()
		return false, nil
	}
	if int64(len(l.waiting)) >= int64(queue) {
		l.mu.Unlock()
		return true, nil
	}
	turn := make(chan struct{})
	l.waiting = append(l.waiting, turn)
	l.mu.Unlock()
	select {
	case <-turn:
		return false, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.waiting {
		if w == turn {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			return false, context.Cause(ctx)
		}
	}
	l.pass() // the turn came at the same moment: somebody else has it
	return false, context.Cause(ctx)
}

func (l *line) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pass()
}

// pass gives a place to the first that waits; the caller holds mu.
func (l *line) pass() {
	if len(l.waiting) == 0 {
		l.taken--
		return
	}
	close(l.waiting[0])
	l.waiting = l.waiting[1:]
}

// Begin counts a request to h that the client made in HTTP of the given major version. It waits while every connection that the cluster
// may have is in use, if that many may wait. The end has to be called once.
func (c *Cluster) Begin(ctx context.Context, h *Host, downstreamMajor int) (end func(), err error) {
	l := &c.Config.Limits
	c.stats.used.Store(true)
	if c.stats.active.Add(1) > int64(l.Requests) {
		c.stats.active.Add(-1)
		return nil, fmt.Errorf("cluster %q, limit of %d requests: %w", c.Config.Name, l.Requests, ErrOverflow)
	}
	leave := func() {}
	if !c.two(downstreamMajor) && l.Connections < math.MaxUint32 { // one request per connection, the rest wait in line
		full, err := c.stats.line.enter(ctx, l.Connections, l.Pending)
		if full || err != nil {
			c.stats.active.Add(-1)
		}
		if full {
			return nil, fmt.Errorf("cluster %q, limit of %d connections and %d waiting requests: %w", c.Config.Name, l.Connections, l.Pending, ErrOverflow)
		}
		if err != nil {
			return nil, fmt.Errorf("cluster %q: wait for a connection: %w", c.Config.Name, err)
		}
		leave = c.stats.line.leave
	}
	h.state.active.Add(1)
	var once sync.Once
	return func() {
		once.Do(func() {
			c.stats.active.Add(-1)
			leave()
			h.state.finish()
		})
	}, nil
}

// BeginConn counts an opaque connection to h. The end has to be called once.
func (c *Cluster) BeginConn(h *Host) (end func(), err error) {
	c.stats.used.Store(true)
	if limit := c.Config.Limits.Connections; c.stats.conns.Add(1) > int64(limit) {
		c.stats.conns.Add(-1)
		return nil, fmt.Errorf("cluster %q, limit of %d connections: %w", c.Config.Name, limit, ErrOverflow)
	}
	h.state.active.Add(1)
	var once sync.Once
	return func() {
		once.Do(func() {
			c.stats.conns.Add(-1)
			h.state.finish()
		})
	}, nil
}

// BeginRetry counts a retry; ok is false when there are too many already.
func (c *Cluster) BeginRetry() (end func(), ok bool) {
	limit := int64(c.Config.Limits.Retries)
	if b := c.Config.Limits.Budget; b != nil {
		limit = max(int64(b.Min), int64(b.Percent*float64(c.stats.active.Load())/100))
	}
	if c.stats.retries.Add(1) > limit {
		c.stats.retries.Add(-1)
		return nil, false
	}
	var once sync.Once
	return func() { once.Do(func() { c.stats.retries.Add(-1) }) }, true
}
