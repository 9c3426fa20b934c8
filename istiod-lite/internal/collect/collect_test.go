package collect_test

import (
	"cmp"
	"fmt"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/istiod-lite/internal/collect"
)

func same[T comparable](a, b T) bool { return a == b }

// toy is a small pipeline with every shape: people live in towns, towns have mottos, greetings are made of a person, the
// motto of the town and the neighbours; roll is made per town, and loud follows from greetings alone.
type toy struct {
	engine   *collect.Engine
	people   *collect.Table[int, string] // person -> town
	mottos   *collect.Table[string, string]
	greeting *collect.Table[int, string]
	roll     *collect.Table[string, int]
	letters  *collect.Table[string, int] // several rows per person
	loud     *collect.Table[int, int]
	out      *collect.Output[int, int]
}

func newToy() *toy {
	e := collect.NewEngine()
	y := &toy{engine: e}
	y.people = collect.NewTable(e, cmp.Compare[int], same[string])
	y.mottos = collect.NewTable(e, cmp.Compare[string], same[string])
	byTown := collect.NewIndex(y.people, cmp.Compare[string], func(_ int, town string) []string { return []string{town} })
	y.greeting = collect.Derive(e, "greeting", y.people, cmp.Compare[int], same[string],
		func(r *collect.Run, k int, emit func(int, string)) {
			town, _ := collect.Get(r, y.people, k)
			motto, known := collect.Get(r, y.mottos, town)
			if !known && k%3 == 0 {
				return
			}
			text := motto
			for _, n := range collect.Rows(r, byTown, town) {
				text += fmt.Sprint(" ", n.Key)
			}
			emit(k, text)
		})
	y.roll = collect.Derive(e, "roll", byTown, cmp.Compare[string], same[int],
		func(r *collect.Run, town string, emit func(string, int)) {
			emit(town, len(collect.Rows(r, byTown, town)))
		})
	y.letters = collect.Derive(e, "letters", y.people, cmp.Compare[string], same[int],
		func(r *collect.Run, k int, emit func(string, int)) {
			text, _ := collect.Get(r, y.greeting, k)
			for i, c := range text {
				emit(fmt.Sprintf("%d%c", k, c), i)
			}
		})
	y.loud = collect.Derive(e, "loud", y.greeting, cmp.Compare[int], same[int],
		func(r *collect.Run, k int, emit func(int, int)) {
			text, _ := collect.Get(r, y.greeting, k)
			town, _ := collect.Get(r, y.people, k+1)
			n, _ := collect.Get(r, y.roll, town)
			emit(k, len(text)+100*n)
		})
	y.out = collect.NewOutput(y.loud)
	return y
}

func (y *toy) state() []any {
	return []any{y.greeting.All(), y.roll.All(), y.letters.All(), y.loud.All()}
}

func TestIncrementalEqualsScratch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		y := newToy()
		people, mottos := map[int]string{}, map[string]string{}
		seen := map[int]int{}
		towns := rapid.SampledFrom([]string{"a", "b", "c"})
		for range rapid.IntRange(1, 12).Draw(t, "batches") {
			for range rapid.IntRange(1, 6).Draw(t, "events") {
				switch rapid.IntRange(0, 4).Draw(t, "event") {
				case 0, 1:
					k, v := rapid.IntRange(0, 7).Draw(t, "person"), towns.Draw(t, "town")
					people[k] = v
					y.people.Set(k, v)
				case 2:
					k := rapid.IntRange(0, 7).Draw(t, "person")
					delete(people, k)
					y.people.Delete(k)
				case 3:
					k, v := towns.Draw(t, "town"), towns.Draw(t, "motto")
					mottos[k] = v
					y.mottos.Set(k, v)
				case 4:
					k := towns.Draw(t, "town")
					delete(mottos, k)
					y.mottos.Delete(k)
				}
			}
			y.engine.Settle()
			changed, removed := y.out.Take()
			for _, r := range changed {
				if v, ok := seen[r.Key]; ok && v == r.Value {
					t.Fatalf("row %v reported as changed", r)
				}
				seen[r.Key] = r.Value
			}
			for _, k := range removed {
				if _, ok := seen[k]; !ok {
					t.Fatalf("removal of %d, which was never reported", k)
				}
				delete(seen, k)
			}

			scratch := newToy()
			for k, v := range people {
				scratch.people.Set(k, v)
			}
			for k, v := range mottos {
				scratch.mottos.Set(k, v)
			}
			scratch.engine.Settle()
			if d := gocmp.Diff(scratch.state(), y.state()); d != "" {
				t.Fatal(d)
			}
			want := map[int]int{}
			for _, r := range y.loud.All() {
				want[r.Key] = r.Value
			}
			if d := gocmp.Diff(want, seen); d != "" {
				t.Fatalf("batches do not add up: %s", d)
			}
		}
	})
}

