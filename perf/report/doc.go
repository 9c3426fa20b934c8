// Package report tells people and machines what a run of the performance suite
// found: tables for a terminal, one HTML page with figures, results.json, what
// changed between two files, and a gate for continuous integration.
//
// What it does: prints what package stats decided. Rows that marrow loses stay
// where they are and are listed once more in the summary.
//
// What it never does: it judges nothing itself, reaches for no network (the page
// is one file without foreign parts: TestPageIsOneFile), and reads no clock: the same run gives the
// same bytes (TestWriteIsDeterministic).
//
// Invariants:
//   - every row of a file is in its tables and on its page (TestNoRowIsLost);
//   - text from the machine or a peer's version cannot become markup
//     (TestPageEscapes);
//   - two machines are never compared (TestCompareRefusesTwoMachines);
//   - the gate judges counters, never times, and a counter that was not measured
//     is a failure (TestGate).
//
// Neighbours: result (what is printed), stats (who decided it), plot (draws).
package report
