package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// wellFormed fails if f is no XML, and gives its text.
func wellFormed(t interface{ Fatalf(string, ...any) }, f Figure) string {
	var text strings.Builder
	d := xml.NewDecoder(strings.NewReader(string(f.Standalone())))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return text.String()
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, f.Standalone())
		}
		if s, ok := tok.(xml.CharData); ok {
			text.Write(s)
		}
	}
}

// figures draws one of each kind from the same values and labels.
func figures(name string, values []float64) map[string]Figure {
	label := Label{Name: name, Colour: 1}
	t := Text{Title: name, Sub: name, Note: name, X: name, Y: name}
	rounds, out := make([]int, len(values)), make([]bool, len(values))
	var quantiles []Quantile
	v := func(i int) float64 {
		if len(values) == 0 {
			return 0
		}
		return values[i%len(values)]
	}
	for i := range values {
		rounds[i], out[i] = i+1, i%3 == 1
		quantiles = append(quantiles, Quantile{Part: float64(i+1) / float64(len(values)), Micros: values[i]})
	}
	return map[string]Figure{
		"percentiles": Percentiles(t, []Curve{{Label: label, Points: quantiles, Count: v(0)}, {Label: Label{name, 2}}}),
		"pairs":       Pairs(t, []Column{{Label: label, Values: values, Typical: v(0), Say: name}, {Label: Label{name, -3}, Values: values[:len(values)/2], Typical: v(1)}}),
		"drift":       Drift(t, rounds, out, []Track{{Label: label, Values: values}, {Label: Label{name, 7}}}),
		"bars":        Bars(t, []Bar{{Label: label, Value: v(0), Low: v(1), High: v(2), Say: name}}),
		"standings":   Standings(t, []Standing{{Group: name, Name: name, Point: v(0), Low: v(1), High: v(2), Ship: v(3), Ahead: v(4), Say: name}}),
	}
}

func TestFiguresAreXML(t *testing.T) {
	for kind, f := range figures("marrow <&> \"peer\"", []float64{3, 5, 4, 6, 8}) {
		if text := wellFormed(t, f); !strings.Contains(text, `marrow <&> "peer"`) {
			t.Errorf("%s does not say what it shows: %s", kind, text)
		}
		s := string(f.Standalone())
		for _, want := range []string{`role="img"`, "<title>", "<desc>", "prefers-color-scheme: dark", `class="paper"`, `xmlns="http://www.w3.org/2000/svg"`} {
			if !strings.Contains(s, want) {
				t.Errorf("%s lacks %s", kind, want)
			}
		}
		if strings.Contains(f.Inline(), "<style>") {
			t.Errorf("%s repeats the page's style", kind)
		}
	}
}

// TestOddValues: whatever is measured, what is drawn has a place inside the figure.
func TestOddValues(t *testing.T) {
	odd := []float64{0, -1, 1, math.NaN(), math.Inf(1), math.Inf(-1), 1e-300, 1e300, -1e300, math.MaxFloat64, math.SmallestNonzeroFloat64, 12.5}
	value := rapid.OneOf(rapid.SampledFrom(odd), rapid.Float64Range(0, 1e6))
	number := regexp.MustCompile(`[ "](?:[xy]|[xy][12]|c[xy]|width|height|points|d)="([^"]*)"`)
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(value, 0, 12).Draw(t, "values")
		for kind, f := range figures("x", values) {
			wellFormed(t, f)
			for _, m := range number.FindAllStringSubmatch(f.Inline(), -1) {
				for _, w := range strings.FieldsFunc(m[1], func(r rune) bool { return strings.ContainsRune(" ,ML", r) }) {
					if v, err := strconv.ParseFloat(w, 64); err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
						t.Fatalf("%s of %v draws at %q", kind, values, m[0])
					}
				}
			}
		}
	})
}

// TestInside: ordinary values stay inside the figure.
func TestInside(t *testing.T) {
	point := regexp.MustCompile(`(?:cx|x1|x2|x)="([-0-9.]+)" (?:cy|y1|y2|y)="([-0-9.]+)"`)
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0.001, 1e6), 5, 30).Draw(t, "values")
		for kind, f := range figures("x", values) {
			for _, m := range point.FindAllStringSubmatch(f.Inline(), -1) {
				x, _ := strconv.ParseFloat(m[1], 64)
				y, _ := strconv.ParseFloat(m[2], 64)
				if x < 0 || x > f.width || y < 0 || y > f.height {
					t.Fatalf("%s of %v draws at %g, %g outside of %g × %g", kind, values, x, y, f.width, f.height)
				}
			}
		}
	})
}

func TestScales(t *testing.T) {
	labels := func(ts []tick) string {
		out := make([]string, len(ts))
		for i, k := range ts {
			out[i] = k.label
		}
		return strings.Join(out, " ")
	}
	for _, x := range []struct {
		lo, hi float64
		want   string
	}{
		{0, 4.6, "0 1 2 3 4 5"}, {0, 0.72, "0.0 0.2 0.4 0.6 0.8"}, {81, 99, "80 85 90 95 100"}, {5, 5, "4.4 4.6 4.8 5.0 5.2 5.4 5.6"}, {0, 1234, "0 500 1000 1500"},
	} {
		if _, ts := linear(x.lo, x.hi); labels(ts) != x.want {
			t.Errorf("linear %g to %g: %s, want %s", x.lo, x.hi, labels(ts), x.want)
		}
	}
	if _, ts := logarithmic(70, 1900, duration); labels(ts) != "50 µs 100 µs 200 µs 500 µs 1 ms 2 ms" {
		t.Error(labels(ts))
	}
	if _, ts := logarithmic(0.5, 5e7, duration); labels(ts) != "100 ns 1 µs 10 µs 100 µs 1 ms 10 ms 100 ms 1 s 10 s 100 s" {
		t.Error(labels(ts))
	}
	s := scale{lo: 1, hi: 100, from: 0, to: 10, log: true}
	if s.at(10) != 5 || !math.IsNaN(s.at(0)) {
		t.Error(s.at(10), s.at(0))
	}
	if nines(0.99) < 1.999 || nines(0.99) > 2.001 || !math.IsInf(nines(1), 1) || nines(-1) != 0 {
		t.Error(nines(0.99))
	}
}

// TestColours: no two of the first six look alike, and nobody else gets the
// colours of the baseline and of what is compared.
func TestColours(t *testing.T) {
	for i := range 30 {
		if c := tone(i); c >= colours || i >= 2 && c < 2 {
			t.Errorf("colour %d is drawn as %d", i, c)
		}
	}
	for i := range colours {
		for _, class := range []string{fill(i), stroke(i)} {
			if strings.Count(Style, ".plot ."+class+" {") != 2 {
				t.Errorf("%s is not in both, light and dark", class)
			}
		}
	}
}

func FuzzLabels(f *testing.F) {
	f.Add("marrow")
	f.Add("</text><script>alert(1)</script>")
	f.Add("\x00\x1f\ufffe\xff%s%!")
	f.Fuzz(func(t *testing.T, name string) {
		for kind, fig := range figures(name, []float64{1, 2, 3}) {
			wellFormed(t, fig)
			if strings.Contains(fig.Inline(), "<script") {
				t.Errorf("%s: a label became markup", kind)
			}
		}
	})
}
