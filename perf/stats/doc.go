// Package stats is the method of the performance suite: in which order things
// are measured, which rounds count, and what may be said about the numbers.
//
// What it does: makes the schedule of a run, and turns the samples of a run
// into rows: a typical value per implementation, marrow divided by each peer
// with a 95 % interval, rounds won, a verdict, and where the row stands against
// its goal.
//
// What it never does: it measures nothing, reads no clock and no file, and has
// no randomness of its own: the same run gives the same file, bit for bit
// (TestAnalyseIsDeterministic).
//
// The method, as declared before anything is measured:
//   - implementations take turns in random order inside each round, and every
//     second round runs the order of the one before backwards (TestSchedule);
//   - a round is dropped for all implementations alike when any of its blocks
//     failed, lost more than MaxSteal to the hypervisor, or was calibrated more
//     than MaxCalibration off the run's median (TestNoisyRounds); what was only
//     counted in a noisy round stands (TestCountersStandNoise);
//   - the comparison is the geometric mean of the rounds' ratios, its interval a
//     bootstrap over rounds with the small-sample correction of the quantiles,
//     or Student's below BootRounds rounds (TestPlantedDifferenceIsFound,
//     TestNoDifferenceIsNotCalledAWin);
//   - it is called a win, or lost, only if the interval excludes 1, and never
//     from fewer than MinRounds rounds (TestTooFewRounds);
//   - a goal is met only if the whole interval meets it (TestStanding).
//
// Invariants:
//   - the interval holds the point (TestIntervalHoldsPoint);
//   - a unit does not matter (TestScaleLeavesRatios), nor which of two comes
//     first (TestSwapInvertsRatio);
//   - what was measured keeps its row (TestAllRoundsDropped, TestFailures).
//
// Neighbours: result (what goes in and out), bench (follows the schedule),
// report (prints the file).
package stats
