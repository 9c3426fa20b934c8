package upstream

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"testing"
	"time"
)

// seeded is a source of numbers that is the same in every run.
func seeded(seed uint64) func(uint64) uint64 { return rand.New(rand.NewPCG(seed, 1)).Uint64N }

// within demands that got of n draws is what a chance of p gives, within five standard deviations.
func within(t *testing.T, what string, got, n int, p float64) {
	t.Helper()
	mean, dev := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
	if math.Abs(float64(got)-mean) > 5*dev+1e-9 {
		t.Errorf("%s: %d of %d, want %.0f give or take %.0f", what, got, n, mean, 5*dev)
	}
}

func shares(t *testing.T, c *Cluster, n int, by func(*Host) string) map[string]int {
	t.Helper()
	got, rnd := map[string]int{}, seeded(7)
	for range n {
		h, err := c.Pick(Choice{Rand: rnd})
		if err != nil {
			t.Fatal(err)
		}
		got[by(h)]++
	}
	return got
}

func clusterOf(s *at, cfg func(*Config), a *Assignment) *Cluster {
	s.ApplyClusters([]*Config{eds("c", cfg)}, nil)
	s.ApplyEndpoints([]*Assignment{a}, nil)
	return s.Get("c")
}

func TestWeightsOfEndpoints(t *testing.T) {
	for _, p := range []Policy{LeastRequest, RoundRobin, Random, RingHash, Maglev} {
		c := clusterOf(newAt(), func(c *Config) { c.Balancer.Policy = p }, list("c", 3, func(i int, e *Endpoint) { e.Weight = uint32(i + 1) }))
		got := shares(t, c, 12000, func(h *Host) string { return strconv.Itoa(int(h.Weight)) })
		for w := 1; w <= 3; w++ {
			n := got[strconv.Itoa(w)]
			if p == RingHash { // the ring's points are spread by chance
				if n < 12000*w/6*3/4 || n > 12000*w/6*5/4 {
					t.Errorf("ring: weight %d got %d", w, n)
				}
				continue
			}
			within(t, "policy "+strconv.Itoa(int(p))+" weight "+strconv.Itoa(w), n, 12000, float64(w)/6)
		}
	}
}

func TestLeastRequestPrefersTheIdle(t *testing.T) {
	c := clusterOf(newAt(), func(*Config) {}, list("c", 2))
	for range 5 {
		if _, err := c.Begin(t.Context(), c.Hosts[0], 1); err != nil {
			t.Fatal(err)
		}
	}
	// Both draws have to hit the busy one.
	got := shares(t, c, 4000, func(h *Host) string { return h.Addr.String() })
	within(t, "busy", got[c.Hosts[0].Addr.String()], 4000, 0.25)
}

func TestFailoverByPriority(t *testing.T) {
	s := newAt()
	// Ten near, ten far; the near ones fail one after the other.
	up := func(n int) *Assignment {
		return list("c", 20, func(i int, e *Endpoint) { e.Priority, e.Healthy = uint32(i/10), i >= 10 || i < n })
	}
	for n, near := range map[int]float64{10: 1, 8: 1, 7: 0.98, 5: 0.70, 1: 0.14, 0: 0} {
		c := clusterOf(s, func(*Config) {}, up(n))
		got := shares(t, c, 8000, func(h *Host) string { return strconv.Itoa(int(h.Priority)) })
		within(t, strconv.Itoa(n)+" near", got["0"], 8000, near)
	}
}

func TestFailoverWhenNobodyIsWhole(t *testing.T) {
	// 20 of 100 near, 30 of 100 far: 28 and 42 of 70 parts.
	a := list("c", 200, func(i int, e *Endpoint) { e.Priority = uint32(i / 100); e.Healthy = i < 20 || i >= 170 })
	c := clusterOf(newAt(), func(*Config) {}, a)
	got := shares(t, c, 8000, func(h *Host) string { return strconv.Itoa(int(h.Priority)) })
	within(t, "near", got["0"], 8000, 0.40)
}

func TestPanic(t *testing.T) {
	sick := list("c", 10, func(i int, e *Endpoint) { e.Healthy = i == 0 })
	c := clusterOf(newAt(), func(c *Config) { c.Panic = 50 }, sick)
	got := shares(t, c, 5000, func(h *Host) string { return h.Addr.String() })
	if len(got) != 10 {
		t.Errorf("below the threshold %d of 10 are used", len(got))
	}
	c = clusterOf(newAt(), func(c *Config) { c.Panic = 5 }, sick)
	if got := shares(t, c, 100, func(h *Host) string { return h.Addr.String() }); len(got) != 1 {
		t.Errorf("above the threshold %d are used", len(got))
	}
}

