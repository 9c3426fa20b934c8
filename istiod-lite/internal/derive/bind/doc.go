// Package bind finds, for each waypoint, the rows that its configuration depends
// on: which services and workloads are reached through it, behind which
// endpoints, and what routes and policies there are.
//
// It is a decider. It does not decide who is bound to which waypoint (that is
// derive/ambient, whose resources it reads) and makes no Envoy resource
// (derive/waypoint does).
//
// Invariants:
//   - a service is bound exactly where its WDS resource points, the canary included (TestBound)
//   - an endpoint carries the target port of its own WDS resource, so a named port works (TestTargets)
//   - a gateway without a bound service or workload still gets an input, so that it refuses everything by itself (TestEmptyWaypoint)
package bind
