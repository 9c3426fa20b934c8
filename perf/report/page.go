package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"strings"

	"github.com/marrowmesh/marrow/perf/report/plot"
	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/stats"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

// page is what the template prints.
type page struct {
	Style       template.CSS
	Sub         string
	Nav         []link
	Tiles       []tile
	Peers       bool
	GoalsFigure template.HTML
	Goals       []line
	Lost        []string
	Budgets     []budgetLine
	Machine     []fact
	Method      []string
	Scenarios   []section
	DropRule    string
	Dropped     []result.DroppedRound
	Command     string
}

type link struct{ ID, Name string }

type tile struct {
	Count       int
	Text, Class string
}

// line is one row against one peer.
type line struct {
	ID, Goal, Scenario, Metric, Name string
	Values                           []string
	Peer, Point, Interval, Won       string
	Bound                            string
	Difference, Class                string
	Standing, StandingClass          string
}

type budgetLine struct{ ID, Scenario, Metric, Value, Bound, Kept, Class string }

// section is one scenario.
type section struct {
	ID, Title, Sub string
	Tables         []htmlTable
	Figures        []template.HTML
}

type htmlTable struct {
	Head              string
	Impls             []string
	Judged, ManyPeers bool
	Lines             []line
}

// render makes the page and the figures that it shows.
func render(run result.Run, f result.File) ([]byte, []drawing, error) {
	a := newArtist(run, f)
	p := page{
		Style: template.CSS(pageCSS + plot.Style), Sub: subtitle(f), Peers: len(peersOf(f)) > 0,
		Machine: machineLines(f.Machine), Method: method(run, f), Dropped: f.Dropped, Command: command(f.Machine),
		DropRule: upper(stats.Rule()) + ". " + dropCount(run, f),
	}
	var all []drawing
	if d, ok := a.standings(); ok {
		all = append(all, d)
		p.GoalsFigure = template.HTML(d.figure.Inline()) // package plot escapes every label (FuzzLabels)
	}
	p.Goals = goalLines(f)
	p.Tiles = tiles(f)
	_, p.Lost = summary(f)
	p.Budgets = budgetLines(f)
	for _, g := range grouping(f.Rows) {
		s := scenarioOf(run, g.scenario)
		ds := a.drawings(s, g)
		all = append(all, ds...)
		p.Scenarios = append(p.Scenarios, a.section(s, g, ds))
	}
	for _, n := range []string{"summary", "machine", "method", "scenarios", "dropped", "repeat"} {
		p.Nav = append(p.Nav, link{n, map[string]string{"dropped": "Dropped rounds", "repeat": "Repeat it"}[n]})
		if last := &p.Nav[len(p.Nav)-1]; last.Name == "" {
			last.Name = upper(n)
		}
	}
	t, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return nil, nil, fmt.Errorf("the page's template: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return nil, nil, fmt.Errorf("the page: %w", err)
	}
	return b.Bytes(), all, nil
}

func subtitle(f result.File) string {
	parts := []string{"commit " + orNone(f.Machine.Commit), orNone(f.Machine.CPU), fmt.Sprintf("%d cores", f.Machine.Cores), "Linux " + orNone(f.Machine.Kernel)}
	if !f.Machine.Started.IsZero() {
		parts = append(parts, f.Machine.Started.UTC().Format("2 January 2006, 15:04 UTC"))
	}
	return strings.Join(parts, " · ")
}

// method says in five sentences how the numbers came about.
func method(run result.Run, f result.File) []string {
	return []string{
		fmt.Sprintf("Every round runs each scenario with all implementations (%s), one after the other in random order (seed %d), "+
			"and every second round in the reverse of the order before.", strings.Join(newArtist(run, f).impls, ", "), f.Machine.Seed),
		upper(stats.Rule()) + ".",
		"A value is the geometric mean over the rounds that count; a ratio is that of the rounds' own ratios, marrow divided by the peer, " +
			"and for latency the quotient of what both add to direct.",
		fmt.Sprintf("The 95 %% interval is a bootstrap over rounds (%s resamples, quantiles widened for few rounds; below %d rounds it is Student's): "+
			"a difference is called a win, or lost, only if the interval excludes 1.", grouped(stats.Resamples), stats.BootRounds),
		"A goal stands as ship or ahead only if the whole interval is within its bound; no value of one machine is compared with another's.",
	}
}

func dropCount(run result.Run, f result.File) string {
	total, dropped := map[[2]string]bool{}, 0
	for _, s := range run.Samples {
		total[[2]string{s.Scenario, fmt.Sprint(s.Round)}] = true
	}
	for _, d := range f.Dropped {
		if d.Round > 0 {
			dropped++
		}
	}
	return fmt.Sprintf("So %d of %d rounds were dropped.", dropped, max(len(total), dropped))
}

// scenarioOf finds a scenario; a file may name one that the run does not hold.
func scenarioOf(run result.Run, name string) result.Scenario {
	for _, s := range run.Scenarios {
		if s.Name == name {
			return s
		}
	}
	return result.Scenario{Name: name}
}