func TestLocalityWeights(t *testing.T) {
	a := list("c", 9, func(i int, e *Endpoint) { e.Group = i % 3 }) // three in each
	a.Groups = []Group{{Zone: "a", Weight: 80}, {Zone: "b", Weight: 20}, {Zone: "c"}}
	zone := func(h *Host) string { return a.Groups[h.Group].Zone }
	weighted := func(c *Config) { c.Balancer.Localities = true }
	got := shares(t, clusterOf(newAt(), weighted, a), 8000, zone)
	within(t, "zone a", got["a"], 8000, 0.8)
	within(t, "zone b", got["b"], 8000, 0.2)
	// Two of three in a are gone: it keeps 1.4/3 of its weight.
	for i := range a.Endpoints {
		a.Endpoints[i].Healthy = a.Endpoints[i].Group != 0 || i == 0
	}
	w := 80 * 1.4 / 3
	for _, p := range []Policy{LeastRequest, Maglev} {
		got = shares(t, clusterOf(newAt(), func(c *Config) { c.Balancer.Localities, c.Balancer.Policy = true, p }, a), 8000, zone)
		within(t, "zone a with one host", got["a"], 8000, w/(w+20))
	}
	// Without locality weights hosts count alone.
	got = shares(t, clusterOf(newAt(), func(*Config) {}, a), 8000, zone)
	within(t, "zone c unweighted", got["c"], 8000, 3.0/7)
}

func TestWarmUp(t *testing.T) {
	for _, p := range []Policy{LeastRequest, RoundRobin} {
		s := newAt()
		cfg := eds("c", func(c *Config) { c.Balancer.Policy, c.Balancer.Warmup = p, 100*time.Second })
		s.ApplyClusters([]*Config{cfg}, nil)
		s.ApplyEndpoints([]*Assignment{list("c", 1)}, nil)
		s.now = s.now.Add(time.Hour)
		s.ApplyEndpoints([]*Assignment{list("c", 2)}, nil)
		fresh := s.Get("c").Hosts[1].Addr.String()
		for _, step := range []struct {
			age    time.Duration
			weight float64
		}{{0, 0.1}, {50 * time.Second, 0.5}, {100 * time.Second, 1}} {
			start := s.now
			s.now = s.now.Add(step.age)
			got := shares(t, s.Get("c"), 6000, func(h *Host) string { return h.Addr.String() })
			within(t, "after "+step.age.String(), got[fresh], 6000, step.weight/(1+step.weight))
			s.now = start
		}
	}
}

func TestHashIsConsistent(t *testing.T) {
	for _, p := range []Policy{RingHash, Maglev} {
		s := newAt()
		pick := func(user int) netip.AddrPort {
			h, err := s.Get("c").Pick(Choice{Rand: counter(), Hash: HashText("user" + strconv.Itoa(user)), HasHash: true})
			if err != nil {
				t.Fatal(err)
			}
			return h.Addr
		}
		clusterOf(s, func(c *Config) { c.Balancer.Policy = p }, list("c", 10))
		before := map[int]netip.AddrPort{}
		used := map[netip.AddrPort]int{}
		for u := range 500 {
			before[u] = pick(u)
			used[before[u]]++
			if again := pick(u); again != before[u] {
				t.Fatalf("user %d went to %v, then to %v", u, before[u], again)
			}
		}
		if len(used) != 10 {
			t.Errorf("only %d of 10 hosts are used", len(used))
		}
		gone := before[0]
		s.ApplyEndpoints([]*Assignment{list("c", 10, func(_ int, e *Endpoint) { e.Healthy = e.Addr != gone })}, nil)
		moved := 0
		for u, was := range before {
			if now := pick(u); was != gone && now != was {
				moved++
			}
		}
		// Nine in ten stay at least: the others get the places of the one that went, and as many more as make the size of the table.
		if moved > 50 {
			t.Errorf("policy %d: %d users moved though their host stayed", p, moved)
		}
	}
}

func TestHashAvoidsTriedHosts(t *testing.T) {
	for _, p := range []Policy{RingHash, Maglev} {
		c := clusterOf(newAt(), func(c *Config) { c.Balancer.Policy = p }, list("c", 3))
		stayed := 0
		for u := range 100 {
			ch := Choice{Rand: counter(), Hash: HashText(strconv.Itoa(u)), HasHash: true}
			first, _ := c.Pick(ch)
			ch.Avoid, ch.Picks = []*Host{first}, 20
			if second, _ := c.Pick(ch); second == first {
				stayed++
			}
		}
		if stayed > 2 {
			t.Errorf("policy %d: %d of 100 retries went to the same host", p, stayed)
		}
	}
}

func TestSpentPriorities(t *testing.T) {
	c := clusterOf(newAt(), func(*Config) {}, list("c", 3, func(i int, e *Endpoint) { e.Priority = uint32(i) }))
	for _, tc := range []struct {
		spent []uint32
		want  uint32
	}{{nil, 0}, {[]uint32{0}, 1}, {[]uint32{0, 1}, 2}, {[]uint32{0, 1, 2}, 0}} {
		if h, err := c.Pick(Choice{Rand: counter(), Spent: tc.spent}); err != nil || h.Priority != tc.want {
			t.Errorf("after %v: got %+v, %v, want priority %d", tc.spent, h, err, tc.want)
		}
	}
}

func TestRoundRobinStrides(t *testing.T) {
	c := clusterOf(newAt(), func(c *Config) { c.Balancer.Policy = RoundRobin }, list("c", 2, func(i int, e *Endpoint) { e.Weight = uint32(4 - 3*i) }))
	var row, longest int
	last := ""
	for range 100 {
		h, _ := c.Pick(Choice{Rand: counter()})
		if a := h.Addr.String(); a == last {
			row++
		} else {
			row, last = 1, a
		}
		longest = max(longest, row)
	}
	if longest != 4 {
		t.Errorf("the heavy one had %d turns in a row", longest)
	}
}
