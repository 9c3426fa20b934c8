// Package xds is the incremental ("delta") xDS protocol, both ends.
//
// The client keeps one aggregated stream to the control plane alive, asks for a
// fixed set of types in a fixed order, hands each response to the type's
// handler, and answers it exactly once: an ACK, or a NACK that lists what the
// handler refused while the rest stands. What it accepted is remembered by
// version across connections, so a reconnect costs the difference only.
//
// The server answers from a [Source]: every subscriber learns names that
// changed and reads their present state, so a burst of changes to one resource
// is sent once, and a slow client costs a set of names, not a queue of bodies.
//
// Neither end knows what the resources mean, and neither reads files or the
// environment beyond the root certificate and token paths of [DialOptions].
//
// Invariants:
//   - every response is answered once, in order (TestEveryResponseAnsweredOnce)
//   - a refused resource is not echoed on reconnect (TestRejectedNotRetained)
//   - the first request of a type is always answered, even if empty (TestFirstRequestAlwaysAnswered)
//   - removals missed while disconnected arrive with the first response (TestReconnectLearnsRemovals)
//
// Neighbours: ztunnel/internal/view and waypoint/internal/intake handle the
// client's resources; istiod-lite/internal/publish is the server's Source.
package xds