func tiles(f result.File) []tile {
	count := map[string]int{}
	for _, r := range f.Rows {
		for _, v := range r.Verdict {
			parsed := stats.ParseVerdict(v)
			count[parsed.Difference]++
			count[parsed.Standing]++
		}
	}
	out := []tile{
		{count[stats.Win], "rows won", "good"},
		{count[stats.NoDifference] + count[stats.TooFew], "rows without a difference shown", ""},
		{count[stats.Lost] + count[stats.Failed], "rows lost", "bad"},
		{count[stats.Ahead], "goal rows ahead", "good"},
		{count[stats.Ship], "goal rows at ship", "good"},
		{count[stats.Unshown], "goal rows where ship is not shown", "mid"},
		{count[stats.Behind], "goal rows behind", "bad"},
	}
	for i := range out {
		if out[i].Count == 0 {
			out[i].Class = ""
		}
	}
	return out
}

// lineOf is a row against one peer, which may be none.
func lineOf(r result.Row, peer string) line {
	l := line{
		ID: sectionID(r.Scenario), Goal: r.Goal, Scenario: r.Scenario, Metric: metricName(r.Metric), Peer: peer, Point: none, Interval: none,
		Won: wonText(r, peer), Bound: boundsText(r.Ship, r.Ahead, r.HigherIsBetter),
	}
	if r.Added {
		l.Metric += ", of what is added to direct"
	}
	if r.HigherIsBetter {
		l.Metric += " ↑"
	}
	if q, ok := r.Ratio[peer]; ok {
		l.Point = ratioNumber(q.Point)
		if r.Rounds >= stats.MinRounds {
			l.Interval = "[" + ratioNumber(q.Low) + ", " + ratioNumber(q.High) + "]"
		}
	}
	v := stats.ParseVerdict(r.Verdict[peer])
	l.Difference, l.Standing = v.Difference, standingText(v)
	l.Class = map[string]string{stats.Win: "good", stats.Lost: "bad", stats.Failed: "bad"}[v.Difference]
	l.StandingClass = map[string]string{stats.Ahead: "good", stats.Ship: "good", stats.Unshown: "mid", stats.Behind: "bad"}[v.Standing]
	return l
}

func goalLines(f result.File) []line {
	var out []line
	for _, goal := range goalOrder(f.Rows) {
		for _, r := range f.Rows {
			if r.Goal != goal || r.Ship == 0 && r.Ahead == 0 {
				continue
			}
			for _, p := range peersOf(f) {
				if _, judged := r.Verdict[p]; judged {
					out = append(out, lineOf(r, p))
				}
			}
		}
	}
	return out
}

func budgetLines(f result.File) []budgetLine {
	var out []budgetLine
	for _, r := range f.Rows {
		v, ok := r.Values[result.Marrow]
		if !r.Counter || r.Bound == 0 || !ok {
			continue
		}
		u := unitOf(r.Unit, max(v, r.Bound))
		l := budgetLine{
			ID: sectionID(r.Scenario), Scenario: r.Scenario, Metric: metricName(r.Metric) + " (" + u.name + ")",
			Value: u.show(v), Bound: u.show(r.Bound), Kept: "kept", Class: "good",
		}
		if v > r.Bound {
			l.Kept, l.Class = "broken", "bad"
		}
		out = append(out, l)
	}
	return out
}

func sectionID(scenario string) string { return "s-" + fileName(scenario) }

func (a artist) section(s result.Scenario, g group, ds []drawing) section {
	out := section{ID: sectionID(s.Name), Title: title(s), Sub: strings.Join(append([]string{s.Name, g.roundsText()}, a.quiet(s.Name)...), " · ")}
	timings, counters := g.split()
	if len(timings) > 0 {
		out.Tables = append(out.Tables, a.table("", timings))
	}
	if len(counters) > 0 {
		out.Tables = append(out.Tables, a.table("Counted, not timed", counters))
	}
	for _, d := range ds {
		out.Figures = append(out.Figures, template.HTML(d.figure.Inline())) // package plot escapes every label (FuzzLabels)
	}
	return out
}

// quiet says how quiet the machine was during the rounds that count.
func (a artist) quiet(scenario string) []string {
	steal, foreign, n := 0.0, 0.0, 0
	for _, s := range a.run.Samples {
		if s.Scenario == scenario && !a.dropped[scenario][s.Round] && s.Failed == "" {
			steal, foreign, n = math.Max(steal, s.Noise.Steal), math.Max(foreign, s.Noise.Foreign), n+1
		}
	}
	if n == 0 {
		return nil
	}
	return []string{"stolen by the hypervisor: at most " + percent(steal), "used by foreign processes: at most " + percent(foreign)}
}

func (a artist) table(head string, rows []result.Row) htmlTable {
	impls, peers := implsOf(a.file), peersOf(a.file)
	t := htmlTable{Head: head, Impls: impls, Judged: len(peers) > 0, ManyPeers: len(peers) > 1}
	for _, r := range rows {
		u := rowUnit(r)
		values := make([]string, 0, len(impls))
		for _, impl := range impls {
			values = append(values, valueText(r, u, impl))
		}
		first := true
		for _, p := range peers {
			if _, judged := r.Verdict[p]; !judged {
				continue
			}
			l := lineOf(r, p)
			if l.Standing != "" && l.Goal != "" {
				l.Standing = l.Goal + " " + l.Standing
			}
			if l.Values = make([]string, len(impls)); first {
				l.Name, l.Values = rowName(r, u), values
			}
			t.Lines, first = append(t.Lines, l), false
		}
		if first {
			t.Lines = append(t.Lines, line{Name: rowName(r, u), Values: values})
		}
	}
	return t
}
