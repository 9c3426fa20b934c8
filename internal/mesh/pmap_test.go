package mesh

import (
	"hash/maphash"
	"maps"
	"testing"

	"pgregory.net/rapid"
)

// TestMapAgainstBuiltin compares the persistent map with Go's map, and checks that
// older copies stay what they were.
func TestMapAgainstBuiltin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMap[int, int](maphash.MakeSeed())
		want := map[int]int{}
		type past struct {
			m    pmap[int, int]
			want map[int]int
		}
		var history []past
		o := new(owner)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			k := rapid.IntRange(0, 40).Draw(t, "key")
			switch rapid.SampledFrom([]string{"set", "set", "del", "snapshot"}).Draw(t, "op") {
			case "set":
				v := rapid.Int().Draw(t, "value")
				m.set(o, k, v)
				want[k] = v
			case "del":
				m.del(o, k)
				delete(want, k)
			case "snapshot":
				history = append(history, past{m, maps.Clone(want)})
				o = new(owner)
			}
			if m.size != len(want) {
				t.Fatalf("size %d, want %d", m.size, len(want))
			}
		}
		history = append(history, past{m, want})
		for i, h := range history {
			if got := maps.Collect(h.m.all()); !maps.Equal(got, h.want) {
				t.Fatalf("copy %d holds %v, want %v", i, got, h.want)
			}
			for k := range 41 {
				got, ok := h.m.get(k)
				if want, wantOK := h.want[k]; got != want || ok != wantOK {
					t.Fatalf("copy %d: get(%d) = %d, %v; want %d, %v", i, k, got, ok, want, wantOK)
				}
			}
		}
	})
}

// TestMapSurvivesEqualHashes forces all keys down one path, to the plain lists at the bottom.
func TestMapSurvivesEqualHashes(t *testing.T) {
	m := newMap[int, string](maphash.MakeSeed())
	o := new(owner)
	root := &pnode[int, string]{owner: o}
	for i := range 5 {
		root, _ = root.set(&m, o, pdepth, 0, pentry[int, string]{i, "x"})
	}
	if len(root.leaf) != 5 {
		t.Fatalf("%d entries at the bottom, want 5", len(root.leaf))
	}
	if _, added := root.set(&m, o, pdepth, 0, pentry[int, string]{3, "y"}); added {
		t.Fatal("an existing key counted as new")
	}
	for i := range 5 {
		root = root.del(o, pdepth, 0, i)
	}
	if root != nil {
		t.Fatal("an empty node was kept")
	}
}
