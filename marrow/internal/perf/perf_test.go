package perf

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/perf/scenario"
)

func TestPlan(t *testing.T) {
	now := time.Unix(5, 0)
	t.Chdir(t.TempDir())
	if err := errors.Join(os.Mkdir("bin", 0o755), os.WriteFile("bin/zt", nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	p, err := Config{Quick: true, Peers: []string{"zt=env X=y ./bin/zt --flag 'a b'"}, PeerEnv: []string{"A=b"}}.plan(now)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.impls) != 3 || !filepath.IsAbs(p.impls[2].Ztunnel[2]) || p.impls[2].Ztunnel[4] != "a b" || p.impls[2].Env[0] != "A=b" || p.seed == 0 {
		t.Errorf("%+v", p)
	}
	p, err = Config{Scenario: "bulk-1-*", Rounds: 2, Impls: []string{"marrow"}, Seed: 9}.plan(now)
	if err != nil || len(p.impls) != 1 || p.rounds != 2 || len(p.scenarios) != 3 || p.seed != 9 {
		t.Errorf("%+v, %v", p, err)
	}
	for name, c := range map[string]Config{
		"no command":    {Peers: []string{"zt="}},
		"no name":       {Peers: []string{"zt"}},
		"our name":      {Peers: []string{"marrow=x"}},
		"open quote":    {Peers: []string{"zt='x"}},
		"no program":    {Plain: []string{"nginx"}},
		"not there":     {Plain: []string{"envoy=/nowhere/envoy"}},
		"environment":   {PeerEnv: []string{"A"}},
		"scenario":      {Scenario: "nothing"},
		"rounds":        {Rounds: -1},
		"who":           {Impls: []string{"envoy"}},
		"bad pattern":   {Scenario: "["},
		"profile":       {Profile: "out", Impls: []string{"direct"}},
		"marrow's envs": {MarrowEnv: []string{"x"}},
	} {
		if _, err := c.plan(now); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

func TestList(t *testing.T) {
	var b bytes.Buffer
	if err := List(&b, false); err != nil || !strings.Contains(b.String(), "bulk-1-up") {
		t.Errorf("%v: %s", err, b.String())
	}
	b.Reset()
	if err := List(&b, true); err != nil || !strings.Contains(b.String(), `"P8"`) {
		t.Errorf("%v: %s", err, b.String())
	}
}

// TestBudgets: where system calls cannot be counted everything else is judged, and the user is told.
func TestBudgets(t *testing.T) {
	of := scenario.Results(scenario.All())
	var told strings.Builder
	all := budgets(of, nil, &told)
	if told.Len() > 0 {
		t.Errorf("told %q without need", told.String())
	}
	some := budgets(of, errors.New("not permitted"), &told)
	if len(some) == 0 || len(some) >= len(all) || !strings.Contains(told.String(), "not permitted") {
		t.Errorf("%d of %d budgets, told %q", len(some), len(all), told.String())
	}
	for _, b := range some {
		if strings.HasPrefix(b.Metric, "syscalls") {
			t.Errorf("%+v is judged", b)
		}
	}
}
