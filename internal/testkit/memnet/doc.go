// Package memnet is a TCP-like network in memory for tests of drivers: listeners,
// connections with half close and resets, refused and lost dials, and a round
// trip time that is exact in a synctest bubble.
//
// It waits only on channels and timers, so that a bubble can tell when all wait.
//
// It never touches the operating system's network and is never imported by product code.
//
// Invariants:
//   - bytes arrive in order, half a round trip after they were written (TestRoundTrip);
//   - the end of one direction does not end the other (TestHalfClose).
//
// Neighbours: ztunnel's testmesh puts pods on it.
package memnet