func TestOnlyReadersRun(t *testing.T) {
	y := newToy()
	for k := range 90 {
		y.people.Set(k, []string{"a", "b", "c"}[k%3])
	}
	y.engine.Settle()
	before := y.engine.Runs("greeting")
	y.mottos.Set("b", "hello") // nobody had a motto, but all of b had asked for it
	y.engine.Settle()
	if n := y.engine.Runs("greeting") - before; n != 30 {
		t.Errorf("%d of 90 greetings ran, want the 30 of b", n)
	}
	before = y.engine.TotalRuns()
	y.mottos.Set("z", "nobody lives here")
	y.engine.Settle()
	if n := y.engine.TotalRuns() - before; n != 0 {
		t.Errorf("%d runs for a row that nobody had fetched", n)
	}
}

func TestEqualRowsStop(t *testing.T) {
	y := newToy()
	y.people.Set(1, "a")
	y.mottos.Set("a", "x")
	y.engine.Settle()
	before := y.engine.Runs("loud")
	y.people.Set(1, "a")
	y.mottos.Set("a", "y")
	y.mottos.Set("a", "x")
	y.engine.Settle()
	if n := y.engine.Runs("loud") - before; n != 0 {
		t.Errorf("loud ran %d times though the greeting stayed the same", n)
	}
}

func TestOutputIsNet(t *testing.T) {
	y := newToy()
	y.people.Set(1, "a")
	y.engine.Settle()
	y.out.Take()
	y.people.Set(2, "b")
	y.engine.Settle()
	y.people.Delete(2)
	y.engine.Settle()
	if changed, removed := y.out.Take(); len(changed)+len(removed) != 0 {
		t.Errorf("got %v and %v for a row that came and went", changed, removed)
	}
}

func TestNothingIsLeftOfWhatIsGone(t *testing.T) {
	y := newToy()
	for k := range 50 {
		y.people.Set(k, "a")
	}
	y.engine.Settle()
	for k := range 50 {
		y.people.Delete(k)
	}
	y.engine.Settle()
	for _, rows := range y.state() {
		if s := fmt.Sprint(rows); s != "[]" {
			t.Errorf("left %s", s)
		}
	}
}

func Example() {
	e := collect.NewEngine()
	pods := collect.NewTable(e, cmp.Compare[string], same[string])  // pod -> node
	nodes := collect.NewTable(e, cmp.Compare[string], same[string]) // node -> zone
	zones := collect.Derive(e, "zones", pods, cmp.Compare[string], same[string],
		func(r *collect.Run, pod string, emit func(string, string)) {
			node, _ := collect.Get(r, pods, pod)
			zone, _ := collect.Get(r, nodes, node)
			emit(pod, zone)
		})
	out := collect.NewOutput(zones)
	pods.Set("web", "n1")
	nodes.Set("n1", "east")
	e.Settle()
	fmt.Println(out.Take())
	nodes.Set("n1", "west")
	e.Settle()
	fmt.Println(out.Take())
	// Output:
	// [{web east}] []
	// [{web west}] []
}
