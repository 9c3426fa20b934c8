package upstream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// condition is what checks found out about an endpoint; the state's mu guards it.
type condition struct {
	asked bool   // a check has ended
	well  bool   // false until one succeeded
	row   uint32 // results in a row that speak against well
}

// checked tells when each endpoint of a cluster has been asked once.
type checked struct {
	once sync.Once
	done chan struct{}
}

func newClusterStats() *clusterStats {
	return &clusterStats{checked: checked{done: make(chan struct{})}}
}

// well says whether checks, if there are any, let requests go to h.
func (c *Cluster) well(h *Host) bool {
	if c.Config.Check == nil || h.Check.Off {
		return true
	}
	h.state.mu.Lock()
	defer h.state.mu.Unlock()
	return h.state.health.well
}

// Well says whether the cluster's checks let requests go to h; true without checks.
func (c *Cluster) Well(h *Host) bool { return c.well(h) }

// learn takes in the result of a check and says what is known now, and whether that is news.
func (st *hostState) learn(k *Check, err error) (well, news bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	h := &st.health
	first := !h.asked
	h.asked = true
	if (err == nil) == h.well {
		h.row = 0
		return h.well, false
	}
	h.row++
	switch {
	case err == nil && (first || h.row >= k.Successes):
	case err != nil && (errors.Is(err, errIll) || h.row >= k.Failures):
	default:
		return h.well, false
	}
	h.well, h.row = err == nil, 0
	return h.well, true
}

// wait is how long to leave an endpoint alone after a check.
func (k *Check) wait(well, news, used bool, rnd match.Rand) time.Duration {
	d := k.Every
	switch {
	case !used && well:
		d = k.UnusedWell
	case !used:
		d = k.Unused
	case well && news:
		d = k.EveryFirst
	case well:
	case news:
		d = k.EveryIllFirst
	default:
		d = k.EveryIll
	}
	return d + upTo(k.Jitter, rnd) + upTo(d*time.Duration(k.JitterPercent)/100, rnd)
}

func upTo(d time.Duration, rnd match.Rand) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(rnd(uint64(d)))
}

// watching is an endpoint that is being checked.
type watching struct {
	check  *Check
	how    EndpointCheck
	cancel context.CancelFunc
}

// place is an endpoint in a cluster.
type place struct {
	cluster string
	state   *hostState
}

// CheckHealth asks the endpoints of every cluster with checks, each on its own time, until ctx ends. rnd spreads the times.
func (s *Store) CheckHealth(ctx context.Context, rnd match.Rand) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	now := map[place]watching{}
	for {
		wanted := map[place]bool{}
		for name, c := range *s.cur.Load() {
			if c.Config.Check == nil {
				continue
			}
			for _, h := range c.Hosts {
				at := place{name, h.state}
				if h.Check.Off || wanted[at] {
					continue
				}
				wanted[at] = true
				if w, is := now[at]; is && w.check == c.Config.Check && w.how == h.Check {
					continue
				} else if is {
					w.cancel()
				}
				one, cancel := context.WithCancel(ctx)
				now[at] = watching{c.Config.Check, h.Check, cancel}
				wg.Go(func() { s.watch(one, c, h, rnd) })
			}
			c.allAsked()
		}
		for at, w := range now {
			if !wanted[at] {
				w.cancel()
				delete(now, at)
			}
		}
		select {
		case <-s.moved:
		case <-ctx.Done():
			return nil
		}
	}
}

// watch checks one endpoint again and again.
func (s *Store) watch(ctx context.Context, c *Cluster, h *Host, rnd match.Rand) {
	k := c.Config.Check
	t := time.NewTimer(upTo(k.Spread, rnd))
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		err := c.ask(ctx, h)
		if ctx.Err() != nil {
			return // what was asked last says nothing
		}
		well, news := h.state.learn(k, err)
		if news {
			c.stats.changes.Add(1)
		}
		if latest := s.Get(c.Config.Name); latest != nil {
			latest.allAsked()
		}
		t.Reset(k.wait(well, news, c.stats.used.Load(), rnd))
	}
}

// allAsked lets those go on who wait until every endpoint has been asked once. Endpoints that come later are waited for by nobody.
func (c *Cluster) allAsked() {
	for _, h := range c.Hosts {
		h.state.mu.Lock()
		asked := h.state.health.asked
		h.state.mu.Unlock()
		if !asked && !h.Check.Off {
			return
		}
	}
	select {
	case <-c.warm: // with its endpoints known, there may be none
		c.stats.checked.once.Do(func() { close(c.stats.checked.done) })
	default:
	}
}
