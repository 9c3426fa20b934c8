package stats

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/perf/result"
)

func TestSchedule(t *testing.T) {
	impls := []string{result.Direct, result.Marrow, "peer"}
	scenarios := []result.Scenario{{Name: "a"}, {Name: "slow", MaxRounds: 4}, {Name: "b"}}
	blocks := Schedule(scenarios, impls, 20, 7)
	if want := 3 * (20 + 4 + 20); len(blocks) != want {
		t.Fatalf("%d blocks, want %d", len(blocks), want)
	}
	orders := map[string][][]string{}
	at := map[string][]int{}
	for i := 0; i < len(blocks); i += 3 {
		b := blocks[i]
		if i > 0 && b.Round < blocks[i-1].Round {
			t.Fatalf("block %d goes back to round %d", i, b.Round)
		}
		var order []string
		for _, x := range blocks[i : i+3] {
			if x.Scenario != b.Scenario || x.Round != b.Round {
				t.Fatalf("%v stands between the blocks of %v", x, b)
			}
			order = append(order, x.Impl)
		}
		orders[b.Scenario] = append(orders[b.Scenario], order)
		at[b.Scenario] = append(at[b.Scenario], b.Round)
	}
	different := map[string]bool{}
	for name, os := range orders {
		for i := 0; i < len(os); i += 2 {
			back := slices.Clone(os[i])
			slices.Reverse(back)
			if !slices.Equal(back, os[i+1]) {
				t.Errorf("%s: round %d has %v, the next %v: not its reverse", name, i, os[i], os[i+1])
			}
			different[fmt.Sprint(os[i])] = true
		}
	}
	if len(different) < 3 {
		t.Errorf("only the orders %v occur", different)
	}
	if want := []int{5, 10, 15, 20}; !slices.Equal(at["slow"], want) {
		t.Errorf("the slow scenario runs in rounds %v, want %v: spread over the run", at["slow"], want)
	}
	if d := cmp.Diff(blocks, Schedule(scenarios, impls, 20, 7)); d != "" {
		t.Error("the same arguments gave another schedule:", d)
	}
	if cmp.Equal(blocks, Schedule(scenarios, impls, 20, 8)) {
		t.Error("another seed gave the same schedule")
	}
	alone := Schedule(scenarios[2:], impls, 20, 7)
	blocks = slices.DeleteFunc(blocks, func(b result.Block) bool { return b.Scenario != "b" })
	if d := cmp.Diff(alone, blocks); d != "" {
		t.Error("a scenario's orders depend on which others run:", d)
	}
}

// TestStudent compares with tables of the distribution.
func TestStudent(t *testing.T) {
	for df, want := range map[int]float64{1: 12.7062, 4: 2.7764, 5: 2.5706, 6: 2.4469, 9: 2.2622, 19: 2.0930, 39: 2.0227, 1000: 1.9623} {
		if got := student975(df); math.Abs(got-want) > 5e-4 {
			t.Errorf("student975(%d) = %.4f, want %.4f", df, got, want)
		}
	}
}

func positive(t *rapid.T, name string, n int) []float64 {
	return rapid.SliceOfN(rapid.Float64Range(1e-6, 1e6), n, n).Draw(t, name)
}

func TestIntervalHoldsPoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 25).Draw(t, "rounds")
		sums := rapid.Bool().Draw(t, "sums")
		a, b := positive(t, "ours", n), positive(t, "theirs", n)
		r, ok := RatioOf(a, b, sums, 1)
		if !ok && (!sums || n >= BootRounds) {
			t.Fatal("positive values have no ratio")
		}
		if !ok && sums && n < BootRounds {
			return // Fieller's interval may have no ends
		}
		if r.Low > r.Point || r.Point > r.High || math.IsNaN(r.Point) || math.IsInf(r.High, 0) {
			t.Fatalf("%+v", r)
		}
		least, most := math.Inf(1), math.Inf(-1)
		for i := range a {
			least, most = min(least, a[i]/b[i]), max(most, a[i]/b[i])
		}
		if n >= BootRounds && (r.Low < least*(1-1e-9) || r.High > most*(1+1e-9)) {
			t.Fatalf("%+v leaves what was measured, %g to %g", r, least, most)
		}
	})
}

func TestScaleLeavesRatios(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "rounds")
		sums := rapid.Bool().Draw(t, "sums")
		k := rapid.Float64Range(1e-3, 1e3).Draw(t, "scale")
		a, b := positive(t, "ours", n), positive(t, "theirs", n)
		before, ok := RatioOf(a, b, sums, 1)
		if !ok {
			return
		}
		for i := range a {
			a[i], b[i] = k*a[i], k*b[i]
		}
		after, _ := RatioOf(a, b, sums, 1)
		for _, x := range [][2]float64{{before.Point, after.Point}, {before.Low, after.Low}, {before.High, after.High}} {
			if math.Abs(x[0]/x[1]-1) > 1e-9 {
				t.Fatalf("%+v became %+v", before, after)
			}
		}
	})
}

