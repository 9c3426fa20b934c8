// Package mtls makes and checks the mutual TLS 1.3 of the mesh: certificates
// as the CA answers them, certificate requests, and the two ends of a
// handshake whose identities are SPIFFE IDs.
//
// The handshake is crypto/tls'. After it the records are ours (package
// record), unless there is any doubt, or a wish, that crypto/tls had better
// keep them. Verified chains are remembered for as long as they are valid and
// the roots the same.
//
// It never fetches or caches certificates (that is behind Source), never
// opens sockets, and knows no HTTP.
//
// Invariants:
//   - No handshake succeeds without a verified identity on the other side: a
//     client with no expected identity always fails (TestClientNeedsExpectation),
//     a server refuses a peer without certificate, of other roots, of another
//     trust domain, out of date or not meant for clients (TestServerRefuses).
//   - Two certificates of one process are accepted without a handshake exactly
//     if a handshake would succeed (TestVerifyEqualsHandshake).
//   - Only TLS 1.3 and ALPN h2 (TestOnlyTLS13, TestALPN).
//   - Nothing is resumed: each handshake proves the keys anew
//     (TestNothingResumes).
//   - No byte is lost or read twice between the handshake and the records
//     (TestDataBehindFinished), and what cannot be taken over goes on as it was
//     (TestRefusesTakeOver).
//   - A chain that was verified is not accepted beyond its time, for another
//     usage or against other roots (TestVerifiedOnce, TestVerifiedExpires,
//     TestNewRootsForget).
//   - Under the post-quantum policy nothing else is agreed on
//     (TestPostQuantum).
//   - Of the CA's answer the last element alone is trusted as roots
//     (TestCertificateLayout).
//
// Neighbours: record goes on with connections; identity parses; caclient fills
// Certificates; pool, inbound and the waypoint's front hold the connections.
package mtls
