package upstream

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// hashed maps a number to a host: the same number to the same host as long as that host is there.
type hashed interface {
	// find returns the host of a hash; a later attempt gets another place.
	find(hash uint64, attempt int) *Host
}

// weighed is a host with its share of the whole.
type weighed struct {
	host  *Host
	share float64
}

// shares are the level's hosts with what each is to get; they add up to 1.
func (l *level) shares() []weighed {
	if len(l.groups) == 0 {
		out := make([]weighed, 0, len(l.all.hosts))
		for _, h := range l.all.hosts {
			out = append(out, weighed{h, float64(h.Weight) / float64(l.all.total)})
		}
		return out
	}
	total := 0.0
	for i := range l.groups {
		total += l.groups[i].weight
	}
	var out []weighed
	for i := range l.groups {
		g := &l.groups[i]
		for _, h := range g.hosts {
			out = append(out, weighed{h, g.weight / total * float64(h.Weight) / float64(g.total)})
		}
	}
	return out
}

func newHashed(hosts []weighed, b *Balancer) hashed {
	if b.Policy == Maglev {
		return newMaglev(hosts, b.Table)
	}
	return newRing(hosts, b.MinRing, b.MaxRing)
}

// ring is a circle of points; each host has as many as its share. Points are where Envoy puts them, so that both choose alike.
type ring []point

type point struct {
	at   uint64
	host *Host
}

func newRing(hosts []weighed, smallest, largest uint64) ring {
	least := 1.0
	for _, w := range hosts {
		least = min(least, w.share)
	}
	scale := min(math.Ceil(least*float64(smallest))/least, float64(largest))
	r := make(ring, 0, int(math.Ceil(scale)))
	have, want := 0.0, 0.0
	for _, w := range hosts {
		name := append([]byte(w.host.Host()), '_')
		want += scale * w.share
		for i := 0; have < want; i++ {
			r = append(r, point{xxhash.Sum64(strconv.AppendInt(name, int64(i), 10)), w.host})
			have++
		}
	}
	slices.SortFunc(r, func(a, b point) int { return cmp.Compare(a.at, b.at) })
	return r
}

func (r ring) find(hash uint64, attempt int) *Host {
	if len(r) == 0 {
		return nil
	}
	i, _ := slices.BinarySearchFunc(r, hash, func(p point, h uint64) int { return cmp.Compare(p.at, h) })
	return r[(i+attempt)%len(r)].host
}

// maglev is a table in which hosts took places in turns, each in its own order.
type maglev []*Host

func newMaglev(hosts []weighed, size uint64) maglev {
	type entry struct {
		host               *Host
		offset, skip, next uint64
		weight, due        float64
	}
	entries := make([]entry, 0, len(hosts))
	most := 0.0
	for _, w := range hosts {
		name := []byte(w.host.Host())
		d := xxhash.NewWithSeed(1)
		_, _ = d.Write(name)
		entries = append(entries, entry{host: w.host, offset: xxhash.Sum64(name) % size, skip: d.Sum64()%(size-1) + 1, weight: w.share})
		most = max(most, w.share)
	}
	t := make(maglev, size)
	if len(entries) == 0 {
		return nil
	}
	for left, round := size, 1.0; left > 0; round++ {
		for i := range entries {
			e := &entries[i]
			if left == 0 {
				break
			}
			if round*e.weight < e.due {
				continue
			}
			e.due += most
			at := func() uint64 { return (e.offset + e.skip*e.next) % size }
			for t[at()] != nil {
				e.next++
			}
			t[at()] = e.host
			e.next++
			left--
		}
	}
	return t
}

func (m maglev) find(hash uint64, attempt int) *Host {
	if len(m) == 0 {
		return nil
	}
	if attempt > 0 {
		hash ^= ^uint64(0) - uint64(attempt) + 1
	}
	return m[hash%uint64(len(m))]
}

// HashText is the number that stands for a text in a Choice.
func HashText(s string) uint64 { return xxhash.Sum64String(s) }
