// Package burst moves bytes out of and into sockets in as few system calls as
// they allow, and holds no memory while nothing moves.
//
// A Slab is a pooled piece of memory with room in front of the data for a
// frame's header and behind them for a record's type and tag, so that the
// layers between two sockets frame and seal in place. A Feeder reads a
// connection for its whole life and shows what arrived to a function; a
// Writer writes to a socket, waiting or not.
//
// It knows no protocol, starts no goroutine, closes nothing.
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
//   - Who has much to read lets those run whose sockets have become ready
//     (TestYieldAsksThePoller).
//   - Nothing is allocated per read or write (TestNoAllocations).
//
// Neighbours: relay, mtls/record and h2 above.
package burst
