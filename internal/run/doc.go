// Package run owns goroutines and their end: groups that wait for what they
// started, drains with a polite and a hard phase, readiness, and the outermost
// frame of a program with its signals and exit codes.
//
// It never reads the environment (package conf does), never logs and knows no
// domain type. Importing it costs nothing but the standard library.
//
// Invariants:
//   - when Wait returns, no goroutine of the group is left (TestGroupWaitsForAll);
//   - the first failure stops the whole group and names its owner
//     (TestGroupFirstErrorStops);
//   - a cut always implies a start of the drain (TestDrainCutImpliesStart);
//   - a drain of a parent reaches every child, also one made later
//     (TestDrainReachesChildren);
//   - readiness can be taken back (TestReadyUndo);
//   - memory of a burst goes back to the system soon after
//     (TestLeanGivesBack);
//   - a small program that allocates much collects its garbage seldom
//     (TestCollect);
//   - as few threads run Go code as the work needs (TestWidth).
//
// Neighbours: every app composes with it, every driver starts its goroutines
// through a Group.
package run
