package report

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/stats"
)

// Tables prints a table per scenario, then what was dropped, the machine, and a
// summary of the goals. Counters stand below the timings of their scenario. A
// value with a sign is what is added to direct's.
func Tables(w io.Writer, f result.File) {
	b := bufio.NewWriter(w)
	for _, s := range grouping(f.Rows) {
		scenarioTable(b, f, s)
	}
	droppedText(b, f.Dropped)
	machineText(b, f.Machine)
	goalsText(b, f)
	_ = b.Flush() // a terminal that is gone is the caller's to notice
}

// group is the rows of one scenario.
type group struct {
	scenario string
	rows     []result.Row
}

// grouping keeps the order in which scenarios first appear.
func grouping(rows []result.Row) []group {
	var out []group
	at := map[string]int{}
	for _, r := range rows {
		i, ok := at[r.Scenario]
		if !ok {
			i = len(out)
			at[r.Scenario] = i
			out = append(out, group{scenario: r.Scenario})
		}
		out[i].rows = append(out[i].rows, r)
	}
	return out
}

// split gives timings first, then counters.
func (g group) split() (timings, counters []result.Row) {
	for _, r := range g.rows {
		if r.Counter {
			counters = append(counters, r)
		} else {
			timings = append(timings, r)
		}
	}
	return timings, counters
}

// roundsText is "20 rounds", or a range where metrics differ. Counts, which are
// taken in some rounds only, matter where nothing else was measured.
func (g group) roundsText() string {
	rows, counters := g.split()
	if len(rows) == 0 {
		rows = counters
	}
	lo, hi := rows[0].Rounds, rows[0].Rounds
	for _, r := range rows {
		lo, hi = min(lo, r.Rounds), max(hi, r.Rounds)
	}
	switch {
	case lo != hi:
		return fmt.Sprintf("%d to %d rounds", lo, hi)
	case lo == 1:
		return "1 round"
	}
	return fmt.Sprintf("%d rounds", lo)
}

func scenarioTable(w io.Writer, f result.File, g group) {
	impls, peers := implsOf(f), peersOf(f)
	_, _ = fmt.Fprintf(w, "%s  (%s)\n", g.scenario, g.roundsText())
	lines := [][]string{header(impls, peers)}
	timings, counters := g.split()
	for _, r := range timings {
		lines = append(lines, rowLines(r, impls, peers)...)
	}
	if len(counters) > 0 && len(timings) > 0 {
		lines = append(lines, []string{"counted:"})
	}
	for _, r := range counters {
		lines = append(lines, rowLines(r, impls, peers)...)
	}
	align(w, lines, 1+len(impls))
	_, _ = fmt.Fprintln(w)
}

func header(impls, peers []string) []string {
	h := append([]string{"metric"}, impls...)
	switch len(peers) {
	case 0:
		return h
	case 1:
		return append(h, "ratio [95 % interval]", "won", "verdict", "goal")
	}
	return append(h, "ratio to", "[95 % interval]", "won", "verdict", "goal")
}

// rowLines is one line per row, or with several peers one per peer.
func rowLines(r result.Row, impls, peers []string) [][]string {
	u := rowUnit(r)
	line := []string{rowName(r, u)}
	for _, impl := range impls {
		line = append(line, addedText(r, u, impl))
	}
	var out [][]string
	for _, p := range peers {
		v, judged := r.Verdict[p]
		if !judged {
			continue
		}
		if len(out) > 0 {
			line = make([]string, 1+len(impls))
		}
		ratio := rowRatio(r, p)
		if len(peers) > 1 {
			line = append(line, p)
		}
		verdict := stats.ParseVerdict(v)
		goal := standingText(verdict)
		if goal != "" && r.Goal != "" {
			goal = r.Goal + " " + goal
		}
		out = append(out, append(line, ratio, wonText(r, p), verdict.Difference, goal))
	}
	if len(out) == 0 {
		out = append(out, line)
	}
	return out
}

