// Package intake turns standard Envoy xDS into the waypoint's table and clusters.
//
// Each resource is judged alone: what cannot be compiled is refused by name, with the reason, and its last good version stays in force;
// the others of the same response apply. One response becomes visible in one step. What the table holds is asked for by name: a cluster
// brings its endpoints, a chain its routes. It never reads a request and keeps no connection.
//
// Invariants: readers see all or nothing of a response, and one bad resource does not hold back the others (TestBatchIsAtomic); an
// unknown filter is refused and what was in force stays (TestUnknownFilterKeepsLastGood); a removed resource is gone
// (TestRemovedResourceIsGone); no bytes make it panic (FuzzListeners).
//
// Neighbours: xds delivers, table and upstream compile, front and phases read.
package intake
