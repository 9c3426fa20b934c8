package quota

import (
	"container/list"
	"hash/maphash"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
)

// sweepFrom is the number of limiters from which on those are looked for that nobody needs any more.
const sweepFrom = 256

// Local holds the buckets of this process.
type Local struct {
	now  func() time.Time
	seed maphash.Seed

	mu       sync.RWMutex
	limiters map[string]*limiter
	sweepAt  int
}

// limiter holds the buckets of one filter in one place.
type limiter struct {
	mu     sync.Mutex
	gone   bool // was swept; whoever holds it looks again
	fixed  map[int]*filters.Level
	keyed  map[int]*keyed
	used   time.Time
	refill time.Duration // after which every bucket is full again
}

// keyed are the buckets of one rule that counts by key, the last used first.
type keyed struct {
	by    map[digest]*list.Element
	order list.List
}

// digest stands for a key. Clients choose keys, so what is kept of one has a fixed size; the seeds are secret, so nobody can make two
// keys meet.
type digest [2]uint64

type counted struct {
	key   digest
	level filters.Level
}

// NewLocal makes an empty store that reads the time from now.
func NewLocal(now func() time.Time) *Local {
	return &Local{now: now, seed: maphash.MakeSeed(), limiters: map[string]*limiter{}, sweepAt: sweepFrom}
}

// Outcome is what became of a request's draws.
type Outcome struct {
	Allowed bool
	At      int // which draw refused, or speaks for the request; -1 = none
	Max     uint64
	Left    uint64
	Next    time.Duration // until the bucket has a token
}

// Take takes the tokens of draws, one after the other, until one is missing. id names the buckets.
func (l *Local) Take(id string, draws []filters.Draw) Outcome {
	now := l.now()
	for {
		lim := l.limiter(id)
		lim.mu.Lock()
		if lim.gone {
			lim.mu.Unlock()
			continue
		}
		out := l.take(lim, draws, now)
		lim.mu.Unlock()
		return out
	}
}

func (l *Local) take(lim *limiter, draws []filters.Draw, now time.Time) Outcome {
	if now.After(lim.used) {
		lim.used = now
	}
	out := Outcome{Allowed: true, At: -1}
	for i := range draws {
		d := &draws[i]
		lim.refill = max(lim.refill, d.Bucket.Refill())
		at := l.level(lim, d, now)
		after, ok := d.Bucket.Take(*at, now)
		*at = after
		if refused := !ok && !d.Shadow; refused || out.At < 0 {
			out = Outcome{Allowed: !refused, At: i, Max: d.Bucket.Max, Left: after.Tokens, Next: d.Bucket.Next(after)}
			if refused {
				return out
			}
		}
	}
	return out
}

// level finds the bucket of a draw; a new one is full.
func (l *Local) level(lim *limiter, d *filters.Draw, now time.Time) *filters.Level {
	if d.Key == "" {
		at := lim.fixed[d.Rule]
		if at == nil {
			full := d.Bucket.Full(now)
			at = &full
			lim.fixed[d.Rule] = at
		}
		return at
	}
	k := lim.keyed[d.Rule]
	if k == nil {
		k = &keyed{by: map[digest]*list.Element{}}
		lim.keyed[d.Rule] = k
	}
	id := l.digest(d.Key)
	if e := k.by[id]; e != nil {
		k.order.MoveToFront(e)
		return &e.Value.(*counted).level
	}
	for len(k.by) >= max(d.Keep, 1) {
		last := k.order.Back()
		delete(k.by, k.order.Remove(last).(*counted).key)
	}
	c := &counted{key: id, level: d.Bucket.Full(now)}
	k.by[id] = k.order.PushFront(c)
	return &c.level
}

func (l *Local) digest(key string) digest {
	var h maphash.Hash
	h.SetSeed(l.seed)
	_, _ = h.WriteString(key)
	first := h.Sum64()
	_ = h.WriteByte(0)
	return digest{first, h.Sum64()}
}

func (l *Local) limiter(id string) *limiter {
	l.mu.RLock()
	lim := l.limiters[id]
	l.mu.RUnlock()
	if lim != nil {
		return lim
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if lim = l.limiters[id]; lim != nil {
		return lim
	}
	if len(l.limiters) >= l.sweepAt {
		l.sweep()
		l.sweepAt = max(sweepFrom, 2*len(l.limiters))
	}
	lim = &limiter{fixed: map[int]*filters.Level{}, keyed: map[int]*keyed{}}
	l.limiters[id] = lim
	return lim
}

// sweep forgets limiters whose buckets have all become full since they were last used: new ones would be the same. The caller holds mu.
func (l *Local) sweep() {
	now := l.now()
	for id, lim := range l.limiters {
		lim.mu.Lock()
		if !lim.used.IsZero() && now.Sub(lim.used) >= lim.refill {
			lim.gone = true
			delete(l.limiters, id)
		}
		lim.mu.Unlock()
	}
}
