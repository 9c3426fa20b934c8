// Package perf is `marrow perf`: it puts the performance suite's parts
// together.
//
// What it does: chooses scenarios and implementations, lets stats order the
// blocks and bench measure them, tells progress, and has the report printed and
// written. An interrupted run reports the rounds that it has.
//
// What it never does: it measures, computes and prints nothing itself.
//
// Invariants: what a user asked for is what runs, and what makes no sense is
// refused before a lab boots (TestPlan).
//
// Neighbours: perf/scenario, perf/bench, perf/stats, perf/report;
// marrow/internal/cli has the flags.
package perf
