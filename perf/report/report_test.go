package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/scenario"
	"github.com/marrowmesh/marrow/perf/stats"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with testdata/name; a changed file is reviewed as behaviour.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (go test ./perf/report -update rewrites it):\n%s", path, d)
	}
}

func tables(f result.File) []byte {
	var b bytes.Buffer
	Tables(&b, f)
	return b.Bytes()
}

func TestTables(t *testing.T) {
	for name, peers := range map[string][]string{"alone": nil, "peer": {"peer"}, "peers": {"peer", "other"}} {
		out := tables(stats.Analyse(fixture(peers...)))
		golden(t, "tables-"+name+".golden", out)
		most := map[string]int{"alone": 110, "peer": 120, "peers": 140}[name]
		for l := range strings.Lines(string(out)) {
			if n := utf8.RuneCountInString(strings.TrimRight(l, "\n")); n > most {
				t.Errorf("%s: a line of %d columns does not fit a terminal of %d: %s", name, n, most, l)
			}
		}
	}
}

// TestFailuresAreShown: who failed, and that marrow failed, is in the tables.
func TestFailuresAreShown(t *testing.T) {
	run := fixture("peer", "other")
	for i, s := range run.Samples {
		if s.Impl == "other" || s.Impl == result.Marrow && s.Scenario == "idle-10k" {
			run.Samples[i] = result.Sample{Scenario: s.Scenario, Impl: s.Impl, Round: s.Round, Failed: "does not start"}
		}
	}
	f := stats.Analyse(run)
	out := string(tables(f))
	for _, want := range []string{"bulk-1-up: other failed in every round: does not start", "idle-10k: marrow failed in every round, peer did not", "peer failed", "P7 behind"} {
		if !strings.Contains(out, want) {
			t.Errorf("the tables do not say %q:\n%s", want, out)
		}
	}
	html, _, err := render(run, f)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(html), "other failed in every round: does not start") {
		t.Error("the page does not name who failed")
	}
}

// TestNothingCounts: a run on a machine that never kept still says what it could
// not show.
func TestNothingCounts(t *testing.T) {
	run := fixture("peer")
	for i := range run.Samples {
		run.Samples[i].Noise.Steal = 0.2
	}
	f := stats.Analyse(run)
	out := string(tables(f))
	if !strings.Contains(out, "too few rounds") || !strings.Contains(out, "P1 not shown") || !strings.Contains(out, "(0 rounds)") {
		t.Error(out)
	}
	if _, _, err := render(run, f); err != nil {
		t.Error(err)
	}
}

// TestOneRound: one round has no interval, and none is printed.
func TestOneRound(t *testing.T) {
	run := fixture("peer")
	run.Samples = slices.DeleteFunc(run.Samples, func(s result.Sample) bool { return s.Round != 20 })
	f := stats.Analyse(run)
	html, _, err := render(run, f)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"tables": string(tables(f)), "page": string(html)} {
		if interval := regexp.MustCompile(`\[\d.*, .*\d\]`).FindString(text); interval != "" || !strings.Contains(text, "too few rounds") {
			t.Errorf("the %s hold %q", name, interval)
		}
	}
}

func TestNoRowIsLost(t *testing.T) {
	run := fixture("peer", "other")
	f := stats.Analyse(run)
	html, figures, err := render(run, f)
	if err != nil {
		t.Fatal(err)
	}
	page, text := unescape(string(html)), string(tables(f))
	lost := 0
	for _, r := range f.Rows {
		name := rowName(r, rowUnit(r))
		for in, s := range map[string]string{"tables": section1(text, r.Scenario+"  ("), "page": section1(page, `id="`+sectionID(r.Scenario)+`"`)} {
			if !strings.Contains(s, name) {
				t.Errorf("%s %s is not in the %s", r.Scenario, r.Metric, in)
			}
			for p, q := range r.Ratio {
				if !strings.Contains(s, ratioNumber(q.Low)+", "+ratioNumber(q.High)) {
					t.Errorf("%s %s: the interval to %s is not in the %s", r.Scenario, r.Metric, p, in)
				}
			}
		}
		for p, v := range r.Verdict {
			if stats.ParseVerdict(v).Difference == stats.Lost {
				lost++
				want := r.Scenario + ": " + metricName(r.Metric) + " against " + p
				if !strings.Contains(text, want) || !strings.Contains(page, want) {
					t.Errorf("the summary hides that it lost: %s", want)
				}
			}
		}
	}
	if lost == 0 {
		t.Error("the fixture has no lost row: the test proves nothing")
	}
	for _, d := range figures {
		if !strings.Contains(string(html), d.figure.Inline()) {
			t.Errorf("figure %s is not on the page", d.name)
		}
	}
}

