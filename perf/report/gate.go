package report

import (
	"errors"
	"fmt"

	"github.com/marrowmesh/marrow/perf/result"
)

// Budget bounds a counter of marrow: no row of that metric may be above Most.
type Budget struct {
	Scenario string // empty: in every scenario that has the metric
	Metric   string
	Unit     string
	Most     float64
}

// Budgets are the bounds that the scenarios' counters carry.
func Budgets(scenarios []result.Scenario) []Budget {
	var out []Budget
	for _, s := range scenarios {
		for _, m := range s.Metrics {
			if m.Counter && m.Bound != 0 {
				out = append(out, Budget{Scenario: s.Name, Metric: m.Name, Unit: m.Unit, Most: m.Bound})
			}
		}
	}
	return out
}

// Gate compares marrow's counters with their budgets and returns every breach,
// joined. It looks at no timing: those vary with the machine, counters do not.
// What a budget names and the file lacks is a breach as well: a gate that
// nobody feeds would be open for ever.
func Gate(f result.File, budgets []Budget) error {
	var errs []error
	for _, b := range budgets {
		seen := false
		for _, r := range f.Rows {
			if r.Metric != b.Metric || b.Scenario != "" && r.Scenario != b.Scenario {
				continue
			}
			if !r.Counter {
				errs = append(errs, fmt.Errorf("%s %s: it is a timing, which no budget may bound; mark the metric as a counter", r.Scenario, r.Metric))
				seen = true
				continue
			}
			v, ok := r.Values[result.Marrow]
			if !ok {
				continue
			}
			seen = true
			if v > b.Most {
				u := unitOf(r.Unit, max(v, b.Most))
				errs = append(errs, fmt.Errorf("%s %s = %s %s, budget %s: find what was added to the data path, or change the bound with a reason",
					r.Scenario, r.Metric, u.show(v), u.name, u.show(b.Most)))
			}
		}
		if !seen {
			errs = append(errs, fmt.Errorf("%s %s: not measured, its budget is %s %s; run the scenario, or drop the budget",
				orAny(b.Scenario), b.Metric, number(b.Most), b.Unit))
		}
	}
	return errors.Join(errs...)
}

func orAny(scenario string) string {
	if scenario == "" {
		return "any scenario"
	}
	return scenario
}
