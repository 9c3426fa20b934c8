// Package h2 is one HTTP/2 connection made for tunnels: streams that live
// long and carry bytes, in both roles. It uses x/net/http2's Framer for what
// is rare, and hpack, and owns everything else: windows, limits, liveness,
// ends.
//
// With Config.Requests it carries requests of every kind: all of RFC 9113 section
// 8 is held to (TestRequestsOfEveryKind, TestContentLength, TestGivenUpIsNotWhole),
// trailers come and go, informational answers go, and who asks much is given
// what he earns (TestHonestHaste, TestRapidResetOfRequests, TestManyAnswersWait,
// TestSlowHeaders). Without it nothing of that is let in.
//
// It knows requests only as header fields, never routes, opens no
// connection, verifies no peer and does not push, prioritise or compress.
//
// How bytes come. One goroutine reads the connection and never writes to it,
// so that two peers can never wait for each other. It is in the connection's
// Feed (the record layer's, or burst's on a socket) and pushes what arrives
// into a parser that may be cut off at any byte. DATA goes on from where it
// lies: to the stream's Sink, without waiting and without the lock, else to
// the stream's queue, which a drainer or a reader empties. Of several crumbs
// in one feed all but the first wait for its end.
//
// How bytes go. WriteSlab frames the caller's memory where it is. Whoever has
// something to send writes it together with all that is queued, unless
// somebody writes already; then a small frame is copied behind, a large one
// waits for its turn: one stream alone sends up to 1 MiB at once, several 64 KiB
// each in the order in which they came. A writer works for others twice, then
// a goroutine goes on, so that nobody's own work waits.
//
// Windows. A stream begins with 256 KiB. When half is used up an owner who
// keeps up gets twice as much, to Config.StreamWindow, one who lags falls
// back to 256 KiB; all streams together have at most 16 MiB above that. The
// connection's window is given back on receipt while not more than
// Config.Queue bytes are queued, so that no number of stalled streams stops
// their neighbours; beyond that on consumption. A connection queues at most
// Config.Queue and one connection window (80 MiB); 199 stalled streams of
// 256 KiB hold 50 MiB in slabs that make the heap grow by 62 MiB. Those of one
// Totals together queue Totals.QueueLimit; beyond it each holds back what it
// queues, and nothing is kept of one that ends. Of a peer that broke the rules
// nothing is kept ever.
//
// Handing over. Export stops a connection between two bytes, Restore goes on
// elsewhere. Header compression is on until then: Export first has the peer
// forget its table.
//
// Memory. An idle connection has no buffer, an idle stream no goroutine and
// about 500 bytes here.
//
// Invariants:
//   - However input is cut, it means the same (FuzzFrames, TestEveryCut).
//   - A stream queues at most its window, the connection at most its budget
//     and window; bytes of a window are given back exactly once
//     (TestWindowsAreConserved, TestRandomWindows, TestMemoryOfStalledStreams).
//   - However many connections stall, those that are read go on, and memory
//     stays bounded (TestCrowdedProcess, TestCrowdIsOver, TestCrowdedEnds,
//     TestViolationLeavesNothing).
//   - Streams whose owners do not read do not stop the others
//     (TestStalledStreamsDoNotStopTheirNeighbour).
//   - Streams that send share a connection in turns (TestTurns).
//   - One goroutine at a time is at a Sink; done comes once, last
//     (TestDeliver, TestDeliverEnds).
//   - A connection that is handed over loses and doubles no byte
//     (TestHandOverLosesNothing, TestHandOverWithinAFrame).
//   - Nothing is allocated to relay a frame (TestRelayingAllocatesNothing).
//   - Everything that a peer can make us do for free is counted: resets, its
//     own and provoked, settings, pings, empty frames, unknown frames, header
//     bytes and frames, windows that let us send a few bytes or nothing, bytes
//     for streams that are no more (TestLimits*, TestHostilePeers,
//     TestHeaderFloodIsBounded, TestHeaderBombs, TestDataAfterResetIsBounded,
//     TestWindowUpdates; the table is at type guard); past the limit the
//     connection ends with ENHANCE_YOUR_CALM and nothing else is disturbed
//     (TestAttackLeavesNeighboursAlone).
//   - A peer that asks and never reads our answers is cut off before they
//     fill the memory (TestDeafPeerIsCutOff).
//   - What an honest peer has under way when we reset, or go away, is free, and so
//     are its updates for what we sent and giving up what it waited for
//     (TestDataAfterResetIsFree, TestFramesOfRefusedStreams, TestWindowUpdates,
//     TestGivingUpIsFree).
//   - An answer that is there at once leaves in one write (TestAnswers).
//   - A client learns each informational answer, and how much its server takes
//     before it relies on it (TestAnswersToAClient, TestMeet).
//   - A malformed request costs its stream, a broken frame the connection.
//   - A stream counts against the limit until both directions ended
//     (TestStreamCountsUntilBothEnds).
//   - Data that arrived before a reset or the end of the connection can still
//     be read (TestBufferedDataSurvivesReset).
//   - Bytes from the peer, of any kind, prove that it lives; silence for
//     PingTimeout after a ping ends the connection (TestPingTimeout).
//   - After Wait no goroutine is left (goleak in every test,
//     TestAbortedStreamsLeaveNothing).
//
// Neighbours: burst below; mtls/record is the connection; hbone puts CONNECT
// on top; relay is at the other end of WriteSlab and Deliver.
package h2
