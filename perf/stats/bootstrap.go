package stats

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/marrowmesh/marrow/perf/result"
)

const (
	// Resamples of a bootstrap. The corrected quantiles of few rounds lie far
	// out (0.4 % for six), where this many resamples still leave forty beyond.
	Resamples = 10_000
	// MinRounds is the least number of rounds that have an interval at all.
	MinRounds = 2
	// BootRounds is the least number of rounds that are resampled. If nothing
	// differs, five rounds all fall on one side by chance once in 16 runs, more
	// often than a 95 % interval may err; six once in 32. Fewer rounds (of
	// memory, a minute each) get Student's interval, which is far wider and
	// takes the logarithms for normally distributed.
	BootRounds = 6

	z975 = 1.959963984540054 // the normal distribution's 97.5 % quantile
)

// GeoMean is the geometric mean; of values that are not all above zero it is
// the arithmetic one, of none it is NaN. It never leaves the range of xs, so
// that a count which is the same each time comes out as it is.
func GeoMean(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	lo, hi := slices.Min(xs), slices.Max(xs)
	if lo <= 0 {
		return min(max(mean(xs), lo), hi)
	}
	sum := 0.0
	for _, x := range xs {
		sum += math.Log(x)
	}
	return min(max(math.Exp(sum/float64(len(xs))), lo), hi)
}

// Mean gives the typical value of xs and its 95 % interval: a geometric mean
// where all values are above zero, else an arithmetic one. It is for showing one
// implementation; a comparison is made of rounds, by RatioOf.
func Mean(xs []float64, seed uint64, names ...string) result.Ratio {
	back := func(v float64) float64 { return v }
	ys := slices.Clone(xs)
	if len(xs) > 0 && slices.Min(xs) > 0 {
		back = math.Exp
		for i, x := range xs {
			ys[i] = math.Log(x)
		}
	}
	r := meanInterval(ys, source(seed, names...))
	return result.Ratio{Point: back(r.Point), Low: back(r.Low), High: back(r.High)}
}

// RatioOf compares the paired rounds ours[i] and theirs[i]. ok is false when no
// ratio with two finite bounds exists: what they have is not above zero.
//
// Where all values are above zero it is the geometric mean of the rounds'
// ratios, which treats a half and a double alike. Differences to direct can be
// zero or below in a single round, so they, and counts with zeros, give the
// quotient of the sums instead, with the same bootstrap over rounds.
func RatioOf(ours, theirs []float64, sums bool, seed uint64, names ...string) (r result.Ratio, ok bool) {
	n := len(ours)
	if n == 0 || n != len(theirs) {
		return result.Ratio{}, false
	}
	rng := source(seed, names...)
	if sums || slices.Min(ours) <= 0 || slices.Min(theirs) <= 0 {
		r = sumsInterval(ours, theirs, rng)
		return r, mean(theirs) > 0 && !math.IsInf(r.Low, 0) && !math.IsInf(r.High, 0)
	}
	logs := make([]float64, n)
	for i := range ours {
		logs[i] = math.Log(ours[i] / theirs[i])
	}
	r = meanInterval(logs, rng)
	return result.Ratio{Point: math.Exp(r.Point), Low: math.Exp(r.Low), High: math.Exp(r.High)}, true
}

// meanInterval is the mean of xs with its 95 % interval; a single value is an
// interval of its own, from which nothing may be concluded (TooFew).
func meanInterval(xs []float64, rng *rand.Rand) result.Ratio {
	n, m := len(xs), mean(xs)
	if n < BootRounds {
		wide := student975(n-1) * math.Sqrt(covariance(xs, xs)/float64(max(n, 1)))
		return result.Ratio{Point: m, Low: m - wide, High: m + wide}
	}
	return interval(m, draw(n, rng, func(pick []int) float64 {
		s := 0.0
		for _, i := range pick {
			s += xs[i]
		}
		return s / float64(n)
	}), n)
}

// sumsInterval is the quotient of two sums over paired rounds with its interval.
func sumsInterval(ours, theirs []float64, rng *rand.Rand) result.Ratio {
	n := len(ours)
	if n < BootRounds {
		return fieller(ours, theirs)
	}
	return interval(mean(ours)/mean(theirs), draw(n, rng, func(pick []int) float64 {
		a, b := 0.0, 0.0
		for _, i := range pick {
			a, b = a+ours[i], b+theirs[i]
		}
		if b <= 0 {
			return math.NaN()
		}
		return a / b
	}), n)
}

