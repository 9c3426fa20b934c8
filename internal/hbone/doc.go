// Package hbone is the mesh's tunnel: one HTTP/2 CONNECT stream per
// application connection, many on one mutually authenticated connection.
//
// It carries bytes between whoever asks (Client.Connect) and whoever answers
// (Server's handler). It does not dial, authenticate, authorise, choose
// destinations or pool connections, and does not read what it carries.
//
// Wire: settings and windows are h2.Config's defaults (a stream begins with
// 256 KiB and grows); CONNECT has :method
// and :authority only; 200 alone is success; the end of a direction is
// END_STREAM, giving up is RST_STREAM CANCEL.
//
// An idle tunnel costs one goroutine at the server, its handler with 4 KiB of
// stack, none at the client, and about 1 KB of heap at each end, headers
// included (TestIdleStreamIsSmall).
//
// Invariants:
//   - Opening a tunnel costs three round trips on a fresh path: TCP, TLS 1.3,
//     CONNECT; nothing waits for the peer's SETTINGS (TestOpenTakesThreeRTT).
//   - The handler alone answers: nothing says 200 before it does
//     (TestAnswerIsTheHandlers); a handler that returns without an answer is
//     answered 500 and its stream closed.
//   - A drained server serves what it accepted and loses no byte
//     (TestDrainLosesNothing).
//   - A stream that a peer did not begin to process is told apart
//     (h2.ErrGoingAway), so that a pool may use another connection.
//
// Neighbours: h2 below; ztunnel's pool and inbound, the waypoint's front and
// upstream above; relay copies a Stream.
package hbone
