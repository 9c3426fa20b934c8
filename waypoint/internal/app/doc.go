// Package app composes the waypoint from its rooms, top to bottom, and ends it in order.
//
// Sockets come in as arguments or are made here, addresses come out; nothing else in the program knows more than its own room. The
// sequence at the end: not ready any more, clients are told to go elsewhere, what is open finishes, what is left at the deadline is cut.
//
// Invariants: a drain loses nothing that was accepted (TestDrainLosesNothing); no goroutine is left after Run (TestDrainLosesNothing).
//
// Neighbours: main calls Run; every other room is called from here.
package app
