// Package mtls makes and checks the mutual TLS 1.3 of the mesh: certificates
// as the CA answers them, certificate requests, and the two ends of a
// handshake whose identities are SPIFFE IDs.
//
// It never fetches or caches certificates (that is behind Source), never
// opens sockets, and knows no HTTP.
//
// Invariants:
//   - No handshake succeeds without a verified identity on the other side: a
//     client with no expected identity always fails (TestClientNeedsExpectation),
//     a server refuses a peer without certificate, of other roots, of another
//     trust domain, out of date or not meant for clients (TestServerRefuses).
//   - Only TLS 1.3 and ALPN h2 (TestOnlyTLS13, TestALPN).
//   - Nothing is resumed: each handshake proves the keys anew
//     (TestNothingResumes).
//   - Of the CA's answer the last element alone is trusted as roots
//     (TestCertificateLayout).
//
// Neighbours: identity parses; caclient fills Certificates; pool, inbound
// and the waypoint's front hold the connections.
package mtls
