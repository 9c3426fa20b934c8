// Package pool keeps tunnels open between proxies, so that a new application
// connection usually costs one CONNECT instead of a TCP and TLS handshake.
//
// It does: find a connection with a free stream or dial one, share one dial
// among all who wait for it, drop connections that go away, close idle ones.
//
// It never does: share connections between pods (each pod has its own Pool) or
// between different source identities, expected identities, destinations or
// source addresses; retry a request that the peer may have processed.
//
// Invariants:
//   - everybody who waits for a dial hears of its end, whatever it is, and one
//     waiter that gives up does not stop the dial of the others (TestFailedDialWakesAll);
//   - at most one dial per key runs at a time (TestDialsAreShared);
//   - a connection never carries more than MaxStreams streams (TestLimit);
//   - after Close no connection and no goroutine is left (goleak in every test).
//
// Neighbours: hbone and mtls below, capture's DialFunc makes the socket;
// outbound asks.
package pool
