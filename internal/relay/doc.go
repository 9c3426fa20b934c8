// Package relay carries bytes between two connections, both ways, with half
// close, counting what it delivered.
//
// From a socket to a tunnel's stream, the stream frames and sends what was
// read where it lies. From the stream to the socket, the goroutine that reads
// the stream's connection writes to the socket. So a tunnelled connection that
// waits costs one goroutine, parked in the socket's read, and no buffer; once
// it has gone quiet, and its owner has a burst.Lot, not even that; nor does one
// between two sockets, each of whose directions parks by itself (TestPairParks,
// TestParkedPairEnds).
// Between two sockets, bytes are read and written until the connection has
// proven bulky; then the kernel moves them, through a pipe that is held only
// while there are bytes to move.
//
// It does not open connections, frame, encrypt, log or judge, and knows no
// addresses.
//
// Invariants:
//   - What was read is written, in order, before an end is passed on
//     (TestHalfCloseKeepsOrder, TestBulkAndTalk, TestTunnelCarriesAll).
//   - Each direction ends on its own; both ends are closed when Both returns
//     (TestBothDirectionsEnd, TestEndsAreClosed).
//   - An end comes as what it was: a close as a close, a reset, or a stream
//     that was cut before it was complete, as a reset (TestEndsAreCarried,
//     TestTunnelEnds); also one that comes after the end of what that side had
//     to say (TestResetAfterTheEnd, TestCutAfterTheEnd).
//   - A cancelled relay returns promptly even when neither side moves, or
//     neither reads (TestCancelEndsIdleRelay, TestCutWhileSpliced,
//     TestTunnelIsCut), and leaves no goroutine and no descriptor
//     (TestAbortsLeaveNothing).
//   - No buffer and no pipe is held by a direction that waits for bytes
//     (TestIdleHoldsNoBuffer, TestIdleHoldsNoPipe).
//   - Nothing is allocated per message (TestNoAllocations); an idle tunnelled
//     connection has the cost that TestIdleCosts writes down.
//
// Neighbours: burst below; hbone streams and netsys sockets are its two ends;
// inbound, outbound and the waypoint's opaque path call it.
package relay
