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
	// MinRounds is the least number of rounds from which a difference is
	// claimed. If nothing differs, five rounds all fall on one side by chance
	// once in 16 runs, more often than a 95 % interval may err; six once in 32.
	MinRounds = 6

	z975 = 1.959963984540054 // the normal distribution's 97.5 % quantile
)

// GeoMean is the geometric mean; of values that are not all above zero it is
// the arithmetic one, of none it is NaN.
func GeoMean(xs []float64) float64 {
	sum := 0.0
	for _, x := range xs {
		if x <= 0 {
			return mean(xs)
		}
		sum += math.Log(x)
	}
	if len(xs) == 0 {
		return math.NaN()
	}
	return math.Exp(sum / float64(len(xs)))
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
	r := interval(mean(ys), draw(len(ys), source(seed, names...), average(ys)), len(ys))
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
		r = interval(mean(ours)/mean(theirs), draw(n, rng, func(pick []int) float64 {
			a, b := 0.0, 0.0
			for _, i := range pick {
				a, b = a+ours[i], b+theirs[i]
			}
			if b <= 0 {
				return math.NaN()
			}
			return a / b
		}), n)
		return r, mean(theirs) > 0 && !math.IsInf(r.Low, 0) && !math.IsInf(r.High, 0)
	}
	logs := make([]float64, n)
	for i := range ours {
		logs[i] = math.Log(ours[i] / theirs[i])
	}
	r = interval(mean(logs), draw(n, rng, average(logs)), n)
	return result.Ratio{Point: math.Exp(r.Point), Low: math.Exp(r.Low), High: math.Exp(r.High)}, true
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
	tail := 0.0
	if n >= MinRounds {
		t := student975(n-1) * math.Sqrt(float64(n)/float64(n-1))
		tail = 0.5 * math.Erfc(t/math.Sqrt2)
	}
	k := int(tail * Resamples)
	undefined := 0
	for undefined < len(drawn) && math.IsNaN(drawn[undefined]) {
		undefined++
	}
	if undefined > k { // those could lie anywhere: beyond both ends
		return result.Ratio{Point: point, Low: math.Inf(-1), High: math.Inf(1)}
	}
	return result.Ratio{Point: point, Low: min(point, drawn[k]), High: max(point, drawn[Resamples-1-k+undefined])}
}

// average is the mean of the picked values.
func average(xs []float64) func(pick []int) float64 {
	return func(pick []int) float64 {
		s := 0.0
		for _, i := range pick {
			s += xs[i]
		}
		return s / float64(len(pick))
	}
}

// student975 is the 97.5 % quantile of Student's t with the given degrees of
// freedom, by Cornish and Fisher's expansion; from 5 degrees on it is right to
// three decimals.
func student975(df int) float64 {
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
