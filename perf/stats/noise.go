package stats

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/marrowmesh/marrow/perf/result"
)

// The rule by which a round does not count. It was fixed before anything was
// measured, looks at no result, and drops a round for every implementation.
const (
	// MaxSteal is the part of the machine's time that the hypervisor may give to
	// others during a block.
	MaxSteal = 0.02
	// MaxCalibration is how far a block's calibration loop may be off the median
	// of the run's, in either direction.
	MaxCalibration = 0.05
)

// Rule is the rule in words.
func Rule() string {
	return fmt.Sprintf("a round of a scenario is dropped for every implementation when in any of its blocks the hypervisor took more than %g %% "+
		"of the machine, or the calibration loop before it was more than %g %% off the run's median, or the block failed (counts stand noise)", 100*MaxSteal, 100*MaxCalibration)
}

const unmeasured = "was not measured"

// cell is one round of one scenario.
type cell struct {
	scenario string
	round    int
}

// table holds the samples of a run by scenario, round and implementation.
type table struct {
	cells   map[cell]map[string]result.Sample
	never   map[string]map[string]string // scenario -> implementation that failed each time -> last reason
	dropped map[cell]string
	// noisy are the dropped rounds in which nothing but the time was disturbed:
	// what was counted in them stands.
	noisy map[cell]bool
}

// arrange sorts the samples into cells and judges each round.
func arrange(run result.Run) table {
	t := table{cells: map[cell]map[string]result.Sample{}, dropped: map[cell]string{}, noisy: map[cell]bool{}}
	for _, d := range run.Dropped {
		t.dropped[cell{d.Scenario, d.Round}] = d.Why
	}
	var loops []float64
	twice := map[cell]string{}
	for _, s := range run.Samples {
		c := cell{s.Scenario, s.Round}
		if t.cells[c] == nil {
			t.cells[c] = map[string]result.Sample{}
		}
		if _, ok := t.cells[c][s.Impl]; ok {
			twice[c] = s.Impl + " was measured twice"
		}
		t.cells[c][s.Impl] = s
		if s.Noise.Calibration > 0 {
			loops = append(loops, s.Noise.Calibration)
		}
	}
	t.never = absent(run)
	usual := median(loops)
	for c, samples := range t.cells {
		if t.dropped[c] != "" {
			continue
		}
		broken, noisy := faults(samples, run.Impls, t.never[c.scenario], usual)
		if twice[c] != "" {
			broken = append(broken, twice[c])
		}
		if len(broken)+len(noisy) > 0 {
			t.dropped[c] = strings.Join(append(broken, noisy...), "; ")
			t.noisy[c] = len(broken) == 0
		}
	}
	return t
}

// absent finds the implementations that gave nothing in any round of a
// scenario. They are left out of it, and do not cost the others their rounds.
func absent(run result.Run) map[string]map[string]string {
	out, good := map[string]map[string]string{}, map[string]map[string]bool{}
	for _, s := range run.Samples {
		if out[s.Scenario] == nil {
			out[s.Scenario], good[s.Scenario] = map[string]string{}, map[string]bool{}
		}
		if s.Failed == "" {
			good[s.Scenario][s.Impl] = true
		} else {
			out[s.Scenario][s.Impl] = s.Failed
		}
	}
	for scenario, impls := range good {
		for _, impl := range run.Impls {
			switch _, failed := out[scenario][impl]; {
			case impls[impl]:
				delete(out[scenario], impl)
			case !failed:
				out[scenario][impl] = unmeasured
			}
		}
	}
	return out
}

// faults says why a round does not count, in the order of impls: because it is
// not whole, or because of noise.
func faults(samples map[string]result.Sample, impls []string, never map[string]string, usual float64) (broken, noisy []string) {
	for _, impl := range impls {
		if _, ok := never[impl]; ok {
			continue
		}
		s, ok := samples[impl]
		switch {
		case !ok:
			broken = append(broken, impl+" "+unmeasured)
		case s.Failed != "":
			broken = append(broken, impl+" failed: "+s.Failed)
		case s.Noise.Steal > MaxSteal:
			noisy = append(noisy, fmt.Sprintf("%.1f %% stolen from %s", 100*s.Noise.Steal, impl))
		case s.Noise.Calibration > 0 && math.Abs(s.Noise.Calibration/usual-1) > MaxCalibration:
			noisy = append(noisy, fmt.Sprintf("calibration %+.1f %% before %s", 100*(s.Noise.Calibration/usual-1), impl))
		}
	}
	return broken, noisy
}

// rounds are the rounds of a scenario that count, ascending; for a counter noise
// does not matter.
func (t table) rounds(scenario string, counter bool) []int {
	var out []int
	for c := range t.cells {
		if c.scenario == scenario && (t.dropped[c] == "" || counter && t.noisy[c]) {
			out = append(out, c.round)
		}
	}
	slices.Sort(out)
	return out
}

// drops lists the rounds that do not count, in the order of scenarios.
func (t table) drops(scenarios []result.Scenario) []result.DroppedRound {
	place := map[string]int{}
	for i, s := range scenarios {
		place[s.Name] = i
	}
	var out []result.DroppedRound
	for scenario, impls := range t.never {
		for impl, why := range impls {
			if why != unmeasured {
				out = append(out, result.DroppedRound{Scenario: scenario, Why: impl + " failed in every round: " + why})
			}
		}
	}
	for c, why := range t.dropped {
		out = append(out, result.DroppedRound{Scenario: c.scenario, Round: c.round, Why: why})
	}
	slices.SortFunc(out, func(a, b result.DroppedRound) int {
		return cmp.Or(cmp.Compare(place[a.Scenario], place[b.Scenario]), cmp.Compare(a.Scenario, b.Scenario), cmp.Compare(a.Round, b.Round), cmp.Compare(a.Why, b.Why))
	})
	return out
}
