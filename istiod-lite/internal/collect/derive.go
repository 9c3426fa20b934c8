package collect

import (
	"fmt"
	"slices"
)

// Keys is what a derivation runs for: the rows of a table or the buckets of an index.
type Keys[K comparable] interface {
	has(K) bool
	watch(func(K))
	order() func(a, b K) int
}

// derivation makes the rows of one table.
type derivation[K, O comparable, V any] struct {
	engine *Engine
	name   string
	keys   Keys[K]
	fn     func(r *Run, k K, emit func(O, V))
	out    *Table[O, V]
	cells  map[K]*made[O]
	queue  map[K]struct{}
	owner  map[O]K
}

// made is a cell with the keys that its last run emitted.
type made[O comparable] struct {
	cell
	rows []O
}

// Derive makes a table. For each key of its source fn runs and emits any number of rows; no other key may emit the same
// ones. What fn fetches through its Run decides when it runs again, so it must depend on nothing else.
func Derive[K, O comparable, V any](e *Engine, name string, keys Keys[K],
	compare func(a, b O) int, equal func(a, b V) bool, fn func(r *Run, k K, emit func(O, V)),
) *Table[O, V] {
	d := &derivation[K, O, V]{
		engine: e, name: name, keys: keys, fn: fn,
		out:   NewTable(e, compare, equal),
		cells: map[K]*made[O]{}, queue: map[K]struct{}{}, owner: map[O]K{},
	}
	e.steps = append(e.steps, d)
	keys.watch(func(k K) { d.queue[k] = struct{}{} })
	return d.out
}

// settle runs what is queued, then takes rows away and sets the new ones: a row that moves from one key to another in
// one batch is never taken away after it was set.
func (d *derivation[K, O, V]) settle() {
	if len(d.queue) == 0 {
		return
	}
	queued := make([]K, 0, len(d.queue))
	for k := range d.queue {
		queued = append(queued, k)
	}
	clear(d.queue)
	slices.SortFunc(queued, d.keys.order())
	type emitted struct {
		key  K
		rows []Row[O, V]
	}
	var results []emitted
	for _, k := range queued {
		results = append(results, emitted{k, d.run(k)})
	}
	for _, r := range results {
		if m := d.cells[r.key]; m != nil {
			d.withdraw(m, r.rows)
		}
		if !d.keys.has(r.key) {
			delete(d.cells, r.key)
		}
	}
	for _, r := range results {
		for _, row := range r.rows {
			if of, taken := d.owner[row.Key]; taken && of != r.key {
				panic(fmt.Sprintf("collect: %s: row %v is made of %v and of %v; derive it from what they share", d.name, row.Key, of, r.key))
			}
			d.owner[row.Key] = r.key
			d.out.Set(row.Key, row.Value)
		}
	}
}

// run computes the rows of one key and records what they were made of.
func (d *derivation[K, O, V]) run(k K) []Row[O, V] {
	m := d.cells[k]
	if m != nil {
		m.release()
	}
	if !d.keys.has(k) {
		return nil
	}
	if m == nil {
		m = &made[O]{}
		m.mark = func() { d.queue[k] = struct{}{} }
		d.cells[k] = m
	}
	var rows []Row[O, V]
	var seen map[O]struct{}
	d.engine.runs[d.name]++
	d.fn(&Run{cell: &m.cell}, k, func(o O, v V) {
		if len(rows) == 1 { // most runs emit one row and need no set
			seen = map[O]struct{}{rows[0].Key: {}}
		}
		if _, double := seen[o]; double {
			return // the first of equal keys counts
		}
		if seen != nil {
			seen[o] = struct{}{}
		}
		rows = append(rows, Row[O, V]{Key: o, Value: v})
	})
	return rows
}

// withdraw deletes the rows that a key emitted before and does not emit any more.
func (d *derivation[K, O, V]) withdraw(m *made[O], rows []Row[O, V]) {
	still := make(map[O]struct{}, len(rows))
	for _, r := range rows {
		still[r.Key] = struct{}{}
	}
	for _, o := range m.rows {
		if _, stays := still[o]; !stays {
			delete(d.owner, o)
			d.out.Delete(o)
		}
	}
	m.rows = m.rows[:0]
	for _, r := range rows {
		m.rows = append(m.rows, r.Key)
	}
}

// Output tells what changed in a table.
type Output[K comparable, V any] struct {
	table *Table[K, V]
	// before holds the rows that were touched since the last Take, as they were then.
	before map[K]state[V]
}

type state[V any] struct {
	value V
	there bool
}

// NewOutput starts to observe t. Rows that are there already count as changes.
func NewOutput[K comparable, V any](t *Table[K, V]) *Output[K, V] {
	o := &Output[K, V]{table: t, before: map[K]state[V]{}}
	for k := range t.rows {
		o.before[k] = state[V]{}
	}
	t.watchers = append(t.watchers, func(c change[K, V]) {
		if _, known := o.before[c.key]; !known {
			o.before[c.key] = state[V]{value: c.before, there: c.hadRow}
		}
	})
	return o
}

// Take returns the rows that differ from those at the last call, and the keys that are gone, both in order.
func (o *Output[K, V]) Take() (changed []Row[K, V], removed []K) {
	for k, was := range o.before {
		now, there := o.table.rows[k]
		switch {
		case there && (!was.there || !o.table.equal(was.value, now)):
			changed = append(changed, Row[K, V]{Key: k, Value: now})
		case !there && was.there:
			removed = append(removed, k)
		}
	}
	clear(o.before)
	slices.SortFunc(changed, func(a, b Row[K, V]) int { return o.table.compare(a.Key, b.Key) })
	slices.SortFunc(removed, o.table.compare)
	return changed, removed
}
