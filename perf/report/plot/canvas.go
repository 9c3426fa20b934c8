package plot

import (
	_ "embed"
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Style is the style sheet that all figures share.
//
//go:embed style.css
var Style string

// colours is how many the style sheet has: 0 is for the baseline, 1 for what is
// compared, the others for what it is compared with.
const colours = 6

// Figure is one drawing.
type Figure struct {
	width, height float64
	title, about  string
	body          string
}

// Standalone is the figure as a file of its own.
func (f Figure) Standalone() []byte {
	return []byte(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" +
		f.render(` xmlns="http://www.w3.org/2000/svg" width="`+num(f.width)+`" height="`+num(f.height)+`"`, "<style>\n"+Style+"</style>\n"))
}

// Inline is the figure as part of a page that holds Style.
func (f Figure) Inline() string { return f.render("", "") }

func (f Figure) render(attributes, style string) string {
	return fmt.Sprintf("<svg%s class=\"plot\" viewBox=\"0 0 %s %s\" role=\"img\" aria-label=\"%s\">\n<title>%s</title>\n<desc>%s</desc>\n%s%s</svg>\n",
		attributes, num(f.width), num(f.height), escape(f.title), escape(f.title), escape(f.about), style, f.body)
}

// canvas collects drawn elements. Coordinates that are no numbers draw nothing.
type canvas struct{ b strings.Builder }

func (c *canvas) rect(class string, x, y, w, h, round float64) {
	if !finite(x, y, w, h) {
		return
	}
	c.add(`<rect class="%s" x="%s" y="%s" width="%s" height="%s" rx="%s"/>`, class, num(x), num(y), num(max(w, 0)), num(max(h, 0)), num(round))
}

func (c *canvas) line(class string, x1, y1, x2, y2 float64) {
	if !finite(x1, y1, x2, y2) {
		return
	}
	c.add(`<line class="%s" x1="%s" y1="%s" x2="%s" y2="%s"/>`, class, num(x1), num(y1), num(x2), num(y2))
}

// text writes s; anchor is start, middle or end.
func (c *canvas) text(class, anchor string, x, y float64, s string) {
	if !finite(x, y) || s == "" {
		return
	}
	c.add(`<text class="%s" text-anchor="%s" x="%s" y="%s">%s</text>`, class, anchor, num(x), num(y), escape(s))
}

// upright writes s from bottom to top, centred on x, y.
func (c *canvas) upright(x, y float64, s string) {
	c.add(`<text text-anchor="middle" transform="translate(%s %s) rotate(-90)">%s</text>`, num(x), num(y), escape(s))
}

// path joins points; it breaks where a point is no number.
func (c *canvas) path(class, dash string, points []point) {
	var d strings.Builder
	pen := byte('M')
	for _, p := range points {
		if !finite(p.x, p.y) {
			pen = 'M'
			continue
		}
		d.WriteByte(pen)
		d.WriteString(num(p.x) + " " + num(p.y))
		pen = 'L'
	}
	if d.Len() == 0 {
		return
	}
	if dash != "" {
		dash = ` stroke-dasharray="` + dash + `"`
	}
	c.add(`<path class="%s"%s d="%s"/>`, class, dash, d.String())
}

// mark draws a series' own shape: colour is not the only difference.
func (c *canvas) mark(class string, shape int, x, y float64) {
	const r = radius
	if !finite(x, y) {
		return
	}
	var corners []point
	switch shape % colours {
	case 1:
		c.add(`<circle class="%s" cx="%s" cy="%s" r="%s"/>`, class, num(x), num(y), num(r))
		return
	case 0:
		s := r * 0.88
		corners = []point{{x - s, y - s}, {x + s, y - s}, {x + s, y + s}, {x - s, y + s}}
	case 2:
		s := r * 1.2
		corners = []point{{x, y - s}, {x + s, y + s*0.8}, {x - s, y + s*0.8}}
	case 3:
		s := r * 1.3
		corners = []point{{x, y - s}, {x + s, y}, {x, y + s}, {x - s, y}}
	case 4:
		s := r * 1.2
		corners = []point{{x, y + s}, {x + s, y - s*0.8}, {x - s, y - s*0.8}}
	default:
		s, t := r*1.15, r*0.4
		corners = []point{
			{x - t, y - s},
			{x + t, y - s},
			{x + t, y - t},
			{x + s, y - t},
			{x + s, y + t},
			{x + t, y + t},
			{x + t, y + s},
			{x - t, y + s},
			{x - t, y + t},
			{x - s, y + t},
			{x - s, y - t},
			{x - t, y - t},
		}
	}
	ps := make([]string, len(corners))
	for i, p := range corners {
		ps[i] = num(p.x) + "," + num(p.y)
	}
	c.add(`<polygon class="%s" points="%s"/>`, class, strings.Join(ps, " "))
}

func (c *canvas) add(format string, args ...any) { fmt.Fprintf(&c.b, format+"\n", args...) }

type point struct{ x, y float64 }

// dash is a series' own line pattern.
func dash(colour int) string {
	return [colours]string{"2 4", "", "7 4", "10 3 2 3", "4 3", "1 4"}[tone(colour)]
}

// tone maps any number to a colour of the style sheet.
func tone(colour int) int {
	if colour < 0 {
		colour = -colour
	}
	if colour < colours {
		return colour
	}
	return 2 + (colour-2)%(colours-2) // the first two are nobody else's
}

func fill(colour int) string   { return "f" + strconv.Itoa(tone(colour)) }
func stroke(colour int) string { return "s" + strconv.Itoa(tone(colour)) }

// num prints a coordinate: two decimals, no trailing zeros, no minus zero.
func num(v float64) string {
	s := strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64)
	if s == "-0" {
		return "0"
	}
	return s
}

func finite(vs ...float64) bool {
	for _, v := range vs {
		if math.IsNaN(v) || math.IsInf(v, 0) || math.Abs(v) > 1e6 {
			return false
		}
	}
	return true
}

// escape makes any label safe in SVG: markup is quoted, and what XML cannot
// hold is replaced.
func escape(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case r < 0x20, r == 0xFFFE, r == 0xFFFF, r == 0x7F:
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, string(utf8.RuneError)))
	return html.EscapeString(s)
}

// wide estimates the width of s in a 12 px sans-serif font.
func wide(s string) float64 { return 6.6 * float64(utf8.RuneCountInString(s)) }
