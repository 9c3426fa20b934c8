package publish

import (
	"slices"
	"sync"

	"github.com/marrowmesh/marrow/internal/xds"
)

// Change is what one derivation produced for one type of one scope.
type Change struct {
	Scope string
	URL   string
	// Updated replaces by name; equal versions are dropped. An empty version always counts as changed.
	Updated []xds.Resource
	Removed []string
}

// Store is what is served now. The zero value is not usable; see [New].
type Store struct {
	mu   sync.RWMutex
	now  map[topic]map[string]xds.Resource
	subs map[string]map[*subscriber]struct{} // by scope
}

type topic struct{ scope, url string }

// New returns an empty store.
func New() *Store {
	return &Store{now: map[topic]map[string]xds.Resource{}, subs: map[string]map[*subscriber]struct{}{}}
}

// Publish applies changes as one; it returns how many names really changed.
func (s *Store) Publish(changes ...Change) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := 0
	for _, c := range changes {
		names := s.apply(c)
		total += len(names)
		for sub := range s.subs[c.Scope] {
			sub.add(c.URL, names)
		}
	}
	return total
}

// Replace publishes all as the whole content of one type of one scope.
func (s *Store) Replace(scope, url string, all []xds.Resource) int {
	return s.Publish(s.Diff(scope, url, all))
}

// Diff returns the change that makes all the whole content of one type of one scope.
func (s *Store) Diff(scope, url string, all []xds.Resource) Change {
	c := Change{Scope: scope, URL: url, Updated: all}
	keep := make(map[string]struct{}, len(all))
	for _, r := range all {
		keep[r.Name] = struct{}{}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for n := range s.now[topic{scope, url}] {
		if _, ok := keep[n]; !ok {
			c.Removed = append(c.Removed, n)
		}
	}
	return c
}

// apply stores one change and returns the names that differ; s.mu is held.
func (s *Store) apply(c Change) []string {
	key := topic{c.Scope, c.URL}
	have := s.now[key]
	if have == nil {
		have = map[string]xds.Resource{}
		s.now[key] = have
	}
	var names []string
	for _, r := range c.Updated {
		old, ok := have[r.Name]
		if ok && r.Version != "" && old.Version == r.Version {
			continue
		}
		have[r.Name] = r
		names = append(names, r.Name)
	}
	for _, n := range c.Removed {
		if _, ok := have[n]; ok {
			delete(have, n)
			names = append(names, n)
		}
	}
	if len(have) == 0 {
		delete(s.now, key)
	}
	return names
}

// List returns the present content of one type of one scope, in no order.
func (s *Store) List(scope, url string) []xds.Resource {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list(scope, url)
}

func (s *Store) list(scope, url string) []xds.Resource {
	have := s.now[topic{scope, url}]
	out := make([]xds.Resource, 0, len(have))
	for _, r := range have {
		out = append(out, r)
	}
	return out
}

// Subscribe follows scopes; a name is looked for in them in the given order.
func (s *Store) Subscribe(scopes ...string) xds.Subscription {
	sub := &subscriber{store: s, scopes: slices.Clone(scopes), changed: make(chan struct{}, 1), pending: map[string]map[string]struct{}{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sc := range scopes {
		if s.subs[sc] == nil {
			s.subs[sc] = map[*subscriber]struct{}{}
		}
		s.subs[sc][sub] = struct{}{}
	}
	return sub
}

// subscriber implements [xds.Subscription].
type subscriber struct {
	store   *Store
	scopes  []string
	changed chan struct{}
	// pending holds names by type since the last Take; guarded by store.mu.
	// Invariant: a set, so its size is bounded by the names there are (TestPendingNamesAreASet).
	pending map[string]map[string]struct{}
}

// add notes names; store.mu is held.
func (u *subscriber) add(url string, names []string) {
	if len(names) == 0 {
		return
	}
	set := u.pending[url]
	if set == nil {
		set = make(map[string]struct{}, len(names))
		u.pending[url] = set
	}
	for _, n := range names {
		set[n] = struct{}{}
	}
	select {
	case u.changed <- struct{}{}:
	default:
	}
}

func (u *subscriber) Changed() <-chan struct{} { return u.changed }

func (u *subscriber) Take() map[string][]string {
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	out := make(map[string][]string, len(u.pending))
	for url, set := range u.pending {
		names := make([]string, 0, len(set))
		for n := range set {
			names = append(names, n)
		}
		out[url] = names
	}
	clear(u.pending)
	return out
}

func (u *subscriber) Get(url, name string) (xds.Resource, bool) {
	u.store.mu.RLock()
	defer u.store.mu.RUnlock()
	for _, sc := range u.scopes {
		if r, ok := u.store.now[topic{sc, url}][name]; ok {
			return r, true
		}
	}
	return xds.Resource{}, false
}

func (u *subscriber) List(url string) []xds.Resource {
	u.store.mu.RLock()
	defer u.store.mu.RUnlock()
	var out []xds.Resource
	for _, sc := range u.scopes {
		out = append(out, u.store.list(sc, url)...)
	}
	return out
}

func (u *subscriber) Close() {
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	for _, sc := range u.scopes {
		delete(u.store.subs[sc], u)
		if len(u.store.subs[sc]) == 0 {
			delete(u.store.subs, sc)
		}
	}
}
