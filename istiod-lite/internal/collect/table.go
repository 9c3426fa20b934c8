package collect

import (
	"maps"
	"slices"
)

// Row is a key with its value.
type Row[K comparable, V any] struct {
	Key   K
	Value V
}

// Table holds rows by key.
type Table[K comparable, V any] struct {
	compare func(a, b K) int
	equal   func(a, b V) bool
	rows    map[K]V
	nodes   nodes[K]
	// watchers learn of each change: indexes, outputs and the derivations that run per row.
	watchers []func(change[K, V])
}

// change is one row before and after.
type change[K comparable, V any] struct {
	key             K
	before, after   V
	hadRow, haveRow bool
}

// NewTable makes an input table. Compare orders keys, so that what is fetched has one order; equal says that a row did
// not change.
func NewTable[K comparable, V any](_ *Engine, compare func(a, b K) int, equal func(a, b V) bool) *Table[K, V] {
	return &Table[K, V]{compare: compare, equal: equal, rows: map[K]V{}, nodes: nodes[K]{}}
}

// Set puts a row into an input table. Values are shared: nobody may change one after it was set.
func (t *Table[K, V]) Set(k K, v V) {
	before, had := t.rows[k]
	if had && t.equal(before, v) {
		return
	}
	t.rows[k] = v
	t.changed(change[K, V]{key: k, before: before, after: v, hadRow: had, haveRow: true})
}

// Delete removes a row from an input table.
func (t *Table[K, V]) Delete(k K) {
	before, had := t.rows[k]
	if !had {
		return
	}
	delete(t.rows, k)
	t.changed(change[K, V]{key: k, before: before, hadRow: true})
}

func (t *Table[K, V]) changed(c change[K, V]) {
	t.nodes[c.key].touch()
	for _, w := range t.watchers {
		w(c)
	}
}

// Peek reads a row without recording it, for callers outside of a derivation.
func (t *Table[K, V]) Peek(k K) (V, bool) {
	v, ok := t.rows[k]
	return v, ok
}

// All returns the rows in the order of their keys, for callers outside of a derivation.
func (t *Table[K, V]) All() []Row[K, V] {
	return t.ordered(maps.Keys(t.rows))
}

func (t *Table[K, V]) ordered(keys func(func(K) bool)) []Row[K, V] {
	sorted := slices.SortedFunc(keys, t.compare)
	out := make([]Row[K, V], 0, len(sorted))
	for _, k := range sorted {
		out = append(out, Row[K, V]{Key: k, Value: t.rows[k]})
	}
	return out
}

// Get fetches a row in a derivation, which then runs again when the row comes, changes or goes.
func Get[K comparable, V any](r *Run, t *Table[K, V], k K) (V, bool) {
	r.cell.read(t.nodes.get(k))
	v, ok := t.rows[k]
	return v, ok
}

// has and watch make a table a source of keys.
func (t *Table[K, V]) has(k K) bool { _, ok := t.rows[k]; return ok }

func (t *Table[K, V]) watch(fn func(K)) {
	t.watchers = append(t.watchers, func(c change[K, V]) { fn(c.key) })
	for k := range t.rows {
		fn(k)
	}
}

func (t *Table[K, V]) order() func(a, b K) int { return t.compare }

// Index groups the rows of a table by further keys.
type Index[I comparable, K comparable, V any] struct {
	table   *Table[K, V]
	keys    func(K, V) []I
	cmp     func(a, b I) int
	buckets map[I]map[K]struct{}
	nodes   nodes[I]
	// watchers are the derivations that run per bucket.
	watchers []func(I)
}

// NewIndex indexes t; keys names the buckets of a row, none or several.
func NewIndex[I comparable, K comparable, V any](
	t *Table[K, V], compare func(a, b I) int, keys func(K, V) []I,
) *Index[I, K, V] {
	x := &Index[I, K, V]{table: t, keys: keys, cmp: compare, buckets: map[I]map[K]struct{}{}, nodes: nodes[I]{}}
	for k, v := range t.rows {
		x.update(change[K, V]{key: k, after: v, haveRow: true})
	}
	t.watchers = append(t.watchers, x.update)
	return x
}

func (x *Index[I, K, V]) update(c change[K, V]) {
	touched := map[I]struct{}{}
	if c.hadRow {
		for _, i := range x.keys(c.key, c.before) {
			touched[i] = struct{}{}
			delete(x.buckets[i], c.key)
			if len(x.buckets[i]) == 0 {
				delete(x.buckets, i)
			}
		}
	}
	if c.haveRow {
		for _, i := range x.keys(c.key, c.after) {
			touched[i] = struct{}{}
			if x.buckets[i] == nil {
				x.buckets[i] = map[K]struct{}{}
			}
			x.buckets[i][c.key] = struct{}{}
		}
	}
	for i := range touched {
		x.nodes[i].touch()
		for _, w := range x.watchers {
			w(i)
		}
	}
}

// Rows fetches a bucket in a derivation, in the order of the table's keys. The derivation runs again when a row joins or
// leaves the bucket or changes in it.
func Rows[I comparable, K comparable, V any](r *Run, x *Index[I, K, V], i I) []Row[K, V] {
	r.cell.read(x.nodes.get(i))
	return x.Peek(i)
}

// Peek reads a bucket without recording it, for callers outside of a derivation.
func (x *Index[I, K, V]) Peek(i I) []Row[K, V] {
	if len(x.buckets[i]) == 0 {
		return nil
	}
	return x.table.ordered(maps.Keys(x.buckets[i]))
}

func (x *Index[I, K, V]) has(i I) bool { return len(x.buckets[i]) > 0 }

func (x *Index[I, K, V]) watch(fn func(I)) {
	x.watchers = append(x.watchers, fn)
	for i := range x.buckets {
		fn(i)
	}
}

func (x *Index[I, K, V]) order() func(a, b I) int { return x.cmp }
