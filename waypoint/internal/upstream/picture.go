package upstream

import (
	"slices"
	"sync"
	"time"
)

// defaultOverprovision is Envoy's: a priority keeps its load until less than 100/140 of it is usable.
const defaultOverprovision = 140

// picture is who may be picked at one moment. It holds until a host goes or comes back.
type picture struct {
	made   uint64    // the state of affairs that it was made for
	until  time.Time // somebody comes back then; zero = nobody is out
	levels []level   // by priority
	loads  []uint32  // percent for each level; they add up to 100, or to 0 when nobody is usable
}

// level is one priority.
type level struct {
	priority uint32
	total    int    // hosts
	share    uint32 // percent that is usable, counted up
	panic    bool   // too few are usable: all are used
	all      pool   // who may be picked, whatever the locality
	groups   []pool // the same by locality; empty = localities have no weights
}

// pool is hosts that share by weight.
type pool struct {
	hosts  []*Host
	weight float64 // of the locality, as far as it is usable
	total  uint64  // of the hosts' weights
	even   bool    // all weigh the same
}

func newPool(hosts []*Host) pool {
	p := pool{hosts: hosts, even: true}
	for _, h := range hosts {
		p.total += uint64(h.Weight)
		p.even = p.even && h.Weight == hosts[0].Weight
	}
	return p
}

// picture returns the one that holds now.
func (c *Cluster) picture() *picture {
	made, now := c.stats.changes.Load(), c.store.now()
	if p := c.drawn.Load(); p != nil && p.made == made && (p.until.IsZero() || now.Before(p.until)) {
		return p
	}
	p := c.draw(now)
	p.made = made
	c.drawn.Store(p)
	return p
}

// draw sorts hosts by priority and decides how much each priority gets.
func (c *Cluster) draw(now time.Time) *picture {
	p := &picture{}
	by := map[uint32][]*Host{}
	for _, h := range c.Hosts {
		if h.Weight > 0 {
			by[h.Priority] = append(by[h.Priority], h)
		}
	}
	over := c.overprovision()
	for _, hosts := range by {
		l := level{priority: hosts[0].Priority, total: len(hosts)}
		var usable []*Host
		for _, h := range hosts {
			back := h.EjectedUntil(now)
			if !back.IsZero() && (p.until.IsZero() || back.Before(p.until)) {
				p.until = back
			}
			if h.Healthy && back.IsZero() && c.well(h) {
				usable = append(usable, h)
			}
		}
		l.share = uint32(min(100, over*uint64(len(usable))/uint64(len(hosts))))
		l.all = newPool(usable)
		p.levels = append(p.levels, l)
	}
	slices.SortFunc(p.levels, func(a, b level) int { return int(int64(a.priority) - int64(b.priority)) })
	p.settle(c.Config.Panic, func(l *level) { l.all = newPool(by[l.priority]) })
	if c.Config.Balancer.Localities {
		for i := range p.levels {
			p.levels[i].split(c.list.Groups, by[p.levels[i].priority], float64(over)/100)
		}
	}
	return p
}

func (c *Cluster) overprovision() uint64 {
	if c.list != nil && c.list.Overprovision > 0 {
		return uint64(c.list.Overprovision)
	}
	return defaultOverprovision
}

// settle shares the load out: each priority takes what it can bear, the next ones the rest. With too few usable hosts everywhere,
// priorities below the threshold use all of theirs.
func (p *picture) settle(threshold float64, widen func(*level)) {
	p.loads = share(p.levels, nil)
	sum := uint32(0)
	for i := range p.levels {
		sum += p.levels[i].share
	}
	if sum >= 100 {
		return
	}
	panicked := 0
	for i := range p.levels {
		l := &p.levels[i]
		if float64(len(l.all.hosts))*100 < threshold*float64(l.total) {
			l.panic = true
			widen(l)
			panicked++
		}
	}
	if panicked < len(p.levels) || panicked == 0 {
		return
	}
	// All are in need: they share by their size.
	total := 0
	for i := range p.levels {
		total += p.levels[i].total
	}
	left := uint32(100)
	for i := range p.levels {
		p.loads[i] = uint32(100 * p.levels[i].total / total)
		left -= p.loads[i]
	}
	p.loads[0] += left
}

// share gives each level what it can bear of 100 percent; levels in spent are passed over. Nobody usable: all get nothing.
func share(levels []level, spent []uint32) []uint32 {
	loads := make([]uint32, len(levels))
	sum := uint32(0)
	able := func(l *level) uint32 {
		if slices.Contains(spent, l.priority) {
			return 0
		}
		return l.share
	}
	for i := range levels {
		sum += able(&levels[i])
	}
	sum = min(sum, 100)
	if sum == 0 {
		return loads
	}
	left, first := uint32(100), -1
	for i := range levels {
		if able(&levels[i]) > 0 && first < 0 {
			first = i
		}
		loads[i] = min(left, able(&levels[i])*100/sum)
		left -= loads[i]
	}
	loads[first] += left // what rounding left over
	return loads
}

// split sorts a level's hosts by locality; a locality keeps its weight until too few of its hosts are usable.
func (l *level) split(groups []Group, everybody []*Host, over float64) {
	whole, usable := map[int]int{}, map[int][]*Host{}
	for _, h := range everybody {
		whole[h.Group]++
	}
	for _, h := range l.all.hosts {
		usable[h.Group] = append(usable[h.Group], h)
	}
	for i := range groups {
		hosts := usable[i]
		if len(hosts) == 0 || groups[i].Weight == 0 {
			continue
		}
		g := newPool(hosts)
		g.weight = float64(groups[i].Weight) * min(1, over*float64(len(hosts))/float64(whole[i]))
		l.groups = append(l.groups, g)
	}
}

// level chooses a priority; number is below 100. nil = nobody is usable.
func (p *picture) level(spent []uint32, number func() uint32) *level {
	loads := p.loads
	if len(spent) > 0 {
		if other := share(p.levels, spent); slices.Max(append(other, 0)) > 0 {
			loads = other
		}
	}
	only := slices.Index(loads, 100)
	if only >= 0 {
		return &p.levels[only]
	}
	if slices.Max(append(loads, 0)) == 0 {
		return nil
	}
	at := number()
	for i, n := range loads {
		if at < n {
			return &p.levels[i]
		}
		at -= n
	}
	return nil
}

// rings are the hash tables of a picture's levels, made when first needed.
type rings struct {
	mu   sync.Mutex
	made *picture
	ring map[uint32]hashed // by priority
}

// of returns the table of a level of p.
func (r *rings) of(p *picture, l *level, b *Balancer) hashed {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.made != p {
		r.made, r.ring = p, map[uint32]hashed{}
	}
	t, ok := r.ring[l.priority]
	if !ok {
		t = newHashed(l.shares(), b)
		r.ring[l.priority] = t
	}
	return t
}