func TestSwapInvertsRatio(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "rounds")
		a, b := positive(t, "ours", n), positive(t, "theirs", n)
		r, _ := RatioOf(a, b, false, 1)
		s, _ := RatioOf(b, a, false, 1)
		if math.Abs(r.Point*s.Point-1) > 1e-9 || math.Abs(r.Low*s.High-1) > 1e-9 || math.Abs(r.High*s.Low-1) > 1e-9 {
			t.Fatalf("%+v and %+v", r, s)
		}
	})
}

// planted is rounds of two implementations with a known ratio. Both share what
// the machine does to a round; each has its own noise on top.
func planted(rng *rand.Rand, rounds int, ratio, noise float64) (ours, theirs []float64) {
	for range rounds {
		machine := 3 * math.Exp(0.2*rng.NormFloat64())
		ours = append(ours, machine*ratio*math.Exp(noise*rng.NormFloat64()))
		theirs = append(theirs, machine*math.Exp(noise*rng.NormFloat64()))
	}
	return ours, theirs
}

// verdicts gives how often each verdict is reached over many fixed seeds.
func verdicts(rounds int, ratio float64) map[string]float64 {
	const trials = 250
	out := map[string]float64{}
	for seed := range uint64(trials) {
		ours, theirs := planted(rand.New(rand.NewPCG(seed, 99)), rounds, ratio, 0.05)
		r, _ := RatioOf(ours, theirs, false, seed)
		out[difference(r, rounds, false)] += 1.0 / trials
	}
	return out
}

func TestPlantedDifferenceIsFound(t *testing.T) {
	for _, rounds := range []int{8, 20} {
		if got := verdicts(rounds, 0.8); got[Win] < 0.95 || got[Lost] > 0 {
			t.Errorf("%d rounds, 20 %% less with 5 %% noise: %v", rounds, got)
		}
	}
	if got := verdicts(20, 1.25); got[Lost] < 0.95 || got[Win] > 0 {
		t.Errorf("20 rounds, 25 %% more with 5 %% noise: %v", got)
	}
}

// TestNoDifferenceIsNotCalledAWin: the interval errs in one run of twenty, half
// of the time in our favour.
func TestNoDifferenceIsNotCalledAWin(t *testing.T) {
	for _, rounds := range []int{MinRounds, 3, 5, BootRounds, 20, 40} {
		got := verdicts(rounds, 1)
		if got[Win] > 0.05 || got[Win]+got[Lost] > 0.09 {
			t.Errorf("%d rounds without a difference: %v", rounds, got)
		}
	}
}

// TestCoverage: the interval of a difference to direct, too, holds the truth.
func TestCoverage(t *testing.T) {
	const trials = 250
	for _, rounds := range []int{3, 5, BootRounds, 20} {
		held := 0
		for seed := range uint64(trials) {
			rng := rand.New(rand.NewPCG(seed, 5))
			var ours, theirs []float64
			for range rounds {
				ours = append(ours, 80+20*rng.NormFloat64())
				theirs = append(theirs, 100+20*rng.NormFloat64())
			}
			if r, ok := RatioOf(ours, theirs, true, seed); !ok || r.Low <= 0.8 && r.High >= 0.8 {
				held++
			}
		}
		if held < trials*92/100 {
			t.Errorf("%d rounds: the interval held the truth %d times of %d", rounds, held, trials)
		}
	}
}

func TestRatioThatDoesNotExist(t *testing.T) {
	for name, x := range map[string]struct{ ours, theirs []float64 }{
		"none":         {},
		"unpaired":     {[]float64{1, 2}, []float64{1}},
		"nothing":      {[]float64{1, 2, 1, 1, 2, 1}, []float64{0, 0, 0, 0, 0, 0}},
		"around zero":  {[]float64{1, 2, 1, 1, 2, 1}, []float64{-5, 5, 3, -3, 1, 1}},
		"nothing both": {make([]float64, 6), make([]float64, 6)},
	} {
		if r, ok := RatioOf(x.ours, x.theirs, false, 1); ok {
			t.Errorf("%s: %+v", name, r)
		}
	}
	r, ok := RatioOf(make([]float64, 6), []float64{1, 2, 1, 2, 1, 2}, false, 1)
	if !ok || r != (result.Ratio{}) {
		t.Errorf("nothing against something: %+v, %v; want 0", r, ok)
	}
}

func TestMean(t *testing.T) {
	for _, v := range []float64{12, 0.1, 1e300, 0} {
		if got := GeoMean([]float64{v, v, v, v, v}); got != v {
			t.Errorf("the mean of %v is %v", v, got)
		}
	}
	r := Mean([]float64{1, 100, 10, 1, 100, 10}, 1)
	if math.Abs(r.Point-10) > 1e-9 || r.Low >= 10 || r.High <= 10 {
		t.Errorf("%+v, want the geometric mean 10 inside", r)
	}
	if r := Mean([]float64{0, 0, 0, 3, 0, 3}, 1); r.Point != 1 || r.Low != 0 || r.High <= 1 || r.High > 3 {
		t.Errorf("%+v", r)
	}
}
