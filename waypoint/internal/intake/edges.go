package intake

import (
	"maps"
	"slices"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// stagedEdges are listeners at the border whose routes or secrets are not all known yet; those before them serve meanwhile.
type stagedEdges struct {
	waiting map[string]*table.Edge
	heard   bool // the control plane said which listeners there are
	router  bool // this proxy has no other listeners
	changed func()
}

// Router says that this proxy stands at the border: it is complete without the listeners of a waypoint.
func (in *Intake) Router() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.edges.router = true
}

// OnEdges sets what is called when listeners at the border, or their secrets, may have changed.
func (in *Intake) OnEdges(fn func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.edges.changed = fn
}

func (s *stagedEdges) stage(e *table.Edge) {
	if s.waiting == nil {
		s.waiting = map[string]*table.Edge{}
	}
	s.waiting[e.Name] = e
}

func (s *stagedEdges) drop(t *table.Table, name string) {
	delete(s.waiting, name)
	if t.Edges[name] != nil {
		t.Edges = maps.Clone(t.Edges)
		delete(t.Edges, name)
	}
}

// promoteEdges puts every staged listener in force whose routes and secrets are known or were refused. One without its
// certificate would only turn clients away that the one before it serves. The caller holds mu.
func (in *Intake) promoteEdges(t *table.Table) {
	for name, e := range in.edges.waiting {
		if !in.edgeReady(t, e) {
			continue
		}
		t.Edges = maps.Clone(t.Edges)
		if t.Edges == nil {
			t.Edges = map[string]*table.Edge{}
		}
		t.Edges[name] = e
		delete(in.edges.waiting, name)
	}
	if len(t.Secrets) > 0 { // a key that nobody names any more is not kept
		names := in.secretNames(t)
		t.Secrets = maps.Clone(t.Secrets)
		maps.DeleteFunc(t.Secrets, func(n string, _ *table.Secret) bool {
			_, named := slices.BinarySearch(names, n)
			return !named
		})
	}
}

func (in *Intake) edgeReady(t *table.Table, e *table.Edge) bool {
	for _, n := range e.SecretNames() {
		if t.Secrets[n] == nil && in.refused[SecretType+"/"+n].Name == "" {
			return false
		}
	}
	for n := range edgeRoutes(e) {
		if !in.routeKnown(t, n) {
			return false
		}
	}
	return true
}

func (in *Intake) routeKnown(t *table.Table, name string) bool {
	_, known := t.Routes[name]
	return known || in.refused[RouteType+"/"+name].Name != ""
}

func edgeRoutes(e *table.Edge) map[string]bool {
	out := map[string]bool{}
	for _, c := range e.Chains {
		if c.HTTP != nil && c.HTTP.Inline == nil {
			out[c.HTTP.RouteName] = true
		}
	}
	return out
}

// routeNames are all that listeners in force and staged ones name.
func (in *Intake) routeNames(t *table.Table) map[string]bool {
	names := routeNames(t.Internal, in.staged)
	for _, m := range []map[string]*table.Edge{t.Edges, in.edges.waiting} {
		for _, e := range m {
			maps.Copy(names, edgeRoutes(e))
		}
	}
	return names
}

// secretNames are all that clusters and listeners need, in order and each once.
func (in *Intake) secretNames(t *table.Table) []string {
	names := slices.Clone(in.ups.Secrets())
	for _, m := range []map[string]*table.Edge{t.Edges, in.edges.waiting} {
		for _, e := range m {
			names = append(names, e.SecretNames()...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// keepSecrets gives the listeners what they need. The caller holds mu.
func (in *Intake) keepSecrets(good map[string]upstream.Secret, removed []string) {
	next := *in.cur.Load()
	next.Secrets = maps.Clone(next.Secrets)
	if next.Secrets == nil {
		next.Secrets = map[string]*table.Secret{}
	}
	for name, s := range good {
		next.Secrets[name] = &table.Secret{Chain: s.Chain, Key: s.Key, Roots: s.Roots, CRL: s.CRL}
	}
	for _, name := range removed {
		delete(next.Secrets, name)
	}
	in.promote(&next)
	in.cur.Store(&next)
	in.settle(&next)
}

// settle tells whoever waits that everything that was announced is in force. The caller holds mu.
func (in *Intake) settle(t *table.Table) {
	if in.edges.changed != nil {
		in.edges.changed()
	}
	whole := in.staged == nil && t.Internal != nil && t.Terminate != nil
	if in.edges.router {
		whole = in.edges.heard
	}
	if whole && len(in.edges.waiting) == 0 {
		in.complete()
	}
}
