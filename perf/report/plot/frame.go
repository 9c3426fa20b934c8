package plot

import "strings"

// Text is what a figure says about itself.
type Text struct {
	Title string // what is shown
	Sub   string // under what conditions
	Note  string // of how many rounds, which direction is better
	X, Y  string // axis labels with units
	About string // one sentence for those who cannot see the figure
}

// Label names a series and gives it a colour: 0 for the baseline, 1 for what is
// compared, 2 and up for what it is compared with.
type Label struct {
	Name   string
	Colour int
}

const (
	width  = 620.0
	height = 380.0
	left   = 76.0  // of the plot area: room for numbers and the axis label
	right  = 24.0  // free at the right
	top    = 112.0 // title, two lines, legend
	bare   = 84.0  // title and two lines
	bottom = 54.0  // numbers and label of the x axis
	below0 = 16.0  // from the axis to its numbers
	legend = 87.0  // baseline of the legend
	swatch = 26.0  // width of a legend's line
	gap    = 22.0  // between legend entries
	radius = 3.75  // of a mark
)

// frame draws what all figures with two axes have in common, and returns the
// scales fitted to the plot area, which begins at the given height.
func (c *canvas) frame(t Text, top float64, x, y scale, xticks, yticks []tick) (fx, fy scale) {
	x.from, x.to = left, width-right
	y.from, y.to = height-bottom, top
	c.heading(t, width, height)
	for _, k := range yticks {
		p := y.at(k.v)
		c.line("grid", left, p, width-right, p)
		c.text("tick", "end", left-8, p+4, k.label)
	}
	for _, k := range xticks {
		p := x.at(k.v)
		c.line("grid", p, top, p, height-bottom)
		c.text("tick", "middle", p, height-bottom+below0, k.label)
	}
	c.line("axis", left, height-bottom, width-right, height-bottom)
	c.text("", "middle", (left+width-right)/2, height-14, t.X)
	c.upright(18, (top+height-bottom)/2, t.Y)
	return x, y
}

func (c *canvas) heading(t Text, w, h float64) {
	c.rect("paper", 0, 0, w, h, 0)
	c.text("head", "start", 16, 26, clip(t.Title, (w-32)*12/15))
	c.text("sub", "start", 16, 46, clip(t.Sub, w-32))
	c.text("sub", "start", 16, 63, clip(t.Note, w-32))
}

// key draws the legend: a piece of line, the mark and the name per series.
func (c *canvas) key(labels []Label) {
	x := left
	for _, l := range labels {
		c.path("line "+stroke(l.Colour), dash(l.Colour), []point{{x, legend - 4}, {x + swatch, legend - 4}})
		c.mark(fill(l.Colour), tone(l.Colour), x+swatch/2, legend-4)
		c.text("", "start", x+swatch+6, legend, l.Name)
		x += swatch + 6 + wide(l.Name) + gap
	}
}

func (c *canvas) figure(t Text, w, h float64) Figure {
	about := t.About
	if about == "" {
		about = t.Sub + ". " + t.Note
	}
	return Figure{width: w, height: h, title: t.Title, about: about, body: c.b.String()}
}

// clip shortens s to the given width.
func clip(s string, w float64) string {
	if wide(s) <= w {
		return s
	}
	r := []rune(s)
	return strings.TrimRight(string(r[:min(len(r), max(0, int(w/wide("x"))-1))]), " ,") + "…"
}
