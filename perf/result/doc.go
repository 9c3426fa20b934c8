// Package result holds what the performance suite measures, as plain data: the
// scenarios and their metrics, the samples of a run, and the file that a run
// leaves behind.
//
// What it does: names the values that the bench (package bench) hands to the
// statistics (package stats) and to the report (package report), and that
// `marrow perf compare` reads back.
//
// What it never does: it measures nothing, computes nothing and prints nothing.
//
// Invariants:
//   - a Run and a File survive JSON unchanged (TestJSONRoundTrip).
//
// Neighbours: perf/scenario (the table), perf/bench (fills Samples), perf/stats
// (Run to File), perf/report (prints both).
package result
