package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/marrowmesh/marrow/perf/report/plot"
	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/stats"
)

// drawing is a figure with the name of its file, without directory and ending.
type drawing struct {
	name   string
	figure plot.Figure
}

// artist draws what a run and its file hold.
type artist struct {
	run     result.Run
	file    result.File
	impls   []string
	dropped map[string]map[int]bool // scenario -> rounds that do not count
}

func newArtist(run result.Run, f result.File) artist {
	a := artist{run: run, file: f, impls: slices.Clone(run.Impls), dropped: map[string]map[int]bool{}}
	for _, impl := range implsOf(f) {
		if !slices.Contains(a.impls, impl) {
			a.impls = append(a.impls, impl)
		}
	}
	for _, d := range f.Dropped {
		if a.dropped[d.Scenario] == nil {
			a.dropped[d.Scenario] = map[int]bool{}
		}
		a.dropped[d.Scenario][d.Round] = true
	}
	return a
}

// label gives an implementation its colour: the same in all figures.
func (a artist) label(impl string) plot.Label {
	switch impl {
	case result.Direct:
		return plot.Label{Name: impl, Colour: 0}
	case result.Marrow:
		return plot.Label{Name: impl, Colour: 1}
	}
	colour := 2
	for _, i := range a.impls {
		if i == impl {
			break
		}
		if i != result.Direct && i != result.Marrow {
			colour++
		}
	}
	return plot.Label{Name: impl, Colour: colour}
}

// drawings are the figures of one scenario: what it costs, how fast it is, how
// long it takes, and whether the machine kept still.
func (a artist) drawings(s result.Scenario, g group) []drawing {
	var out []drawing
	cost, rate, main := leading(g)
	if cost != nil {
		out = append(out, drawing{fileName(s.Name, cost.Metric, "pairs"), a.pairs(s, *cost)})
	}
	if rate != nil {
		out = append(out, drawing{fileName(s.Name, rate.Metric, "bars"), a.bars(s, *rate)})
	}
	if curves := a.curves(s.Name); len(curves) > 0 {
		out = append(out, drawing{fileName(s.Name, "latency", "percentiles"), a.percentiles(s, curves)})
	}
	if main != nil {
		out = append(out, drawing{fileName(s.Name, main.Metric, "drift"), a.drift(s, *main)})
	}
	return out
}

// leading picks the rows worth a figure: a cost (of CPU, if there is one), a
// rate, and the row that stands for the scenario. Rows with a goal come first.
func leading(g group) (cost, rate, main *result.Row) {
	timings, _ := g.split()
	timings = slices.DeleteFunc(timings, func(r result.Row) bool { return len(r.PerRound) == 0 }) // nothing counts
	slices.SortStableFunc(timings, func(a, b result.Row) int { return cmp.Compare(weight(a), weight(b)) })
	for i := range timings {
		r := &timings[i]
		if main == nil {
			main = r
		}
		if r.HigherIsBetter && rate == nil {
			rate = r
		}
		if !r.HigherIsBetter && !r.Added && cost == nil {
			cost = r
		}
	}
	return cost, rate, main
}

func weight(r result.Row) int {
	w := 0
	if r.Goal == "" {
		w += 2
	}
	if !strings.HasPrefix(r.Metric, "cpu_") {
		w++
	}
	return w
}

// better says in which direction a row improves.
func better(r result.Row) string {
	if r.HigherIsBetter {
		return "higher is better"
	}
	return "lower is better"
}

func labelled(r result.Row, u unit) string { return upper(metricName(r.Metric)) + ", " + u.name }

