// Package proxyproto reads the header by which a load balancer tells whose connection it passes on (PROXY protocol,
// versions 1 and 2). It is pure: bytes in, addresses out.
//
// It never reads past the header and never holds more than Limit bytes. Whether the sender may be believed is decided by
// whoever configured that such headers come.
//
// Invariants:
//   - more bytes never change an answer that was complete (FuzzParse)
//   - what is not exactly a header is refused, there is no guess (TestMalformed)
//
// Neighbours: edge.
package proxyproto
