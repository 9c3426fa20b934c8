package stats

import (
	"math"

	"github.com/marrowmesh/marrow/perf/result"
)

// Analyse turns the samples of a run into rows, in the order of its scenarios
// and their metrics. A metric that nobody measured gives no row. One that was
// measured keeps its row, without values if no round counts, and says so.
func Analyse(run result.Run) result.File {
	t := arrange(run)
	f := result.File{Machine: run.Machine, Dropped: t.drops(run.Scenarios)}
	for _, s := range run.Scenarios {
		for _, m := range s.Metrics {
			if row, ok := analyseRow(t, run, s, m); ok {
				f.Rows = append(f.Rows, row)
			}
		}
	}
	return f
}

func analyseRow(t table, run result.Run, s result.Scenario, m result.Metric) (result.Row, bool) {
	row := result.Row{
		Goal: m.Goal, Scenario: s.Name, Metric: m.Name, Unit: m.Unit, HigherIsBetter: m.HigherIsBetter, Counter: m.Counter, Added: m.Added,
		Ship: m.Ship, Ahead: m.Ahead, Bound: m.Bound,
		Values: map[string]float64{}, Ratio: map[string]result.Ratio{}, Won: map[string]int{}, Verdict: map[string]string{}, PerRound: map[string][]float64{},
	}
	rounds := measured(t, run.Impls, s.Name, m)
	row.Rounds = len(rounds)
	for _, impl := range run.Impls {
		var vs []float64
		for _, r := range rounds {
			if v, ok := value(t, s.Name, m.Name, impl, r); ok {
				vs = append(vs, v)
			}
		}
		if len(vs) == 0 {
			continue
		}
		row.PerRound[impl] = vs
		row.Values[impl] = GeoMean(vs)
		if m.Added {
			row.Values[impl] = mean(vs)
		}
	}
	for _, peer := range run.Impls {
		if peer != result.Marrow && peer != result.Direct && !m.Shown {
			judge(&row, t, run.Machine.Seed, m, peer)
		}
	}
	return row, len(row.Values) > 0 || everMeasured(t, s.Name, m.Name)
}

// everMeasured says whether a metric has a value in any round, also in one that
// does not count.
func everMeasured(t table, scenario, metric string) bool {
	for c, samples := range t.cells {
		if c.scenario != scenario {
			continue
		}
		for impl := range samples {
			if _, ok := value(t, scenario, metric, impl, c.round); ok {
				return true
			}
		}
	}
	return false
}

// measured are the rounds that count for a metric: those that have it of every
// implementation that has it at all. So all values of a row are of the same
// rounds.
func measured(t table, impls []string, scenario string, m result.Metric) []int {
	rounds := t.rounds(scenario, m.Counter)
	has := map[string]bool{}
	for _, impl := range impls {
		for _, r := range rounds {
			if _, ok := value(t, scenario, m.Name, impl, r); ok {
				has[impl] = true
			}
		}
	}
	var out []int
	for _, r := range rounds {
		all := true
		for impl := range has {
			_, ok := value(t, scenario, m.Name, impl, r)
			all = all && ok
		}
		if all && len(has) > 0 {
			out = append(out, r)
		}
	}
	return out
}

// value is what one block measured. What is no number was not measured.
func value(t table, scenario, metric, impl string, round int) (float64, bool) {
	v, ok := t.cells[cell{scenario, round}][impl].Metrics[metric]
	return v, ok && !math.IsNaN(v) && !math.IsInf(v, 0)
}

// judge compares marrow with one peer.
func judge(row *result.Row, t table, seed uint64, m result.Metric, peer string) {
	ours, theirs := row.PerRound[result.Marrow], row.PerRound[peer]
	switch never := t.never[row.Scenario]; {
	case len(ours) == 0 && len(theirs) == 0:
		if everMeasured(t, row.Scenario, row.Metric) {
			row.Verdict[peer] = Verdict{Difference: TooFew, Standing: unshown(m)}.String()
		}
		return
	case len(ours) == 0:
		if _, failed := never[result.Marrow]; failed {
			v := Verdict{Difference: Failed}
			if unshown(m) != "" {
				v.Standing = Behind
			}
			row.Verdict[peer] = v.String()
		}
		return
	case len(theirs) == 0:
		if _, failed := never[peer]; failed {
			row.Verdict[peer] = PeerFailed
		}
		return
	}
	row.Won[peer] = wins(ours, theirs, m.HigherIsBetter)
	if m.Added {
		direct := row.PerRound[result.Direct]
		if len(direct) != len(ours) {
			return // nothing to take off: the values stand, unjudged
		}
		ours, theirs = minus(ours, direct), minus(theirs, direct)
	}
	v := Verdict{Difference: unratioed(ours, theirs, row.Won[peer], m.HigherIsBetter), Standing: unshown(m)}
	if r, ok := RatioOf(ours, theirs, m.Added, seed, row.Scenario, row.Metric, peer); ok {
		row.Ratio[peer] = r
		v = Verdict{Difference: difference(r, row.Rounds, m.HigherIsBetter), Standing: standing(r, row.Rounds, m)}
	}
	row.Verdict[peer] = v.String()
}

func minus(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] - b[i]
	}
	return out
}
