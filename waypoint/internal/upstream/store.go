package upstream

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Store holds the clusters. Readers never lock; writers replace the whole map.
type Store struct {
	open Opener
	now  func() time.Time
	cur  atomic.Pointer[map[string]*Cluster]

	secrets atomic.Pointer[map[string]Secret]
	renamed chan struct{} // the clusters may have other names now
	moved   chan struct{} // other endpoints may have to be checked now

	mu       sync.Mutex
	clusters map[string]*Config
	given    map[string]*Assignment // by name of the resource
}

// NewStore makes an empty store whose connections are opened by open.
func NewStore(open Opener, now func() time.Time) *Store {
	s := &Store{open: open, now: now, renamed: make(chan struct{}, 1), moved: make(chan struct{}, 1), clusters: map[string]*Config{}, given: map[string]*Assignment{}}
	s.cur.Store(&map[string]*Cluster{})
	s.secrets.Store(&map[string]Secret{})
	return s
}

// ApplySecrets adds, replaces and removes secrets; new connections use them.
func (s *Store) ApplySecrets(up map[string]Secret, removed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := maps.Clone(*s.secrets.Load())
	maps.Copy(next, up)
	for _, name := range removed {
		delete(next, name)
	}
	s.secrets.Store(&next)
}

// Secrets are the names of the secrets that the clusters need.
func (s *Store) Secrets() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SecretNames(slices.Collect(maps.Values(s.clusters)))
}

// Get returns the cluster of a name, or nil.
func (s *Store) Get(name string) *Cluster { return (*s.cur.Load())[name] }

// All returns every cluster, by name.
func (s *Store) All() []*Cluster {
	m := *s.cur.Load()
	out := make([]*Cluster, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[name])
	}
	return out
}

// ApplyClusters adds, replaces and removes clusters, and returns the names of the endpoint lists that are needed now.
func (s *Store) ApplyClusters(up []*Config, removed []string) (endpoints []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range up {
		s.clusters[c.Name] = c
	}
	for _, name := range removed {
		delete(s.clusters, name)
	}
	named := map[string]bool{}
	for _, c := range s.clusters {
		if c.Kind == KindEDS {
			endpoints = append(endpoints, c.EDSName)
		}
		if c.Kind == KindNames {
			named[c.EDSName] = true
		}
	}
	slices.Sort(endpoints)
	endpoints = slices.Compact(endpoints)
	maps.DeleteFunc(s.given, func(name string, _ *Assignment) bool {
		_, used := slices.BinarySearch(endpoints, name)
		return !used && !named[name]
	})
	s.publish()
	select {
	case s.renamed <- struct{}{}:
	default: // it will look again anyway
	}
	return endpoints
}

// ApplyEndpoints adds, replaces and removes lists of endpoints. A cluster whose list was removed has no endpoints.
func (s *Store) ApplyEndpoints(up []*Assignment, removed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range up {
		s.given[a.Name] = a
	}
	for _, name := range removed {
		s.given[name] = &Assignment{Name: name}
	}
	s.publish()
}

// publish builds the next map from the last one. What is equal is shared; the caller holds mu.
func (s *Store) publish() {
	last := *s.cur.Load()
	next := make(map[string]*Cluster, len(s.clusters))
	for name, cfg := range s.clusters {
		old := last[name]
		list := cfg.Static
		if cfg.Kind == KindEDS || cfg.Kind == KindNames {
			list = s.given[cfg.EDSName]
		}
		if old != nil && old.Config == cfg && old.list == list {
			next[name] = old
			continue
		}
		next[name] = s.build(cfg, list, old)
	}
	s.cur.Store(&next)
	for name, old := range last {
		s.retire(old, next[name])
	}
	s.retain(next)
	select {
	case s.moved <- struct{}{}:
	default: // it will look again anyway
	}
}

func (s *Store) build(cfg *Config, list *Assignment, old *Cluster) *Cluster {
	c := &Cluster{Config: cfg, list: list, store: s, stats: newClusterStats(), warm: make(chan struct{})}
	now := s.now()
	have := map[Endpoint]*Host{}
	if old != nil {
		c.stats = old.stats
		for _, h := range old.Hosts {
			have[key(h.Endpoint)] = h
		}
		// A waiter on the old cluster looks again when this one has its list.
		c.warm = old.warm
	}
	if list != nil {
		for _, e := range list.Endpoints {
			h := &Host{Endpoint: e}
			if was := have[key(e)]; was != nil {
				h.state = was.state
			} else {
				h.state = newHostState(now)
			}
			if cfg.Balancer.Warmup > 0 && h.Healthy && h.state.since.After(c.youngest) {
				c.youngest = h.state.since
			}
			c.Hosts = append(c.Hosts, h)
		}
	}
	if list != nil || cfg.Kind != KindEDS && cfg.Kind != KindNames {
		select {
		case <-c.warm:
		default:
			close(c.warm)
		}
	}
	return c
}

// key is what makes an endpoint the same one over time: address, way and identity, but not its health or weight.
func key(e Endpoint) Endpoint {
	return Endpoint{Addr: e.Addr, Hop: e.Hop, Identity: e.Identity, Workload: Workload{UID: e.Workload.UID}}
}

// retire lets go of the pooled connections of the hosts that next does not have.
func (s *Store) retire(old, next *Cluster) {
	keep := map[*hostState]bool{}
	if next != nil {
		for _, h := range next.Hosts {
			keep[h.state] = true
		}
	}
	for _, h := range old.Hosts {
		if !keep[h.state] {
			h.state.retire()
		}
	}
}

// retain tells the opener which hops are still in use, so that it closes its tunnels to the others.
func (s *Store) retain(all map[string]*Cluster) {
	r, ok := s.open.(interface{ Retain(func(Target) bool) })
	if !ok {
		return
	}
	used := map[Target]bool{}
	for _, c := range all {
		if c.Config.Kind == KindTunnel {
			return // any address may be dialled through it; idle tunnels end by their own time limit
		}
		for _, h := range c.Hosts {
			used[h.target(0).key()] = true
		}
	}
	r.Retain(func(t Target) bool { return used[t.key()] })
}
