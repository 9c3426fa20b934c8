package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/stats"
)

const none = "–" // not measured

// unit is how a row's values are shown: divided by Per, with Name behind.
type unit struct {
	per  float64
	name string
}

// unitOf chooses a readable multiple of name for values of the given size.
func unitOf(name string, size float64) unit {
	ladder := func(base string, steps ...unit) unit {
		out := unit{1, base}
		for _, s := range steps {
			if size >= s.per {
				out = s
			}
		}
		return out
	}
	base, rest, _ := strings.Cut(name, "/")
	if rest != "" {
		rest = "/" + rest
	}
	switch base {
	case "B", "bytes", "byte":
		return ladder("B"+rest, unit{1e3, "KB" + rest}, unit{1e6, "MB" + rest}, unit{1e9, "GB" + rest})
	case "us", "µs":
		return ladder("µs"+rest, unit{1e3, "ms" + rest}, unit{1e6, "s" + rest})
	case "ns":
		return ladder("ns"+rest, unit{1e3, "µs" + rest}, unit{1e6, "ms" + rest}, unit{1e9, "s" + rest})
	case "CPU-us", "CPU-µs":
		return ladder("CPU-µs"+rest, unit{1e3, "CPU-ms" + rest}, unit{1e6, "CPU-s" + rest})
	case "s", "CPU-s":
		prefix := strings.TrimSuffix(base, "s")
		return ladder(prefix+"µs"+rest, unit{1e-3, prefix + "ms" + rest}, unit{0.1, base + rest}).seconds()
	}
	return unit{1, name}
}

// seconds gives the steps of a ladder of seconds their size: there a step
// begins below its own unit, for 0.31 CPU-s/GB reads better than 310 CPU-ms/GB.
func (u unit) seconds() unit {
	switch u.per {
	case 1:
		u.per = 1e-6
	case 0.1:
		u.per = 1
	}
	return u
}

func (u unit) show(v float64) string { return number(v / u.per) }

// rowUnit is the unit in which all values of a row are shown.
func rowUnit(r result.Row) unit {
	size := 0.0
	for _, v := range r.Values {
		size = max(size, math.Abs(v))
	}
	return unitOf(r.Unit, size)
}

