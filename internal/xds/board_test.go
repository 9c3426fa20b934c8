package xds_test

import (
	"sync"

	"github.com/marrowmesh/marrow/internal/xds"
)

// board is the slow obvious twin of the control plane's store: one scope, every
// subscriber is told every name.
type board struct {
	mu   sync.Mutex
	now  map[string]map[string]xds.Resource
	subs map[*watcher]struct{}
}

func newBoard() *board {
	return &board{now: map[string]map[string]xds.Resource{}, subs: map[*watcher]struct{}{}}
}

func (b *board) change(url string, up []xds.Resource, removed []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changeLocked(url, up, removed)
}

func (b *board) changeLocked(url string, up []xds.Resource, removed []string) {
	if b.now[url] == nil {
		b.now[url] = map[string]xds.Resource{}
	}
	names := removed
	for _, r := range up {
		b.now[url][r.Name] = r
		names = append(names, r.Name)
	}
	for _, n := range removed {
		delete(b.now[url], n)
	}
	for w := range b.subs {
		w.pending[url] = append(w.pending[url], names...)
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

func (b *board) subscribe() xds.Subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &watcher{b: b, changed: make(chan struct{}, 1), pending: map[string][]string{}}
	b.subs[w] = struct{}{}
	return w
}

type watcher struct {
	b       *board
	changed chan struct{}
	pending map[string][]string
}

func (w *watcher) Changed() <-chan struct{} { return w.changed }

func (w *watcher) Take() map[string][]string {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	out := w.pending
	w.pending = map[string][]string{}
	return out
}

func (w *watcher) Get(url, name string) (xds.Resource, bool) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	r, ok := w.b.now[url][name]
	return r, ok
}

func (w *watcher) List(url string) (out []xds.Resource) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	for _, r := range w.b.now[url] {
		out = append(out, r)
	}
	return out
}

func (w *watcher) Close() {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	delete(w.b.subs, w)
}
