package stats

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/marrowmesh/marrow/perf/result"
)

// world is a run of one scenario in which marrow needs 0.75 of the peer's CPU.
func world(rounds int) result.Run {
	impls := []string{result.Direct, result.Marrow, "peer"}
	run := result.Run{
		Impls:   impls,
		Machine: result.Machine{Seed: 3},
		Scenarios: []result.Scenario{{Name: "s", Metrics: []result.Metric{
			{Scenario: "s", Name: "cpu", Unit: "CPU-s/GB", Goal: "P1", Ship: 0.95, Ahead: 0.8},
			{Scenario: "s", Name: "rate", Unit: "B/s", HigherIsBetter: true, Direct: true},
			{Scenario: "s", Name: "p99", Unit: "us", Goal: "P5", Direct: true, Added: true, Ship: 1, Ahead: 0.75},
			{Scenario: "s", Name: "left", Unit: "goroutines", Counter: true},
		}}},
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, b := range Schedule(run.Scenarios, impls, rounds, 3) {
		about := func(v float64) float64 { return v * (1 + 0.02*rng.NormFloat64()) }
		m := map[string]float64{}
		switch b.Impl {
		case result.Direct:
			m["rate"], m["p99"] = about(900), about(100)
		case result.Marrow:
			m["cpu"], m["rate"], m["p99"], m["left"] = about(1.5), about(400), about(200), 0
		case "peer":
			m["cpu"], m["rate"], m["p99"], m["left"] = about(2), about(400), about(300), 0
		}
		run.Samples = append(run.Samples, result.Sample{
			Scenario: "s", Impl: b.Impl, Round: b.Round, Seconds: 1, Metrics: m, Noise: result.Noise{Steal: 0.001, Calibration: about(1.1)},
		})
	}
	for i := range run.Samples { // a steady machine: the loop takes the same time each time
		run.Samples[i].Noise.Calibration = 1.1
	}
	return run
}

// at is the sample of one block, to be changed.
func at(t *testing.T, run result.Run, impl string, round int) *result.Sample {
	t.Helper()
	i := slices.IndexFunc(run.Samples, func(s result.Sample) bool { return s.Impl == impl && s.Round == round })
	if i < 0 {
		t.Fatalf("no sample of %s in round %d", impl, round)
	}
	return &run.Samples[i]
}

func row(t *testing.T, f result.File, metric string) result.Row {
	t.Helper()
	i := slices.IndexFunc(f.Rows, func(r result.Row) bool { return r.Metric == metric })
	if i < 0 {
		t.Fatalf("no row %s", metric)
	}
	return f.Rows[i]
}

func TestAnalyse(t *testing.T) {
	f := Analyse(world(20))
	cpu := row(t, f, "cpu")
	if r := cpu.Ratio["peer"]; r.Low > 0.75 || r.High < 0.75 || r.High-r.Low > 0.05 {
		t.Errorf("cpu: %+v, want about 0.75", r)
	}
	if cpu.Verdict["peer"] != "win, ahead" || cpu.Rounds != 20 || cpu.Won["peer"] != 20 || cpu.Goal != "P1" {
		t.Errorf("cpu: %+v", cpu)
	}
	if q := cpu.Values[result.Marrow] / cpu.Values["peer"]; q/cpu.Ratio["peer"].Point-1 > 1e-9 || q/cpu.Ratio["peer"].Point-1 < -1e-9 {
		t.Errorf("the values' quotient is %g, the ratio %g", q, cpu.Ratio["peer"].Point)
	}
	if _, ok := cpu.Values[result.Direct]; ok {
		t.Error("direct has a value that it did not measure")
	}
	if rate := row(t, f, "rate"); rate.Verdict["peer"] != NoDifference || len(rate.Values) != 3 {
		t.Errorf("rate: %+v", rate)
	}
	p99 := row(t, f, "p99")
	if r := p99.Ratio["peer"]; r.Low > 0.5 || r.High < 0.5 || r.High > 0.6 || p99.Verdict["peer"] != "win, ahead" {
		t.Errorf("p99: %+v %v, want 100 µs added against 200", r, p99.Verdict)
	}
	if p99.Values[result.Marrow] < 150 {
		t.Errorf("p99: %v, want values as measured", p99.Values)
	}
	left := row(t, f, "left")
	if _, ok := left.Ratio["peer"]; ok || left.Verdict["peer"] != NoDifference {
		t.Errorf("left: %+v, want no ratio of zeros", left)
	}
}

func TestAnalyseIsDeterministic(t *testing.T) {
	run := world(12)
	a, err := json.Marshal(Analyse(run))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(run.Samples) // nor does it matter in which order they came
	b, _ := json.Marshal(Analyse(run))
	if string(a) != string(b) {
		t.Error(cmp.Diff(string(a), string(b)))
	}
}

func TestNoisyRounds(t *testing.T) {
	run := world(20)
	at(t, run, result.Marrow, 2).Noise.Steal = 0.021
	at(t, run, "peer", 4).Noise.Calibration = 1.1 * 1.06
	at(t, run, "peer", 5).Noise.Calibration = 1.1 * 0.94
	*at(t, run, result.Direct, 7) = result.Sample{Scenario: "s", Impl: result.Direct, Round: 7, Failed: "reset by peer"}
	at(t, run, "peer", 8).Noise.Steal = 0.02 // just allowed
	at(t, run, "peer", 9).Noise.Calibration = 1.1 * 1.049
	run.Samples = append(run.Samples, *at(t, run, "peer", 11))
	run.Dropped = []result.DroppedRound{{Scenario: "s", Round: 13, Why: "the lab fell over"}}
	run.Samples = slices.DeleteFunc(run.Samples, func(s result.Sample) bool { return s.Round == 15 && s.Impl == "peer" })
	// A value nobody would get: it must not count for the others either.
	for _, r := range []int{2, 4, 5, 7, 11, 13, 15} {
		at(t, run, result.Marrow, r).Metrics["cpu"] = 1e9
	}
	f := Analyse(run)
	var got []string
	for _, d := range f.Dropped {
		got = append(got, fmt.Sprintf("%d %s", d.Round, d.Why))
	}
	want := []string{
		"2 2.1 % stolen from marrow", "4 calibration +6.0 % before peer", "5 calibration -6.0 % before peer", "7 direct failed: reset by peer",
		"11 peer was measured twice", "13 the lab fell over", "15 peer was not measured",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if cpu := row(t, f, "cpu"); cpu.Rounds != 13 || cpu.Values[result.Marrow] > 2 || len(cpu.PerRound["peer"]) != 13 {
		t.Errorf("%+v", cpu)
	}
	if !strings.Contains(Rule(), "2 %") || !strings.Contains(Rule(), "5 %") {
		t.Error(Rule())
	}
}

// TestCountersStandNoise: the counting phase runs in the first rounds only, and
// a count is the same on a busy machine.
func TestCountersStandNoise(t *testing.T) {
	run := world(8)
	for i, s := range run.Samples {
		if s.Round > 3 {
			delete(run.Samples[i].Metrics, "left")
		}
	}
	at(t, run, result.Marrow, 1).Noise.Steal = 0.5
	*at(t, run, "peer", 2) = result.Sample{Scenario: "s", Impl: "peer", Round: 2, Failed: "reset"}
	f := Analyse(run)
	if left := row(t, f, "left"); left.Rounds != 2 || len(left.PerRound[result.Marrow]) != 2 {
		t.Errorf("%+v, want rounds 1 and 3", left)
	}
	if cpu := row(t, f, "cpu"); cpu.Rounds != 6 {
		t.Errorf("%+v, want rounds 3 to 8", cpu)
	}
}

func TestTooFewRounds(t *testing.T) {
	f := Analyse(world(MinRounds - 1))
	if cpu := row(t, f, "cpu"); cpu.Verdict["peer"] != TooFew+", "+Unshown {
		t.Errorf("%+v", cpu)
	}
	if cpu := row(t, Analyse(world(BootRounds-1)), "cpu"); cpu.Verdict["peer"] != "win, ahead" {
		t.Errorf("%+v", cpu)
	}
	// Zeros have no ratio, so only rounds that all agree could say something.
	if left := row(t, Analyse(world(BootRounds-1)), "left"); left.Verdict["peer"] != TooFew {
		t.Errorf("%+v", left)
	}
}

// TestAllRoundsDropped: a row whose every round was noisy says so instead of
// being gone.
func TestAllRoundsDropped(t *testing.T) {
	run := world(8)
	for i := range run.Samples {
		run.Samples[i].Noise.Steal = 0.2
	}
	f := Analyse(run)
	if cpu := row(t, f, "cpu"); cpu.Rounds != 0 || len(cpu.Values) > 0 || cpu.Verdict["peer"] != "too few rounds, ship not shown" {
		t.Errorf("%+v", cpu)
	}
	if left := row(t, f, "left"); left.Rounds != 8 {
		t.Errorf("%+v, want what was counted", left)
	}
}

func TestShownIsNotJudged(t *testing.T) {
	run := world(8)
	run.Scenarios[0].Metrics[0].Shown = true
	if cpu := row(t, Analyse(run), "cpu"); len(cpu.Verdict) > 0 || len(cpu.Ratio) > 0 || len(cpu.Values) == 0 {
		t.Errorf("%+v", cpu)
	}
}

// TestFailures: who fails everywhere is left out and named; a row that marrow
// alone lacks stays.
func TestFailures(t *testing.T) {
	fail := func(impl string) result.File {
		run := world(8)
		for i, s := range run.Samples {
			if s.Impl == impl {
				run.Samples[i] = result.Sample{Scenario: "s", Impl: impl, Round: s.Round, Failed: "does not start"}
			}
		}
		return Analyse(run)
	}
	f := fail("peer")
	if d := cmp.Diff([]result.DroppedRound{{Scenario: "s", Why: "peer failed in every round: does not start"}}, f.Dropped); d != "" {
		t.Error(d)
	}
	if cpu := row(t, f, "cpu"); cpu.Rounds != 8 || cpu.Verdict["peer"] != PeerFailed || cpu.Values[result.Marrow] == 0 {
		t.Errorf("%+v", cpu)
	}
	if cpu := row(t, fail(result.Marrow), "cpu"); cpu.Rounds != 8 || cpu.Verdict["peer"] != Failed+", "+Behind || cpu.Values["peer"] == 0 {
		t.Errorf("%+v", cpu)
	}
	run := world(8)
	for i := range run.Samples {
		delete(run.Samples[i].Metrics, "rate")
	}
	if f := Analyse(run); slices.ContainsFunc(f.Rows, func(r result.Row) bool { return r.Metric == "rate" }) {
		t.Error("a metric that nobody measured gives a row")
	}
}

func TestStanding(t *testing.T) {
	less := result.Metric{Ship: 0.95, Ahead: 0.8}
	more := result.Metric{Ship: 1.05, Ahead: 1.25, HigherIsBetter: true}
	for _, x := range []struct {
		r      result.Ratio
		rounds int
		m      result.Metric
		want   string
	}{
		{result.Ratio{Point: 0.7, Low: 0.6, High: 0.8}, 9, less, Ahead},
		{result.Ratio{Point: 0.7, Low: 0.6, High: 0.81}, 9, less, Ship},
		{result.Ratio{Point: 0.94, Low: 0.9, High: 0.96}, 9, less, Unshown},
		{result.Ratio{Point: 0.96, Low: 0.8, High: 1}, 9, less, Behind},
		{result.Ratio{Point: 0.7, Low: 0.6, High: 0.8}, 1, less, Unshown},
		{result.Ratio{Point: 1.3, Low: 1.25, High: 1.4}, 9, more, Ahead},
		{result.Ratio{Point: 1.3, Low: 1.05, High: 1.4}, 9, more, Ship},
		{result.Ratio{Point: 1.1, Low: 1.04, High: 1.2}, 9, more, Unshown},
		{result.Ratio{Point: 1.04, Low: 1, High: 1.2}, 9, more, Behind},
		{result.Ratio{Point: 0.5, Low: 0.4, High: 0.6}, 9, result.Metric{}, ""},
		{result.Ratio{Point: 1.4, Low: 1.3, High: 1.5}, 9, result.Metric{Ship: 1.5, Ahead: 0.8}, Ship},
	} {
		if got := standing(x.r, x.rounds, x.m); got != x.want {
			t.Errorf("%+v in %d rounds against %g/%g: %s, want %s", x.r, x.rounds, x.m.Ship, x.m.Ahead, got, x.want)
		}
	}
}

func TestVerdictText(t *testing.T) {
	for _, v := range []Verdict{{Win, Ahead}, {Lost, ""}, {NoDifference, Unshown}, {TooFew, Behind}} {
		if got := ParseVerdict(v.String()); got != v {
			t.Errorf("%+v became %+v", v, got)
		}
	}
}
