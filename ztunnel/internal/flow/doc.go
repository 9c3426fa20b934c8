// Package flow tells what happened to connections: one access log line and the
// istio_tcp_* metrics, from one record of the connection.
//
// It does: count while the connection lives, write the line at its end, name
// the flag of a failure.
//
// It never does: decide anything, I/O on connections.
//
// Invariants:
//   - opened and closed counters are equal in sum when nothing lives (TestCounters);
//   - a refusal before the connection was admitted touches no TCP metric (TestRefused).
//
// Neighbours: claims fills in what the mesh does not know of a peer; obs writes and exposes; outbound and inbound record.
package flow
