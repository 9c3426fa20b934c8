// Package relay carries bytes between two connections, both ways, with half
// close, counting what it delivered.
//
// It does not open connections, frame, encrypt, log or judge, and knows no
// addresses.
//
// Invariants:
//   - What was read is written, in order, before an end is passed on
//     (TestHalfCloseKeepsOrder).
//   - Each direction ends on its own; both ends are closed when Both returns
//     (TestBothDirectionsEnd).
//   - A cancelled relay returns promptly even when neither side moves
//     (TestCancelEndsIdleRelay), and leaves no goroutine.
//   - No buffer is held by a direction that waits on a TCP socket or on a
//     tunnel stream (TestIdleHoldsNoBuffer).
//
// Neighbours: hbone streams and netsys sockets are its two ends; inbound,
// outbound and the waypoint's opaque path call it.
package relay
