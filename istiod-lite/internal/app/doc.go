// Package app composes the control plane: source -> derivations -> publish ->
// serve, the certificate authority, and the room that writes statuses.
//
// One goroutine, the engine, owns all rows; everything that others read from it
// (served resources, the pod index) is published by value.
//
// Invariants:
//   - what is served after any batch is what a fresh start would serve (TestIncrementalEqualsScratch in collect)
//   - a refused object leaves the last good one in force and says so in its status (TestRefusalReachesStatus)
//
// Neighbours: every room of istiod-lite; main calls Run.
package app