// align prints cells in columns; those from 1 to numbers-1 are right-aligned.
func align(w io.Writer, lines [][]string, numbers int) {
	var widths []int
	for _, l := range lines {
		for i, cell := range l {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, l := range lines {
		var b strings.Builder
		for i, cell := range l {
			b.WriteString("  ")
			b.WriteString(pad(cell, widths[i], i > 0 && i < numbers))
		}
		_, _ = fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

func droppedText(w io.Writer, dropped []result.DroppedRound) {
	if len(dropped) == 0 {
		return
	}
	_, _ = fmt.Fprintln(w, "dropped for all implementations alike")
	for _, d := range dropped {
		_, _ = fmt.Fprintf(w, "  %s: %s\n", droppedWhere(d), d.Why)
	}
	_, _ = fmt.Fprintln(w)
}

func droppedWhere(d result.DroppedRound) string {
	if d.Round == 0 {
		return d.Scenario
	}
	return fmt.Sprintf("%s, round %d", d.Scenario, d.Round)
}

func machineText(w io.Writer, m result.Machine) {
	_, _ = fmt.Fprintln(w, "machine")
	for _, l := range machineLines(m) {
		first := l.Name
		for _, part := range wrap(l.Text) {
			_, _ = fmt.Fprintf(w, "  %s  %s\n", pad(first, 14, false), part)
			first = ""
		}
	}
	_, _ = fmt.Fprintln(w)
}

// wrap breaks s into lines for the machine block, at spaces where it can.
func wrap(s string) []string {
	const w = 92
	var out []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		for utf8.RuneCountInString(word) > w { // nowhere to break it nicely
			r := []rune(word)
			if line != "" {
				out = append(out, line)
				line = ""
			}
			out, word = append(out, string(r[:w])), string(r[w:])
		}
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > w {
			out = append(out, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(out, line)
}

// goalsText counts where the judged rows stand and lists those that are lost.
func goalsText(w io.Writer, f result.File) {
	lines, lost := summary(f)
	if len(lines) > 0 {
		_, _ = fmt.Fprintln(w, "goals (rows whose whole interval meets the bound)")
		table := [][]string{{"goal", "peer", "rows", "ahead", "ship", "not shown", "behind"}}
		for _, l := range lines {
			table = append(table, []string{
				l.Goal, l.Peer, fmt.Sprint(l.Rows), fmt.Sprint(l.Ahead), fmt.Sprint(l.Ship), fmt.Sprint(l.Unshown), fmt.Sprint(l.Behind),
			})
		}
		align(w, table, 0)
		_, _ = fmt.Fprintln(w)
	}
	if len(lost) > 0 {
		_, _ = fmt.Fprintln(w, "where marrow loses")
		for _, l := range lost {
			_, _ = fmt.Fprintln(w, "  "+l)
		}
		_, _ = fmt.Fprintln(w)
	}
}

// goalLine is where the rows of one goal stand against one peer.
type goalLine struct {
	Goal, Peer                         string
	Rows, Ahead, Ship, Unshown, Behind int
}

// summary counts the rows with a standing by goal and peer, and names the rows
// that are lost.
func summary(f result.File) (lines []goalLine, lost []string) {
	at := map[[2]string]int{}
	for _, g := range goalOrder(f.Rows) {
		for _, p := range peersOf(f) {
			at[[2]string{g, p}] = len(lines)
			lines = append(lines, goalLine{Goal: g, Peer: p})
		}
	}
	for _, r := range f.Rows {
		for _, p := range sorted(r.Verdict) {
			v := stats.ParseVerdict(r.Verdict[p])
			if text := loss(r, p, v); text != "" && !slices.Contains(lost, text) {
				lost = append(lost, text)
			}
			i, known := at[[2]string{r.Goal, p}]
			if v.Standing == "" || !known {
				continue
			}
			l := &lines[i]
			l.Rows++
			switch v.Standing {
			case stats.Ahead:
				l.Ahead++
			case stats.Ship:
				l.Ship++
			case stats.Unshown:
				l.Unshown++
			default:
				l.Behind++
			}
		}
	}
	kept := lines[:0]
	for _, l := range lines {
		if l.Rows > 0 {
			kept = append(kept, l)
		}
	}
	return kept, lost
}

// loss says what a row loses, or nothing. Where marrow failed it says so once
// for the scenario.
func loss(r result.Row, peer string, v stats.Verdict) string {
	switch v.Difference {
	case stats.Lost:
		text := fmt.Sprintf("%s: %s against %s: %s", r.Scenario, metricName(r.Metric), peer, v.Difference)
		if _, ok := r.Ratio[peer]; ok {
			text += ", " + rowRatio(r, peer)
		}
		return text
	case stats.Failed:
		return fmt.Sprintf("%s: %s in every round, %s did not", r.Scenario, v.Difference, peer)
	}
	return ""
}

// goalOrder is P1, P2, ... P10 as far as rows have them.
func goalOrder(rows []result.Row) []string {
	seen := map[string]bool{}
	for _, r := range rows {
		if r.Goal != "" {
			seen[r.Goal] = true
		}
	}
	return byNumber(sorted(seen))
}