// section1 is what follows a heading, up to the next of its kind.
func section1(s, from string) string {
	_, rest, _ := strings.Cut(s, from)
	if strings.HasPrefix(from, "id=") {
		out, _, _ := strings.Cut(rest, "</section>")
		return out
	}
	out, _, _ := strings.Cut(rest, "\n\n")
	return out
}

func unescape(s string) string {
	return strings.NewReplacer("&#39;", "'", "&#34;", `"`, "&lt;", "<", "&gt;", ">", "&amp;", "&").Replace(s)
}

func TestWriteIsDeterministic(t *testing.T) {
	read := func(run result.Run) map[string]string {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, Plots), 0o755); err != nil {
			t.Fatal(err)
		}
		old := filepath.Join(dir, Plots, "of-an-older-run.svg")
		if err := os.WriteFile(old, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Write(dir, run, stats.Analyse(run)); err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		plots, _ := filepath.Glob(filepath.Join(dir, Plots, "*"))
		for _, name := range append(files, plots...) {
			if b, err := os.ReadFile(name); err == nil {
				rel, _ := filepath.Rel(dir, name)
				out[rel] = string(b)
			}
		}
		return out
	}
	a, b := read(fixture("peer")), read(fixture("peer"))
	if d := cmp.Diff(a, b); d != "" {
		t.Error("the same run gave other files:", d)
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for n := range a {
			if !yield(n) {
				return
			}
		}
	})
	want := []string{
		"plots/bulk-1-up.cpu_s_per_gb_proxies.drift.svg", "plots/bulk-1-up.cpu_s_per_gb_proxies.pairs.svg", "plots/bulk-1-up.gb_per_s.bars.svg", "plots/goals.svg",
		"plots/idle-10k.user_bytes_per_conn.drift.svg", "plots/idle-10k.user_bytes_per_conn.pairs.svg",
		"plots/open-100-1000.cpu_us_per_rt_proxies.pairs.svg", "plots/open-100-1000.latency.percentiles.svg", "plots/open-100-1000.rtt_p50_us.drift.svg",
		"report.html", "results.json", "samples.json", "tables.md",
	}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
	golden(t, "tables.golden.md", []byte(a["tables.md"]))
	golden(t, "goals.golden.svg", []byte(a["plots/goals.svg"]))
	golden(t, "drift.golden.svg", []byte(a["plots/bulk-1-up.cpu_s_per_gb_proxies.drift.svg"]))
}

