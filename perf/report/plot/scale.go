package plot

import (
	"math"
	"strconv"
)

// scale maps values to coordinates.
type scale struct {
	lo, hi   float64 // values
	from, to float64 // coordinates
	log      bool
}

func (s scale) at(v float64) float64 {
	lo, hi := s.lo, s.hi
	if s.log {
		if v <= 0 {
			return math.NaN()
		}
		lo, hi, v = math.Log10(lo), math.Log10(hi), math.Log10(v)
	}
	return s.from + (v-lo)/(hi-lo)*(s.to-s.from)
}

const (
	most  = 1e15  // the greatest size that is drawn
	least = 1e-12 // the least, on a logarithmic axis
)

// tick is one mark of an axis.
type tick struct {
	v     float64
	label string
}

// linear makes a scale from lo to hi, widened to round numbers.
func linear(lo, hi float64) (scale, []tick) {
	const ticksWanted = 6
	if !finiteAll(lo, hi) || hi < lo {
		lo, hi = 0, 1
	}
	if hi == lo {
		lo, hi = lo-math.Abs(lo)*0.1, hi+max(math.Abs(lo)*0.1, 1e-9)
	}
	if hi-lo < 1e-9*max(math.Abs(lo), math.Abs(hi)) { // a difference of rounding
		lo, hi = lo-1e-9*math.Abs(lo), hi+1e-9*math.Abs(hi)
	}
	step := round125((hi - lo) / ticksWanted)
	first, last := math.Floor(lo/step+1e-9), math.Ceil(hi/step-1e-9)
	digits := max(0, -int(math.Floor(math.Log10(step)+1e-9)))
	var ticks []tick
	for i := first; i <= last && len(ticks) < 50; i++ {
		ticks = append(ticks, tick{i * step, strconv.FormatFloat(i*step, 'f', digits, 64)})
	}
	return scale{lo: first * step, hi: last * step}, ticks
}

// logarithmic makes a scale over [lo, hi], both above zero, with ticks at 1, 2
// and 5 of each decade, or only at 1 where there are many decades.
func logarithmic(lo, hi float64, label func(float64) string) (scale, []tick) {
	if !finiteAll(lo, hi) || lo < least || hi < lo {
		lo, hi = 1, 10
	}
	steps := []float64{1, 2, 5}
	if hi/lo > 1e4 {
		steps = steps[:1]
	}
	s := scale{lo: below(lo, steps), hi: above(hi, steps), log: true}
	if s.hi/s.lo < 1.5 {
		s.hi = above(s.lo*2, steps)
	}
	var ticks []tick
	for e := math.Floor(math.Log10(s.lo)) - 1; e <= math.Log10(s.hi)+1; e++ {
		for _, m := range steps {
			if v := m * math.Pow(10, e); v >= s.lo*(1-1e-9) && v <= s.hi*(1+1e-9) {
				ticks = append(ticks, tick{v, label(v)})
			}
		}
	}
	return s, ticks
}

// below is the greatest step of a decade that is at most v.
func below(v float64, steps []float64) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(v)))
	out := decade
	for _, m := range steps {
		if m*decade <= v*(1+1e-9) {
			out = m * decade
		}
	}
	return out
}

// above is the least step of a decade that is at least v.
func above(v float64, steps []float64) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range steps {
		if m*decade >= v*(1-1e-9) {
			return m * decade
		}
	}
	return 10 * decade
}

// round125 is the next of 1, 2, 5 times a power of ten.
func round125(v float64) float64 { return above(v, []float64{1, 2, 5}) }

// finiteAll says whether all values can be drawn: beyond these bounds a step of
// an axis would be lost in rounding.
func finiteAll(vs ...float64) bool {
	for _, v := range vs {
		if math.IsNaN(v) || math.Abs(v) > most {
			return false
		}
	}
	return true
}
