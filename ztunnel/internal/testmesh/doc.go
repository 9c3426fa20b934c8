// Package testmesh holds the tests of the drivers together: pods on a network
// in memory, real certificates, real tunnels, exact time. It has no code of its
// own besides its tests.
//
// Tests here carry the invariants of outbound and inbound: TestUnknownFailsClosed,
// TestNo200BeforeUpstream, TestNoPlaintextFallback, TestDrainLosesNothing, and that
// one node is like two: TestTopologies.
//
// Neighbours: outbound, inbound, conns, view, flow under test; memnet and fakeca below.
package testmesh
