// Package view holds the proxy's present View of the mesh and keeps it up to
// date from the control plane.
//
// It does: judge each resource of an xDS response, take over the good ones,
// swap the View once per response, report the refused ones for the NACK; let
// connections wait for a pod that the control plane has not told about yet.
//
// It never does: edit a View that readers may hold, decide about connections,
// speak to the control plane itself, drop state when the stream breaks.
//
// Invariants:
//   - readers see all of a response or nothing of it, and one bad resource does
//     not hold back the others (TestBatchIsAtomic);
//   - a reader that took a View keeps seeing that one (TestOneViewPerDecision);
//   - whoever waits for a change subscribed before its first look misses none
//     (TestWaitWorkload).
//
// Neighbours: mesh below; xds calls the handlers; outbound, inbound, conns, pods and admin read.
package view