// fieller is Fieller's interval for the quotient of two means: Student's
// interval for a difference, asked for which quotients the difference could be
// zero. It has no ends if the lower mean could be zero itself.
func fieller(x, y []float64) result.Ratio {
	n := float64(len(x))
	a, b, t := mean(x), mean(y), student975(len(x)-1)
	r := a / b
	xx, yy, xy := covariance(x, x)/n, covariance(y, y)/n, covariance(x, y)/n
	g := t * t * yy / (b * b) // 1: the lower mean cannot be told from zero
	if b <= 0 || g >= 1 {
		return result.Ratio{Point: r, Low: math.Inf(-1), High: math.Inf(1)}
	}
	shift, shared := 0.0, 0.0
	if yy > 0 {
		shift, shared = g*xy/yy, g*(xx-xy*xy/yy)
	}
	wide := t / b * math.Sqrt(max(0, xx-2*r*xy+r*r*yy-shared)) / (1 - g)
	centre := (r - shift) / (1 - g)
	return result.Ratio{Point: r, Low: min(r, centre-wide), High: max(r, centre+wide)}
}

// covariance of paired values, as an estimate from a sample.
func covariance(x, y []float64) float64 {
	if len(x) < 2 {
		return 0
	}
	mx, my, s := mean(x), mean(y), 0.0
	for i := range x {
		s += (x[i] - mx) * (y[i] - my)
	}
	return s / float64(len(x)-1)
}

// draw computes a statistic on Resamples draws of n rounds with replacement,
// and sorts. NaN, which sorts first, is a resample that leaves it undefined.
func draw(n int, rng *rand.Rand, stat func(pick []int) float64) []float64 {
	out := make([]float64, Resamples)
	pick := make([]int, n)
	for k := range out {
		for i := range pick {
			pick[i] = rng.IntN(n)
		}
		out[k] = stat(pick)
	}
	slices.Sort(out)
	return out
}

// interval cuts the 95 % interval out of the resamples of n rounds.
//
// The plain percentile interval is too narrow for few rounds: resampling cannot
// see that the rounds' own spread is an estimate. So the quantiles are moved out
// to where Student's t would put them (the expanded percentile interval), which
// for many rounds is again 2.5 % and 97.5 %.
func interval(point float64, drawn []float64, n int) result.Ratio {
	t := student975(n-1) * math.Sqrt(float64(n)/float64(n-1))
	k := int(0.5 * math.Erfc(t/math.Sqrt2) * Resamples)
	undefined := 0
	for undefined < len(drawn) && math.IsNaN(drawn[undefined]) {
		undefined++
	}
	if undefined > k { // those could lie anywhere: beyond both ends
		return result.Ratio{Point: point, Low: math.Inf(-1), High: math.Inf(1)}
	}
	return result.Ratio{Point: point, Low: min(point, drawn[k]), High: max(point, drawn[Resamples-1-k+undefined])}
}

// student975 is the 97.5 % quantile of Student's t with the given degrees of
// freedom: from a table, and from 5 degrees on, where it is right to three
// decimals, by Cornish and Fisher's expansion.
func student975(df int) float64 {
	if df < 5 {
		return [...]float64{0, 12.7062, 4.3027, 3.1824, 2.7764}[max(df, 0)]
	}
	v, z := float64(df), z975
	z2 := z * z
	z3, z5 := z*z2, z*z2*z2
	z7, z9 := z5*z2, z5*z2*z2
	return z + (z3+z)/(4*v) +
		(5*z5+16*z3+3*z)/(96*v*v) +
		(3*z7+19*z5+17*z3-15*z)/(384*v*v*v) +
		(79*z9+776*z7+1482*z5-1920*z3-945*z)/(92160*v*v*v*v)
}

func mean(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	s := 0.0
	for _, x := range xs {
		s += x
	}
	return s / float64(len(xs))
}

func median(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	ys := slices.Sorted(slices.Values(xs))
	return (ys[(len(ys)-1)/2] + ys[len(ys)/2]) / 2
}
