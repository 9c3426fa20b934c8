// Package explain answers "what would become of this request?" for the whole way: it reads what the client's node proxy knows, finds
// the waypoint that the destination has, and asks that waypoint, which runs its own deciders on its live configuration.
//
// It decides nothing about traffic by itself and sends no request of the mesh. How it reaches a proxy's admin port is its caller's matter.
//
// Invariants: the destination is what the node proxy would take it for, by address, by name as DNS would complete it, in the client's
// namespace first (TestFind); a destination without a waypoint is said to have none (TestFind).
//
// Neighbours: marrow/internal/cli prints; the programs ztunnel and waypoint serve the pages that are read here.
package explain
