package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/stats"
)

// Markdown prints the machine block and all rows as tables for a document. It
// holds what Tables holds: rows that are lost, too.
func Markdown(w io.Writer, f result.File) {
	b := bufio.NewWriter(w)
	markdownTable(b, []string{"machine", ""}, func(add func(...string)) {
		for _, l := range machineLines(f.Machine) {
			add(l.Name, l.Text)
		}
	})
	impls, peers := implsOf(f), peersOf(f)
	head := append([]string{"scenario", "metric"}, impls...)
	if len(peers) > 0 {
		head = append(head, "peer", "marrow ÷ peer [95 %]", "rounds won", "verdict", "goal")
	}
	markdownTable(b, head, func(add func(...string)) {
		for _, r := range f.Rows {
			markdownRow(add, r, impls, peers)
		}
	})
	if len(f.Dropped) > 0 {
		markdownTable(b, []string{"dropped", "why"}, func(add func(...string)) {
			for _, d := range f.Dropped {
				add(droppedWhere(d), d.Why)
			}
		})
	}
	_ = b.Flush() // as in Tables
}

func markdownRow(add func(...string), r result.Row, impls, peers []string) {
	u := rowUnit(r)
	cells := []string{"`" + r.Scenario + "`", rowName(r, u)}
	for _, impl := range impls {
		cells = append(cells, valueText(r, u, impl))
	}
	judged := false
	for _, p := range peers {
		text, ok := r.Verdict[p]
		if !ok {
			continue
		}
		if judged { // the values stand in the first line
			cells = make([]string, 2+len(impls))
		}
		judged = true
		v := stats.ParseVerdict(text)
		add(append(cells, p, rowRatio(r, p), wonText(r, p), v.Difference, strings.TrimSpace(r.Goal+" "+standingText(v)))...)
	}
	if !judged {
		add(cells...)
	}
}

// markdownTable prints a table; what stands in a cell cannot end it.
func markdownTable(w io.Writer, head []string, rows func(add func(...string))) {
	add := func(cells ...string) {
		for len(cells) < len(head) {
			cells = append(cells, "")
		}
		for i, c := range cells {
			cells[i] = strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(c)
		}
		_, _ = fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
	add(head...)
	add(strings.Split(strings.Repeat("---,", len(head)-1)+"---", ",")...)
	rows(add)
	_, _ = fmt.Fprintln(w)
}