func upper(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// title is a scenario's title for figures.
func title(s result.Scenario) string {
	if s.Title == "" {
		return s.Name
	}
	return s.Title
}

// scaled divides values for an axis.
func scaled(vs []float64, u unit) []float64 {
	out := make([]float64, len(vs))
	for i, v := range vs {
		out[i] = v / u.per
	}
	return out
}

func (a artist) pairs(s result.Scenario, r result.Row) plot.Figure {
	u := rowUnit(r)
	var columns []plot.Column
	for _, impl := range a.impls {
		if vs, ok := r.PerRound[impl]; ok {
			columns = append(columns, plot.Column{Label: a.label(impl), Values: scaled(vs, u), Typical: r.Values[impl] / u.per, Say: u.show(r.Values[impl])})
		}
	}
	return plot.Pairs(plot.Text{
		Title: upper(metricName(r.Metric)), Sub: title(s), Y: u.name, X: "a dot per round; a line joins one round; the bar is the typical value",
		Note: fmt.Sprintf("%d rounds that count, %s", r.Rounds, better(r)), About: a.describe(r, u),
	}, columns)
}

// describe says a row in a sentence, for those who cannot see the figure.
func (a artist) describe(r result.Row, u unit) string {
	var parts []string
	for _, impl := range a.impls {
		if _, ok := r.Values[impl]; ok {
			parts = append(parts, impl+" "+valueText(r, u, impl)+" "+u.name)
		}
	}
	for _, p := range sorted(r.Ratio) {
		parts = append(parts, "marrow divided by "+p+" "+rowRatio(r, p))
	}
	return upper(metricName(r.Metric)) + ": " + strings.Join(parts, "; ") + "."
}

func (a artist) bars(s result.Scenario, r result.Row) plot.Figure {
	u := rowUnit(r)
	var bars []plot.Bar
	for _, impl := range a.impls {
		vs, ok := r.PerRound[impl]
		if !ok {
			continue
		}
		m := stats.Mean(vs, a.file.Machine.Seed, r.Scenario, r.Metric, impl)
		bars = append(bars, plot.Bar{Label: a.label(impl), Value: m.Point / u.per, Low: m.Low / u.per, High: m.High / u.per, Say: u.show(m.Point) + " " + u.name})
	}
	return plot.Bars(plot.Text{
		Title: upper(metricName(r.Metric)), Sub: title(s), X: labelled(r, u),
		Note: fmt.Sprintf("typical value with 95 %% interval over %d rounds, %s", r.Rounds, better(r)), About: a.describe(r, u),
	}, bars)
}

// drift shows all rounds, those that do not count too: one sees what was dropped.
func (a artist) drift(s result.Scenario, r result.Row) plot.Figure {
	u := rowUnit(r)
	at := map[int]map[string]float64{}
	for _, x := range a.run.Samples {
		v, ok := x.Metrics[r.Metric]
		if x.Scenario != s.Name || !ok {
			continue
		}
		if at[x.Round] == nil {
			at[x.Round] = map[string]float64{}
		}
		at[x.Round][x.Impl] = v
	}
	rounds := make([]int, 0, len(at))
	for round := range at {
		rounds = append(rounds, round)
	}
	slices.Sort(rounds)
	out := make([]bool, len(rounds))
	dropped := 0
	for i, round := range rounds {
		if out[i] = a.dropped[s.Name][round]; out[i] {
			dropped++
		}
	}
	var tracks []plot.Track
	for _, impl := range a.impls {
		vs, any := make([]float64, len(rounds)), false
		for i, round := range rounds {
			v, ok := at[round][impl]
			if vs[i] = math.NaN(); ok {
				vs[i], any = v/u.per, true
			}
		}
		if any {
			tracks = append(tracks, plot.Track{Label: a.label(impl), Values: vs})
		}
	}
	note := fmt.Sprintf("all %d rounds in the order of the run, %s", len(rounds), better(r))
	if dropped > 0 {
		note += fmt.Sprintf("; %d shaded: they do not count", dropped)
	}
	return plot.Drift(plot.Text{Title: upper(metricName(r.Metric)) + ", round by round", Sub: title(s), Note: note, X: "round", Y: u.name, About: a.describe(r, u)}, rounds, out, tracks)
}

// curves adds the histograms of the rounds that count.
func (a artist) curves(scenario string) []plot.Curve {
	var out []plot.Curve
	for _, impl := range a.impls {
		counts := map[float64]float64{}
		total := 0.0
		for _, x := range a.run.Samples {
			if x.Scenario != scenario || x.Impl != impl || a.dropped[scenario][x.Round] || x.Failed != "" {
				continue
			}
			for _, b := range x.Histogram {
				counts[b.UpTo] += float64(b.Count)
				total += float64(b.Count)
			}
		}
		if total == 0 {
			continue
		}
		edges := make([]float64, 0, len(counts))
		for e := range counts {
			edges = append(edges, e)
		}
		slices.Sort(edges)
		c := plot.Curve{Label: a.label(impl), Count: total}
		sum := 0.0
		for _, e := range edges {
			sum += counts[e]
			c.Points = append(c.Points, plot.Quantile{Part: sum / total, Micros: e})
		}
		out = append(out, c)
	}
	return out
}

func (a artist) percentiles(s result.Scenario, curves []plot.Curve) plot.Figure {
	var about []string
	for _, c := range curves {
		about = append(about, fmt.Sprintf("%s %s", c.Name, grouped(c.Count)))
	}
	said := strings.Join(about, ", ")
	return plot.Percentiles(plot.Text{
		Title: "Latency by percentile", Sub: title(s), X: "part of all operations that took at most this long", Y: "latency, logarithmic",
		Note: "lower is better; operations: " + said, About: "Latency by percentile; operations: " + said + ".",
	}, curves)
}

// standings draws every judged row against its goal, rates turned over so that
// less than 1 is better in all of them.
func (a artist) standings() (drawing, bool) {
	var rows []plot.Standing
	for _, goal := range goalOrder(a.file.Rows) {
		for _, r := range a.file.Rows {
			if r.Goal != goal {
				continue
			}
			for _, p := range peersOf(a.file) {
				q, ok := r.Ratio[p]
				if !ok || stats.ParseVerdict(r.Verdict[p]).Standing == "" {
					continue
				}
				rows = append(rows, a.standing(r, p, q))
			}
		}
	}
	return drawing{"goals", plot.Standings(plot.Text{
		Title: "Marrow against its goals", X: "marrow ÷ peer, logarithmic; rates are turned over (peer ÷ marrow)",
		Sub:   "point and 95 % interval of each row that has a goal",
		Note:  "left of 1 marrow is better; \"ship\" and \"ahead\" are reached when the whole interval lies left of the mark",
		About: "Every row that has a goal, with its ratio to the peer, the interval, and the goal's bounds. The table below holds the same numbers.",
	}, rows)}, len(rows) > 0
}

func (a artist) standing(r result.Row, peer string, q result.Ratio) plot.Standing {
	s := plot.Standing{
		Group: r.Goal, Name: r.Scenario + ": " + metricName(r.Metric), Colour: 1, Point: q.Point, Low: q.Low, High: q.High, Ship: r.Ship, Ahead: r.Ahead,
		Say: rowRatio(r, peer),
	}
	if len(peersOf(a.file)) > 1 {
		s.Name += " ÷ " + peer
		s.Colour = a.label(peer).Colour
	}
	if r.HigherIsBetter {
		s.Point, s.Low, s.High, s.Ship, s.Ahead = over(q.Point), over(q.High), over(q.Low), over(r.Ship), over(r.Ahead)
		s.Say += " ↑"
	}
	return s
}

// over is 1/v; of nothing it is nothing.
func over(v float64) float64 {
	if v == 0 {
		return 0
	}
	return 1 / v
}

// fileName makes a name that any file system takes.
func fileName(parts ...string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
			return r
		}
		return '-'
	}, strings.TrimLeft(strings.Join(parts, "."), "."))
}
