// Package burst moves bytes out of and into sockets in as few system calls as
// they allow, and holds no memory while nothing moves.
//
// A Slab is a pooled piece of memory with room in front of the data for a
// frame's header and behind them for a record's type and tag, so that the
// layers between two sockets frame and seal in place. A Feeder reads a
// connection for its whole life and shows what arrived to a function; a
// Writer writes to a socket, waiting or not.
//
// A Lot takes over the connections of Feeders to which nothing comes: they wait
// without a goroutine.
//
// It knows no protocol and closes nothing. The only goroutine that it starts is
// a Lot's, which ends by Close.
//
// A Feeder stays inside one RawConn.Read for as long as it runs: the poller
// is asked to wait without leaving, and nothing is set up again per read.
//
// Invariants:
//   - No slab is out while a Feeder waits with nothing left over
//     (TestIdleHoldsNothing).
//   - Every byte is shown in order and, once taken, never again; what was left
//     over is in front of what comes next (TestEveryByteOnce).
//   - An end that arrives together with data is noticed
//     (TestEndBehindData).
//   - Reads grow with full reads in a row and shrink again (TestReadsAdapt);
//     beyond MaxRead only while nobody else moves anything (TestAloneReadsMore,
//     TestOwnBeats), and only a few do at a time
//     (TestStalledReadersCostNoMore).
//   - Parking loses no byte and no end, and a connection that is closed while it
//     is parked goes on to learn it (TestQuietParks, TestParkingLosesNothing,
//     TestReleaseWakes, TestLotCloses).
//   - Who has much to read lets those run whose sockets have become ready
//     (TestYieldAsksThePoller).
//   - Nothing is allocated per read or write (TestNoAllocations).
//
// Neighbours: relay, mtls/record and h2 above.
package burst
