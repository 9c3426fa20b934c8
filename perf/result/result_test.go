package result

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestJSONRoundTrip(t *testing.T) {
	run := Run{
		Machine:   Machine{CPU: "x", Cores: 2, CPUFlags: []string{"aes"}, Versions: map[string]string{Marrow: "v1"}, Started: time.Unix(1, 0).UTC(), Seed: 1 << 63},
		Scenarios: []Scenario{{Name: "s", Goal: "P1", Metrics: []Metric{{Scenario: "s", Name: "m", Unit: "u", Ship: 0.95}}}},
		Impls:     []string{Direct, Marrow},
		Samples: []Sample{{
			Scenario: "s", Impl: Marrow, Round: 3, Start: time.Unix(2, 5).UTC(), Seconds: 1.5, Metrics: map[string]float64{"m": 0.25},
			Histogram: []Bucket{{UpTo: 10, Count: 4}}, Noise: Noise{Steal: 0.01, Calibration: 1.02, Foreign: 0.1},
		}},
		Dropped: []DroppedRound{{Scenario: "s", Round: 1, Why: "steal"}},
	}
	file := File{Machine: run.Machine, Rows: []Row{{
		Goal: "P1", Scenario: "s", Metric: "m", Unit: "u", Values: map[string]float64{Marrow: 1}, Rounds: 4,
		Ratio: map[string]Ratio{"peer": {Point: 0.9, Low: 0.8, High: 1}}, Won: map[string]int{"peer": 4},
	}}}
	again(t, run)
	again(t, file)
}

func again[T any](t *testing.T, v T) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var back T
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(v, back); d != "" {
		t.Error(d)
	}
}
