package report

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/stats"
)

// ErrTwoMachines is what Compare returns for files of different machines.
var ErrTwoMachines = errors.New("the files are of two machines, whose numbers must not be compared")

// Compare prints what changed from a to b. Two runs are not paired, so a row is
// compared by what the machine did to both runs alike: by its ratio to each peer
// that is the same in both, else by its ratio to direct, else, and for counters
// always, by marrow's own value. It is a change only if the two intervals do not
// overlap and both have rounds enough.
//
// For files of two machines it prints both values, calls nothing a change, and
// returns ErrTwoMachines.
func Compare(w io.Writer, a, b result.File) error {
	out := bufio.NewWriter(w)
	c := comparison{a: a, b: b, machines: machinesDiffer(a.Machine, b.Machine)}
	c.head(out)
	c.rows(out)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("print the comparison: %w", err)
	}
	if len(c.machines) > 0 {
		return fmt.Errorf("%w: %s", ErrTwoMachines, strings.Join(c.machines, "; "))
	}
	return nil
}

type comparison struct {
	a, b     result.File
	machines []string // how the machines differ
}

// machinesDiffer says how two runs cannot be of one machine.
func machinesDiffer(a, b result.Machine) []string {
	var out []string
	differ := func(what string, x, y any) {
		if fmt.Sprint(x) != fmt.Sprint(y) {
			out = append(out, fmt.Sprintf("%s %v / %v", what, orNone(fmt.Sprint(x)), orNone(fmt.Sprint(y))))
		}
	}
	differ("host", a.Host, b.Host)
	differ("cpu", a.CPU, b.CPU)
	differ("cores", a.Cores, b.Cores)
	differ("flags", strings.Join(slices.Sorted(slices.Values(a.CPUFlags)), " "), strings.Join(slices.Sorted(slices.Values(b.CPUFlags)), " "))
	differ("memory MiB", a.MemoryMiB, b.MemoryMiB)
	differ("kernel", a.Kernel, b.Kernel)
	differ("virtual", a.Hypervisor, b.Hypervisor)
	if !maps.Equal(a.Mitigations, b.Mitigations) {
		out = append(out, "mitigations")
	}
	return out
}

func (c comparison) head(w io.Writer) {
	_, _ = fmt.Fprintf(w, "A  %s\nB  %s\n", runLine(c.a.Machine), runLine(c.b.Machine))
	for _, l := range implChanges(c.a.Machine, c.b.Machine) {
		_, _ = fmt.Fprintln(w, l)
	}
	if len(c.machines) > 0 {
		bar := strings.Repeat("!", 78)
		_, _ = fmt.Fprintf(w, "\n%s\n!! TWO MACHINES: nothing below is a change of marrow. Repeat one of the runs on\n!! the other's machine.\n", bar)
		for _, m := range c.machines {
			_, _ = fmt.Fprintln(w, "!!   "+m)
		}
		_, _ = fmt.Fprintln(w, bar)
	}
	_, _ = fmt.Fprintln(w)
}

func runLine(m result.Machine) string {
	started := none
	if !m.Started.IsZero() {
		started = m.Started.UTC().Format("2006-01-02 15:04:05 UTC")
	}
	return fmt.Sprintf("%s, commit %s, %s: %s", started, orNone(m.Commit), orNone(m.GoVersion), command(m))
}

