// Package scenario is the table of everything that the performance suite
// measures: how the mesh is loaded, which figures that gives, and which goal
// each figure answers to.
//
// What it does: one row per scenario; All, Quick and Match choose among them.
//
// What it never does: it measures nothing. Bounds are those of the project's
// goals (P1 to P12); a figure without a goal is shown and not judged.
//
// Invariants: names are unique and every load makes sense (TestTable); every
// goal has a scenario (TestGoalsAreMeasured); the sets end in their time
// (TestSetsEndInTime).
//
// Neighbours: perf/bench carries a scenario out, perf/load is its load.
package scenario
