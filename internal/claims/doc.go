// Package claims holds the headers by which proxies tell each other about a
// connection: baggage, forwarded and traceparent. They are claims: the peer's
// own account of a workload, of a client and of a trace.
//
// It does: build and parse them.
//
// It never does: vouch for them. Telemetry may repeat what they say; nobody is
// let in for it.
//
// Invariants:
//   - parsers accept any bytes and return only well-formed values (FuzzBaggage,
//     FuzzForwarded, FuzzTraceparent);
//   - no name gets out of its place in a header (TestBaggage).
//
// Neighbours: mesh below; ztunnel's drivers send and read them with each
// CONNECT, waypoints read who the client says it is.
package claims