// implChanges says which implementations are not the same in both runs.
func implChanges(a, b result.Machine) []string {
	var out []string
	for _, impl := range union(allImpls(a), allImpls(b)) {
		for _, f := range []struct {
			what string
			a, b map[string]string
		}{
			{"version", a.Versions, b.Versions},
			{"cipher suite", a.CipherSuites, b.CipherSuites},
			{"key exchange", a.KeyExchanges, b.KeyExchanges},
			{"environment", a.Environment, b.Environment},
		} {
			if f.a[impl] != f.b[impl] {
				out = append(out, fmt.Sprintf("   %s's %s: A %s, B %s", impl, f.what, orNone(f.a[impl]), orNone(f.b[impl])))
			}
		}
	}
	return out
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func (c comparison) rows(w io.Writer) {
	type key struct{ scenario, metric string }
	in := map[key]result.Row{}
	for _, r := range c.b.Rows {
		in[key{r.Scenario, r.Metric}] = r
	}
	var onlyA, onlyB []string
	lines := [][]string{{"scenario", "metric", "by", "A", "B", "B ÷ A", "intervals", "says"}}
	for _, ra := range c.a.Rows {
		k := key{ra.Scenario, ra.Metric}
		rb, ok := in[k]
		if !ok {
			onlyA = append(onlyA, ra.Scenario+" "+ra.Metric)
			continue
		}
		delete(in, k)
		lines = append(lines, c.row(ra, rb)...)
	}
	for _, r := range c.b.Rows {
		if _, left := in[key{r.Scenario, r.Metric}]; left {
			onlyB = append(onlyB, r.Scenario+" "+r.Metric)
		}
	}
	align(w, lines, 0)
	for _, l := range []struct {
		in   string
		rows []string
	}{{"A", onlyA}, {"B", onlyB}} {
		if len(l.rows) > 0 {
			_, _ = fmt.Fprintf(w, "\nonly in %s: %s\n", l.in, strings.Join(l.rows, ", "))
		}
	}
}

// side is one file's half of a comparison.
type side struct {
	r      result.Ratio
	rounds int
}

// row compares one row by each anchor that both files have.
func (c comparison) row(ra, rb result.Row) [][]string {
	var lines [][]string
	add := func(by string, a, b side, show func(result.Ratio) string) {
		scenario, metric := ra.Scenario, metricName(ra.Metric)
		if len(lines) > 0 {
			scenario, metric = "", ""
		}
		overlap, says := c.judge(a, b, ra.HigherIsBetter)
		change := none
		if a.r.Point > 0 && b.r.Point > 0 {
			change = ratioNumber(b.r.Point / a.r.Point)
		}
		lines = append(lines, []string{scenario, metric, by, show(a.r), show(b.r), change, overlap, says})
	}
	if !ra.Counter {
		for _, p := range sorted(ra.Ratio) {
			q, ok := rb.Ratio[p]
			if ok && sameImpl(c.a.Machine, c.b.Machine, p) {
				add("÷ "+p, side{ra.Ratio[p], ra.Rounds}, side{q, rb.Rounds}, ratioText)
			}
		}
		if len(lines) == 0 {
			qa, okA := overDirect(c.a, ra)
			qb, okB := overDirect(c.b, rb)
			if okA && okB {
				add("÷ direct", side{qa, ra.Rounds}, side{qb, rb.Rounds}, ratioText)
			}
		}
	}
	if len(lines) == 0 {
		a, b := ra.PerRound[result.Marrow], rb.PerRound[result.Marrow]
		if len(a) == 0 || len(b) == 0 {
			return nil
		}
		u := unitOf(ra.Unit, max(ra.Values[result.Marrow], rb.Values[result.Marrow]))
		add("value, "+u.name, side{own(c.a, ra), ra.Rounds}, side{own(c.b, rb), rb.Rounds}, func(r result.Ratio) string {
			return fmt.Sprintf("%s [%s, %s]", u.show(r.Point), u.show(r.Low), u.show(r.High))
		})
	}
	return lines
}

// sameImpl says whether a peer is the same in both runs, so that both may be
// measured by it.
func sameImpl(a, b result.Machine, impl string) bool {
	return a.Versions[impl] == b.Versions[impl] && a.CipherSuites[impl] == b.CipherSuites[impl] &&
		a.KeyExchanges[impl] == b.KeyExchanges[impl] && a.Environment[impl] == b.Environment[impl]
}

// overDirect is marrow divided by direct.
func overDirect(f result.File, r result.Row) (result.Ratio, bool) {
	return stats.RatioOf(r.PerRound[result.Marrow], r.PerRound[result.Direct], false, f.Machine.Seed, r.Scenario, r.Metric, result.Direct)
}

// own is marrow's value with its interval.
func own(f result.File, r result.Row) result.Ratio {
	return stats.Mean(r.PerRound[result.Marrow], f.Machine.Seed, r.Scenario, r.Metric)
}

// judge says whether two intervals overlap and what follows.
func (c comparison) judge(a, b side, higher bool) (overlap, says string) {
	apart := a.r.High < b.r.Low || b.r.High < a.r.Low
	overlap = "overlap"
	if apart {
		overlap = "apart"
	}
	switch {
	case len(c.machines) > 0:
		return overlap, "two machines"
	case a.rounds < stats.MinRounds || b.rounds < stats.MinRounds:
		return overlap, stats.TooFew
	case !apart:
		return overlap, "no change shown"
	case b.r.Point < a.r.Point != higher:
		return overlap, "better"
	}
	return overlap, "worse"
}