// number prints three significant digits, and all digits before the point.
func number(v float64) string {
	a := math.Abs(v)
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return none
	case a >= 1000:
		return grouped(v)
	case a >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 0.9995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case a >= 0.0995:
		return strconv.FormatFloat(v, 'f', 3, 64)
	case a == 0:
		return "0"
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// grouped prints an integer as 12,345.
func grouped(v float64) string {
	s := strconv.FormatFloat(math.Abs(v), 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if v < 0 {
		s = "-" + s
	}
	return s
}

// percent prints a part of one.
func percent(v float64) string { return strconv.FormatFloat(100*v, 'f', 1, 64) + " %" }

// ratioText is "0.82 [0.80, 0.84]".
func ratioText(r result.Ratio) string {
	return fmt.Sprintf("%s [%s, %s]", ratioNumber(r.Point), ratioNumber(r.Low), ratioNumber(r.High))
}

// rowRatio is a row's ratio to a peer; of a single round there is no interval.
func rowRatio(r result.Row, peer string) string {
	q, ok := r.Ratio[peer]
	switch {
	case !ok:
		return none
	case r.Rounds < stats.MinRounds:
		return ratioNumber(q.Point)
	}
	return ratioText(q)
}

// ratioNumber has two decimals, and more where the value is small, or so near
// to 1 that two would hide on which side it is.
func ratioNumber(v float64) string {
	switch {
	case v != 1 && math.Abs(v-1) < 0.005:
		return strconv.FormatFloat(v, 'f', 3, 64)
	case v >= 99.5:
		return grouped(v)
	case v >= 0.0995 || v == 0:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

// metricName makes a metric's key readable: "cpu_us_per_rt_proxies" is "CPU per
// round trip, proxies". Its unit is left out: it stands beside.
func metricName(key string) string {
	if key == "gb_per_s" {
		return "throughput"
	}
	side := ""
	for suffix, text := range map[string]string{
		"_proxies": ", proxies", "_source": ", source", "_destination": ", destination", "_machine": ", machine",
	} {
		if k, ok := strings.CutSuffix(key, suffix); ok {
			key, side = k, text
		}
	}
	key = strings.ReplaceAll(key, "per_cpu_s", "per_CPU-second")
	words := strings.Split(key, "_")
	var out []string
	for i, w := range words {
		before := ""
		if i > 0 {
			before = words[i-1]
		}
		if text := metricWord(w, before); text != "" {
			out = append(out, text)
		}
	}
	return strings.Join(out, " ") + side
}

// metricWord is one word of a metric's key in words; units are dropped, except
// behind "per".
func metricWord(w, before string) string {
	switch w {
	case "cpu", "rss", "tls", "tcp", "gc", "gb", "mb", "kb":
		return strings.ToUpper(w)
	case "s":
		if before == "per" {
			return "second"
		}
		return ""
	case "us", "mib":
		return ""
	case "rt", "rtt":
		return "round trip"
	case "rts":
		return "round trips"
	case "conn":
		return "connection"
	case "conns":
		return "connections"
	case "allocs":
		return "allocations"
	case "bytes":
		return "memory"
	case "p999":
		return "p99.9"
	}
	return w
}

// implsOf lists who appears in a file: direct, marrow, then peers by name.
func implsOf(f result.File) []string {
	seen := map[string]bool{}
	for _, r := range f.Rows {
		for impl := range r.Values {
			seen[impl] = true
		}
		for impl := range r.Verdict {
			seen[impl] = true
		}
	}
	var out []string
	for _, impl := range []string{result.Direct, result.Marrow} {
		if seen[impl] {
			out = append(out, impl)
		}
		delete(seen, impl)
	}
	return append(out, sorted(seen)...)
}

func peersOf(f result.File) []string {
	return slices.DeleteFunc(implsOf(f), func(s string) bool { return s == result.Direct || s == result.Marrow })
}

func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// rowName is a row's metric with its unit, and an arrow if higher is better.
func rowName(r result.Row, u unit) string {
	name := metricName(r.Metric)
	if u.name != "" {
		name += " (" + u.name + ")"
	}
	if r.HigherIsBetter {
		name += " ↑"
	}
	return name
}

// addedText is a value for a narrow table: of a difference to direct, only what
// is added.
func addedText(r result.Row, u unit, impl string) string {
	full := valueText(r, u, impl)
	if _, added, ok := strings.Cut(full, "("); ok {
		return strings.TrimSuffix(added, ")")
	}
	return full
}

// valueText is a value of a row; of a difference to direct it also says how much
// is added.
func valueText(r result.Row, u unit, impl string) string {
	v, ok := r.Values[impl]
	if !ok {
		return none
	}
	direct, has := r.Values[result.Direct]
	if !r.Added || impl == result.Direct || !has {
		return u.show(v)
	}
	sign := "+"
	if v < direct {
		sign = "-"
	}
	return fmt.Sprintf("%s (%s%s)", u.show(v), sign, u.show(math.Abs(v-direct)))
}

// wonText is "18/20".
func wonText(r result.Row, peer string) string {
	won, ok := r.Won[peer]
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d/%d", won, r.Rounds)
}

// standingText is where a row stands against its goal, in a table's words.
func standingText(v stats.Verdict) string {
	if v.Standing == stats.Unshown {
		return "not shown"
	}
	return v.Standing
}

// boundsText is "≤ 0.95, ahead ≤ 0.80".
func boundsText(ship, ahead float64, higher bool) string {
	sign := "≤ "
	if higher {
		sign = "≥ "
	}
	var parts []string
	if ship != 0 {
		parts = append(parts, sign+ratioNumber(ship))
	}
	if ahead != 0 {
		parts = append(parts, "ahead "+sign+ratioNumber(ahead))
	}
	return strings.Join(parts, ", ")
}

// pad fills s to w columns, at the left if right is set.
func pad(s string, w int, right bool) string {
	n := w - utf8.RuneCountInString(s)
	if n <= 0 {
		return s
	}
	if right {
		return strings.Repeat(" ", n) + s
	}
	return s + strings.Repeat(" ", n)
}