// TestResultsFormat pins the names that other tools read in results.json.
func TestResultsFormat(t *testing.T) {
	dir := t.TempDir()
	run := fixture("peer")
	f := stats.Analyse(run)
	if err := Write(dir, run, f); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, Results))
	if err != nil {
		t.Fatal(err)
	}
	var raw struct {
		Machine map[string]any
		Rows    []struct {
			Goal, Scenario, Metric, Unit string
			Values                       map[string]float64
			Ratio                        map[string]struct{ Point, Low, High float64 }
			Rounds                       int
			Won                          map[string]int
		}
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		t.Fatal(err)
	}
	r := raw.Rows[1]
	if r.Goal != "P1" || r.Scenario != "bulk-1-up" || r.Metric != "cpu_s_per_gb_proxies" || r.Unit != "CPU-s/GB" || r.Rounds != 18 || r.Won["peer"] != 18 ||
		r.Values["marrow"] == 0 || r.Values["peer"] == 0 || r.Ratio["peer"].Low == 0 || r.Ratio["peer"].High < r.Ratio["peer"].Point || raw.Machine["cpu"] == "" {
		t.Errorf("%+v", r)
	}
	for _, path := range []string{dir, filepath.Join(dir, Results)} {
		back, err := Read(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(f, back, cmpopts.EquateEmpty()); d != "" {
			t.Error(d)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"empty.json": "", "no.json": "{}", "other.json": `{"rows": 5}`, "samples.json": `{"samples": []}`} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want an error that names the file", name, err)
		}
	}
	if _, err := Read(filepath.Join(dir, "gone")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestPageIsOneFile: nothing on the page is fetched from elsewhere.
func TestPageIsOneFile(t *testing.T) {
	run := fixture("peer")
	html, _, err := render(run, stats.Analyse(run))
	if err != nil {
		t.Fatal(err)
	}
	foreign := regexp.MustCompile(`(?i)(src\s*=|href="[^#]|@import|url\(|<script|<link|<iframe|https?://)`)
	if m := foreign.FindAllString(string(html), -1); len(m) > 0 {
		t.Errorf("the page reaches for %q", m)
	}
	text := string(html)
	order := []string{`id="summary"`, `id="machine"`, `id="method"`, `id="scenarios"`, `id="dropped"`, `id="repeat"`}
	for i, s := range order {
		if !strings.Contains(text, s) || i > 0 && strings.Index(text, s) < strings.Index(text, order[i-1]) {
			t.Errorf("%s is not where it belongs", s)
		}
	}
	for _, want := range []string{"prefers-color-scheme: dark", "tabular-nums", "So 2 of 43 rounds were dropped.", "--peer &#39;peer=/opt/peer/ztunnel --flag&#39;"} {
		if !strings.Contains(text, want) && !strings.Contains(text, strings.ReplaceAll(want, "&#39;", "'")) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if alone, _, err := render(fixture(), stats.Analyse(fixture())); err != nil || !strings.Contains(string(alone), "No peer took part") {
		t.Errorf("a run without peers: %v", err)
	}
}

func TestPageEscapes(t *testing.T) {
	const evil = `<script>alert("x")</script>&'`
	run := fixture("peer", evil)
	run.Machine.CPU, run.Machine.Kernel, run.Machine.Commit = evil, evil, evil
	run.Machine.Versions["peer"], run.Machine.Command = evil, []string{evil}
	run.Scenarios[0].Title = evil
	run.Dropped = []result.DroppedRound{{Scenario: "bulk-1-up", Round: 3, Why: evil}}
	run.Scenarios[0].Metrics[0].Unit = evil
	html, figures, err := render(run, stats.Analyse(run))
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	Markdown(&text, stats.Analyse(run))
	if strings.Contains(string(html), "<script") || strings.Contains(text.String(), "<script") {
		t.Error("text became markup")
	}
	for _, d := range figures {
		if bytes.Contains(d.figure.Standalone(), []byte("<script")) {
			t.Errorf("text became markup in %s", d.name)
		}
		if strings.ContainsAny(d.name, `/<>"' `) {
			t.Errorf("%q is no name for a file", d.name)
		}
	}
}

func TestGate(t *testing.T) {
	run := fixture("peer")
	f := stats.Analyse(run)
	budgets := Budgets(run.Scenarios)
	if d := cmp.Diff([]Budget{{Scenario: "bulk-1-up", Metric: "syscalls_per_mb_source", Unit: "calls/MB", Most: 40}}, budgets); d != "" {
		t.Fatal(d)
	}
	if err := Gate(f, budgets); err != nil {
		t.Error(err)
	}
	for name, x := range map[string]struct {
		budget Budget
		want   string
	}{
		"breach":       {Budget{Metric: "syscalls_per_mb_source", Most: 11}, "bulk-1-up syscalls_per_mb_source = 12.0 calls/MB, budget 11.0"},
		"none allowed": {Budget{Metric: "syscalls_per_mb_source"}, "budget 0:"},
		"not measured": {Budget{Scenario: "gone", Metric: "syscalls_per_mb_source", Most: 40}, "gone syscalls_per_mb_source: not measured"},
		"unknown":      {Budget{Metric: "copies", Most: 1}, "any scenario copies: not measured"},
		"a timing":     {Budget{Metric: "gb_per_s", Most: 1}, "it is a timing"},
	} {
		if err := Gate(f, []Budget{x.budget}); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
	// The peer's counters are not ours to gate.
	if err := Gate(f, []Budget{{Metric: "syscalls_per_mb_source", Most: 12}}); err != nil {
		t.Error(err)
	}
	err := Gate(f, []Budget{{Metric: "a", Most: 1}, {Metric: "b", Most: 1}})
	if err == nil || !strings.Contains(err.Error(), " a:") || !strings.Contains(err.Error(), " b:") {
		t.Errorf("%v, want both breaches", err)
	}
}

func TestUnits(t *testing.T) {
	for _, x := range []struct {
		unit string
		v    float64
		want string
	}{
		{"B", 12, "12.0 B"},
		{"B", 3900, "3.90 KB"},
		{"B/s", 3.1e8, "310 MB/s"},
		{"µs", 69.94, "69.9 µs"},
		{"us", 1234, "1.23 ms"},
		{"µs", 2.5e6, "2.50 s"},
		{"ns", 1500, "1.50 µs"},
		{"s", 0.25, "0.250 s"},
		{"s", 0.0025, "2.50 ms"},
		{"s", 0.00025, "250 µs"},
		{"CPU-s/GB", 0.31, "0.310 CPU-s/GB"},
		{"CPU-s/GB", 2.9, "2.90 CPU-s/GB"},
		{"CPU-s/conn", 0.0004, "400 CPU-µs/conn"},
		{"CPU-µs", 1500, "1.50 CPU-ms"},
		{"1/s", 12345.6, "12,346 1/s"},
		{"MiB", 999.7, "1000 MiB"},
		{"goroutines", 0, "0 goroutines"},
		{"×", 0.00123, "0.00123 ×"},
		{"calls", -5, "-5.00 calls"},
	} {
		u := unitOf(x.unit, x.v)
		if got := u.show(x.v) + " " + u.name; got != x.want {
			t.Errorf("%g %s is shown as %q, want %q", x.v, x.unit, got, x.want)
		}
	}
	for v, want := range map[float64]string{1: "1.00", 0.998: "0.998", 1.0041: "1.004", 0.9: "0.90", 12.3: "12.30", 0: "0.00", 0.012: "0.012", 1234: "1,234"} {
		if got := ratioNumber(v); got != want {
			t.Errorf("ratio %g is shown as %q, want %q", v, got, want)
		}
	}
}

// TestMetricNames: every metric of the suite has a name of its own, in words.
func TestMetricNames(t *testing.T) {
	for _, s := range scenario.All() {
		seen := map[string]string{}
		for _, m := range s.Metrics {
			name := metricName(m.Name) + unitOf(m.Unit, 1).name
			if other, ok := seen[name]; ok {
				t.Errorf("%s: %s and %s are both shown as %q", s.Name, m.Name, other, name)
			}
			seen[name] = m.Name
			if strings.ContainsAny(name, "_") || strings.HasPrefix(name, " ") || strings.Contains(name, "  ") {
				t.Errorf("%s: %s is shown as %q", s.Name, m.Name, name)
			}
		}
	}
	for key, want := range map[string]string{
		"cpu_s_per_gb_proxies": "CPU per GB, proxies", "conns_per_cpu_s": "connections per CPU-second", "rtt_p999_us": "round trip p99.9",
		"syscalls_per_mb_destination": "syscalls per MB, destination", "user_bytes_per_conn": "user memory per connection", "rt_per_s": "round trip per second",
		"gb_per_s": "throughput",
	} {
		if got := metricName(key); got != want {
			t.Errorf("%s is shown as %q, want %q", key, got, want)
		}
	}
}
