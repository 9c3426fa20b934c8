// Package h2 is one HTTP/2 connection made for tunnels: streams that live
// long and carry bytes, in both roles. It reads with x/net/http2's Framer and
// hpack and owns everything else: windows, limits, liveness, ends.
//
// It knows requests only as header fields, never routes, opens no
// connection, verifies no peer and does not push, prioritise or compress.
//
// How bytes move. One goroutine reads the connection and never writes to it,
// so that two peers can never wait for each other. Whoever has something to
// send appends a frame to the outbox and, unless somebody does already,
// writes the outbox to the connection itself: under load many frames go out
// in one write, and no goroutine stands between a socket and the tunnel.
// Window is given back when the owner of the stream has consumed.
//
// Invariants:
//   - A stream buffers at most its window, the connection at most its own;
//     bytes of a window are given back exactly once (TestWindowsAreConserved).
//   - Everything that a peer can make us do for free is counted: resets,
//     settings, pings, empty frames, unknown frames, header bytes
//     (TestLimits*); past the limit the connection ends with
//     ENHANCE_YOUR_CALM and nothing else is disturbed.
//   - A peer that asks and never reads our answers is cut off before they
//     fill the memory (TestDeafPeerIsCutOff).
//   - A malformed request costs its stream, a broken frame the connection.
//   - A stream counts against the limit until both directions ended
//     (TestStreamCountsUntilBothEnds).
//   - Data that arrived before a reset or the end of the connection can still
//     be read (TestBufferedDataSurvivesReset).
//   - Bytes from the peer, of any kind, prove that it lives; silence for
//     PingTimeout after a ping ends the connection (TestPingTimeout).
//   - After Wait no goroutine is left (goleak in every test).
//
// Neighbours: hbone puts CONNECT on top.
package h2
