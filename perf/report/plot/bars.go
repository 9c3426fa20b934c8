package plot

import "strconv"

// Bar is one value with its interval.
type Bar struct {
	Label
	Value, Low, High float64
	Say              string // the value in words, with its unit
}

// Bars draws values from zero, with their intervals.
func Bars(t Text, bars []Bar) Figure {
	const thick, pitch = 22.0, 36.0
	head, foot := 80.0, 50.0
	h := head + pitch*float64(max(len(bars), 1)) + foot
	names, says, top := 60.0, 60.0, 0.0
	for _, b := range bars {
		names, says = max(names, wide(b.Name)+28), max(says, wide(b.Say)+20)
		for _, v := range []float64{b.Value, b.Low, b.High} {
			if finiteAll(v) {
				top = max(top, v)
			}
		}
	}
	x, ticks := linear(0, top)
	x.from, x.to = names, width-right-says
	c := &canvas{}
	c.heading(t, width, h)
	for _, k := range ticks {
		p := x.at(k.v)
		c.line("grid", p, head, p, h-foot)
		c.text("tick", "middle", p, h-foot+below0, k.label)
	}
	for i, b := range bars {
		y := head + pitch*(float64(i)+0.5)
		c.text("", "end", names-10, y+4, b.Name)
		c.rect(fill(b.Colour), names, y-thick/2, x.at(b.Value)-names, thick, 2)
		c.line("halo", x.at(b.Low), y, x.at(b.High), y)
		c.line("whisker", x.at(b.Low), y, x.at(b.High), y)
		c.line("whisker", x.at(b.Low), y-5, x.at(b.Low), y+5)
		c.line("whisker", x.at(b.High), y-5, x.at(b.High), y+5)
		c.text("strong", "start", max(x.at(b.High), x.at(b.Value))+8, y+4, b.Say)
	}
	c.line("axis", names, head, names, h-foot)
	c.text("", "middle", (x.from+x.to)/2, h-14, t.X)
	return c.figure(t, width, h)
}

// Standing is one comparison: a ratio with its interval, and the bounds it is
// held to (0: none). All are given such that less than 1 is better.
type Standing struct {
	Group            string // what comes together: the goal
	Name             string
	Colour           int
	Point, Low, High float64
	Ship, Ahead      float64
	Say              string
}

// Standings draws ratios with intervals on a logarithmic axis around 1.
func Standings(t Text, rows []Standing) Figure {
	const pitch = 21.0
	head, foot := 110.0, 54.0
	lo, hi := 0.8, 1.25
	groups, names, says := 24.0, 60.0, 60.0
	for _, r := range rows {
		groups, names, says = max(groups, wide(r.Group)+14), max(names, wide(r.Name)+16), max(says, wide(r.Say)+14)
		for _, v := range []float64{r.Point, r.Low, r.High, r.Ship, r.Ahead} {
			if v >= least && finiteAll(v) {
				lo, hi = min(lo, v), max(hi, v)
			}
		}
	}
	lo, hi = max(lo/1.04, 0.01), min(hi*1.04, 100)
	w := max(880, groups+names+says+420)
	h := head + pitch*float64(max(len(rows), 1)) + foot
	x := scale{lo: lo, hi: hi, from: 16 + groups + names, to: w - right - says, log: true}
	c := &canvas{}
	c.heading(t, w, h)
	for _, v := range []float64{0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100} {
		if v >= lo && v <= hi {
			c.line("grid", x.at(v), head, x.at(v), h-foot)
			c.text("tick", "middle", x.at(v), h-foot+below0, strconv.FormatFloat(v, 'f', -1, 64))
		}
	}
	c.line("one", x.at(1), head-4, x.at(1), h-foot)
	c.bounds(x.from)
	for i, r := range rows {
		y := head + pitch*(float64(i)+0.5)
		if i == 0 || rows[i-1].Group != r.Group {
			c.text("strong", "start", 16, y+4, r.Group)
			if i > 0 {
				c.line("grid", 16, y-pitch/2, w-right, y-pitch/2)
			}
		}
		c.text("", "start", 16+groups, y+4, r.Name)
		if r.Ship >= lo && r.Ship <= hi {
			c.bound("ship", x.at(r.Ship), y, 7)
		}
		if r.Ahead >= lo && r.Ahead <= hi {
			c.bound("ahead", x.at(r.Ahead), y, 7)
		}
		low, high := min(max(r.Low, lo), hi), min(max(r.High, lo), hi)
		c.path("line "+stroke(r.Colour), "", []point{{x.at(low), y}, {x.at(high), y}})
		c.mark(fill(r.Colour), tone(r.Colour), x.at(min(max(r.Point, lo), hi)), y)
		c.text("strong", "start", w-right-says+10, y+4, r.Say)
	}
	c.text("", "middle", (x.from+x.to)/2, h-14, t.X)
	return c.figure(t, w, h)
}

// bounds is the legend of the marks for goals.
func (c *canvas) bounds(x float64) {
	c.bound("ahead", x+4, legend-4, 6)
	c.text("", "start", x+12, legend, "ahead")
	c.bound("ship", x+70, legend-4, 6)
	c.text("", "start", x+78, legend, "ship")
}

// bound draws a goal: a short upright line.
func (c *canvas) bound(class string, x, y, r float64) {
	c.line(class, x, y-r, x, y+r)
}
