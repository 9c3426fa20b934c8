package plot

import (
	"fmt"
	"math"
	"strconv"
)

// Quantile is one point of a latency curve: this part of all operations took at
// most so many microseconds.
type Quantile struct{ Part, Micros float64 }

// Curve is the latency of one series, ascending.
type Curve struct {
	Label
	Points []Quantile
	// Count is the number of operations behind it: the curve ends where fewer
	// than one of them is left.
	Count float64
}

// Percentiles draws latency over percentile. Both axes are logarithmic: the
// horizontal one counts nines, so that the tail has as much room as the middle.
func Percentiles(t Text, curves []Curve) Figure {
	lo, hi, count := math.Inf(1), math.Inf(-1), 10.0
	for _, k := range curves {
		if finiteAll(k.Count) {
			count = max(count, k.Count)
		}
		for _, q := range k.Points {
			if q.Micros >= least && finiteAll(q.Micros) {
				lo, hi = min(lo, q.Micros), max(hi, q.Micros)
			}
		}
	}
	end := min(math.Log10(count), 6)
	y, yticks := logarithmic(lo, hi, duration)
	var xticks []tick
	for _, p := range []struct {
		part  float64
		label string
	}{{0, "0"}, {0.5, "50 %"}, {0.9, "90 %"}, {0.99, "99 %"}, {0.999, "99.9 %"}, {0.9999, "99.99 %"}, {0.99999, "99.999 %"}, {0.999999, "99.9999 %"}} {
		if v := nines(p.part); v <= end+1e-9 {
			xticks = append(xticks, tick{v, p.label})
		}
	}
	c := &canvas{}
	x, y := c.frame(t, top, scale{lo: 0, hi: end}, y, xticks, yticks)
	labels := make([]Label, 0, len(curves))
	for _, k := range curves {
		labels = append(labels, k.Label)
		last := min(end, math.Log10(max(k.Count, 1)))
		var ps []point
		for _, q := range k.Points {
			ps = append(ps, point{x.at(min(nines(q.Part), last)), y.at(q.Micros)})
		}
		c.path("line "+stroke(k.Colour), dash(k.Colour), ps)
		for _, m := range []float64{0.5, 0.9, 0.99, 0.999, 0.9999} { // a mark where one reads
			if v, ok := at(k.Points, m); ok && nines(m) <= last {
				c.mark(fill(k.Colour), tone(k.Colour), x.at(nines(m)), y.at(v))
			}
		}
	}
	c.key(labels)
	return c.figure(t, width, height)
}

// nines is 1 for 90 %, 2 for 99 %, 3 for 99.9 %.
func nines(part float64) float64 {
	if part >= 1 {
		return math.Inf(1)
	}
	return -math.Log10(1 - max(part, 0))
}

// at is the least value that the given part of operations stays within.
func at(points []Quantile, part float64) (float64, bool) {
	for _, q := range points {
		if q.Part >= part {
			return q.Micros, true
		}
	}
	return 0, false
}

// duration labels microseconds.
func duration(us float64) string {
	switch {
	case us >= 1e6:
		return short(us/1e6) + " s"
	case us >= 1e3:
		return short(us/1e3) + " ms"
	case us >= 1:
		return short(us) + " µs"
	}
	return short(us*1e3) + " ns"
}

func short(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }

// Track is what one series gave in each round; NaN where it gave nothing.
type Track struct {
	Label
	Values []float64
}

// Drift draws values over rounds, so that one sees whether the machine changed
// while it was measured. Rounds with out set did not count; they are shaded,
// and their values hollow.
func Drift(t Text, rounds []int, out []bool, tracks []Track) Figure {
	lo, hi := spread(tracks)
	if lo >= 0 && lo < 0.6*hi {
		lo = 0
	}
	y, yticks := linear(lo, hi)
	first, last := 1.0, 2.0
	if n := len(rounds); n > 0 {
		first, last = float64(rounds[0]), max(float64(rounds[n-1]), float64(rounds[0])+1)
	}
	step := max(1, round125((last-first)/12))
	var xticks []tick
	for v := math.Ceil(first/step) * step; v <= last; v += step {
		xticks = append(xticks, tick{v, fmt.Sprintf("%.0f", v)})
	}
	c := &canvas{}
	x, y := c.frame(t, top, scale{lo: first - 0.5, hi: last + 0.5}, y, xticks, yticks)
	for i, r := range rounds {
		if i < len(out) && out[i] {
			c.rect("out", x.at(float64(r)-0.5), top, x.at(float64(r)+0.5)-x.at(float64(r)-0.5), height-bottom-top, 0)
		}
	}
	labels := make([]Label, 0, len(tracks))
	for _, k := range tracks {
		labels = append(labels, k.Label)
		var ps []point
		for i, v := range k.Values {
			if i < len(rounds) && (i >= len(out) || !out[i]) {
				ps = append(ps, point{x.at(float64(rounds[i])), y.at(v)})
			}
		}
		c.path("line "+stroke(k.Colour), dash(k.Colour), ps)
		for i, v := range k.Values {
			if i >= len(rounds) {
				continue
			}
			class := fill(k.Colour)
			if i < len(out) && out[i] {
				class = "hollow " + stroke(k.Colour)
			}
			c.mark(class, tone(k.Colour), x.at(float64(rounds[i])), y.at(v))
		}
	}
	c.key(labels)
	return c.figure(t, width, height)
}

// spread is the least and the greatest number of all tracks.
func spread(tracks []Track) (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, k := range tracks {
		for _, v := range k.Values {
			if finiteAll(v) {
				lo, hi = min(lo, v), max(hi, v)
			}
		}
	}
	return lo, hi
}

// Column is one series of paired dots: a value per round, and the typical one.
type Column struct {
	Label
	Values  []float64 // in the order of rounds, the same for all columns; NaN: none
	Typical float64
	Say     string // the typical value in words: "1.52"
}

// Pairs draws one column of dots per series and a line per round between them:
// lines that run alike show a difference that the machine's mood does not explain.
func Pairs(t Text, columns []Column) Figure {
	tracks := make([]Track, len(columns))
	for i, k := range columns {
		tracks[i] = Track{Label: k.Label, Values: k.Values}
	}
	lo, hi := spread(tracks)
	if lo >= 0 && lo < 0.6*hi {
		lo = 0
	}
	y, yticks := linear(lo, hi)
	var xticks []tick
	for i, k := range columns {
		xticks = append(xticks, tick{float64(i), k.Name})
	}
	c := &canvas{}
	x, y := c.frame(t, bare, scale{lo: -0.6, hi: float64(len(columns)) - 0.4}, y, xticks, yticks)
	rounds := 0
	for _, k := range columns {
		rounds = max(rounds, len(k.Values))
	}
	for r := range rounds {
		var ps []point
		for i, k := range columns {
			if r < len(k.Values) {
				ps = append(ps, point{x.at(float64(i)), y.at(k.Values[r])})
			}
		}
		c.path("pair", "", ps)
	}
	for i, k := range columns {
		at := x.at(float64(i))
		for _, v := range k.Values {
			c.mark(fill(k.Colour), tone(k.Colour), at, y.at(v))
		}
		typical := y.at(k.Typical)
		c.line("whisker", at-16, typical, at+16, typical)
		anchor, beside := "start", at+21
		if i == 0 && len(columns) > 1 { // lines leave the first column to the right
			anchor, beside = "end", at-21
		}
		c.text("strong halo", anchor, beside, typical+4, k.Say)
		c.text("strong", anchor, beside, typical+4, k.Say)
	}
	return c.figure(t, width, height)
}
