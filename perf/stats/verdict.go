package stats

import (
	"strings"

	"github.com/marrowmesh/marrow/perf/result"
)

// What may be said about marrow and a peer from one row.
const (
	Win          = "win"                 // the interval excludes 1, on the better side
	Lost         = "lost"                // the interval excludes 1, on the worse side
	NoDifference = "no difference shown" // it holds 1
	TooFew       = "too few rounds"      // fewer than MinRounds count
	Failed       = "marrow failed"       // marrow gave nothing in any round, the peer did
	PeerFailed   = "peer failed"         // the other way round
)

// Where a row stands against its goal.
const (
	Ahead   = "ahead"          // the whole interval is beyond the bound "ahead"
	Ship    = "ship"           // the whole interval is within the bound "ship"
	Unshown = "ship not shown" // the point is within "ship", the interval is not
	Behind  = "behind"         // the point is not within "ship", or there is none as marrow failed
)

// Verdict is what one row says about one peer.
type Verdict struct {
	Difference string // Win, Lost, ...
	Standing   string // Ahead, Ship, Unshown, Behind, or empty: no goal to judge by
}

// String is the form that results.json holds: "win, ahead".
func (v Verdict) String() string {
	if v.Standing == "" {
		return v.Difference
	}
	return v.Difference + ", " + v.Standing
}

// ParseVerdict reads the form that String writes.
func ParseVerdict(s string) Verdict {
	difference, standing, _ := strings.Cut(s, ", ")
	return Verdict{Difference: difference, Standing: standing}
}

// difference judges an interval of marrow divided by a peer.
func difference(r result.Ratio, rounds int, higher bool) string {
	if rounds < MinRounds {
		return TooFew
	}
	switch {
	case r.High < 1 && !higher, r.Low > 1 && higher:
		return Win
	case r.High < 1, r.Low > 1:
		return Lost
	}
	return NoDifference
}

// standing judges an interval against the bounds of a goal. A single round has
// none: then only the point can be behind.
func standing(r result.Ratio, rounds int, m result.Metric) string {
	if unshown(m) == "" {
		return ""
	}
	worse := r.High
	within := func(v, bound float64) bool { return v <= bound }
	if m.HigherIsBetter {
		worse = r.Low
		within = func(v, bound float64) bool { return v >= bound }
	}
	enough := rounds >= MinRounds
	switch {
	case m.Ahead != 0 && enough && within(worse, m.Ahead):
		return Ahead
	case m.Ship == 0 || !within(r.Point, m.Ship):
		return Behind
	case enough && within(worse, m.Ship):
		return Ship
	}
	return Unshown
}

// unshown is the standing of a row that has no ratio.
func unshown(m result.Metric) string {
	if m.Ship == 0 && m.Ahead == 0 {
		return ""
	}
	return Unshown
}

// unratioed judges paired rounds that have no ratio, because what the peer has
// is zero or, as a difference to direct, cannot be told from zero: only a
// difference that all rounds agree on is one.
func unratioed(ours, theirs []float64, won int, higher bool) string {
	if len(ours) < BootRounds {
		return TooFew
	}
	if won == len(ours) {
		return Win
	}
	if wins(theirs, ours, higher) == len(ours) {
		return Lost
	}
	return NoDifference
}

// wins counts the rounds in which a is better than b.
func wins(a, b []float64, higher bool) int {
	n := 0
	for i := range a {
		if higher && a[i] > b[i] || !higher && a[i] < b[i] {
			n++
		}
	}
	return n
}
