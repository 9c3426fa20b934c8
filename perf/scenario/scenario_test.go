package scenario_test

import (
	"testing"
	"time"

	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/scenario"
)

func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range scenario.All() {
		if seen[s.Name] || s.Name == "" || s.Title == "" || len(s.Metrics) == 0 {
			t.Errorf("scenario %q: name, title and metrics must be there, once", s.Name)
		}
		seen[s.Name] = true
		spec := s.Load
		spec.Targets, spec.TLS = []string{"x:1"}, &load.TLS{}
		if err := spec.Check(); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		names := map[string]bool{}
		for _, m := range s.Metrics {
			if names[m.Name] || m.Name == "" || m.Unit == "" || m.Scenario != s.Name {
				t.Errorf("%s: metric %+v", s.Name, m)
			}
			names[m.Name] = true
			if m.Goal != "" && (m.Ship == 0 || m.Ahead == 0) {
				t.Errorf("%s %s: goal %s without bounds", s.Name, m.Name, m.Goal)
			}
			if m.HigherIsBetter != (m.Ship > 1 && m.Ahead > 1 && m.Goal != "P8") && m.Goal != "" && m.Goal != "P7" && m.Goal != "P8" {
				t.Errorf("%s %s: bounds %v, %v on the wrong side", s.Name, m.Name, m.Ship, m.Ahead)
			}
			if m.Added && !m.Direct {
				t.Errorf("%s %s: what is added to direct must be measured there", s.Name, m.Name)
			}
		}
	}
	for _, s := range scenario.All() {
		if s.HalfOf != "" && !seen[s.HalfOf] {
			t.Errorf("%s: half of %q, which does not exist", s.Name, s.HalfOf)
		}
	}
}

func TestGoalsAreMeasured(t *testing.T) {
	goals := map[string]int{}
	for _, s := range scenario.All() {
		for _, m := range s.Metrics {
			goals[m.Goal]++
		}
	}
	for _, g := range []string{"P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10", "P11", "P12"} {
		if goals[g] == 0 {
			t.Errorf("goal %s is in no row", g)
		}
	}
}

// TestSetsEndInTime counts three implementations: direct, marrow, one peer.
func TestSetsEndInTime(t *testing.T) {
	for _, set := range []struct {
		name   string
		all    []scenario.Scenario
		rounds int
		limit  time.Duration
	}{{"quick", scenario.Quick(), scenario.QuickRounds, 5 * time.Minute}, {"full", scenario.Full(), scenario.FullRounds, 40 * time.Minute}, {"requests", scenario.Requests(), scenario.FullRounds, 12 * time.Minute}} {
		const boot = 25 * time.Second // of the three labs
		sum := boot.Seconds()
		for _, s := range set.all {
			rounds, impls := set.rounds, 3
			if s.MaxRounds > 0 {
				rounds = min(rounds, s.MaxRounds)
			}
			if s.NeedsMesh() {
				impls = 2
			}
			sum += s.Seconds * float64(rounds*impls)
		}
		if sum > set.limit.Seconds() {
			t.Errorf("%s takes %.0f s, limit %.0f", set.name, sum, set.limit.Seconds())
		}
		t.Logf("%s: %.0f s", set.name, sum)
	}
}

func TestMatch(t *testing.T) {
	got, err := scenario.Match(scenario.All(), "rt-100-*, bulk-1-up")
	if err != nil || len(got) != 4 {
		t.Errorf("%d scenarios, %v", len(got), err)
	}
	if _, err := scenario.Match(scenario.All(), "nothing"); err == nil {
		t.Error("no match is no error")
	}
	if _, err := scenario.Match(scenario.All(), "["); err == nil {
		t.Error("a broken pattern is no error")
	}
	if rs := scenario.Results(got); len(rs) != 4 || rs[0].Metrics[0].Scenario == "" || rs[0].Name == result.Direct {
		t.Errorf("%+v", rs)
	}
}
