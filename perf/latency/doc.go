// Package latency counts durations in a histogram of bounded size and error.
//
// What it does: buckets are linear within each power of two, 128 of them, so
// that any duration from a nanosecond to an hour is kept to within one part in
// 128 and a histogram is some thirty kilobytes however many values it holds.
// Histograms merge, and travel as JSON.
//
// What it never does: it takes no time and knows no load.
//
// Invariants:
//   - a quantile is at most 0.8 % above the true one and never below it
//     (TestQuantileError),
//   - merging is the same as recording everything in one (TestMerge).
//
// Neighbours: perf/load records, perf/bench turns it into result.Buckets.
package latency
