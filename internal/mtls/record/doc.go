// Package record is the record layer of TLS 1.3 (RFC 8446 sections 4.6, 5 and
// 6) for a connection whose handshake somebody else has done: what comes
// after Finished, and nothing before it.
//
// It opens and seals with the standard library's AES-GCM, many records per
// system call and with one pass over the bytes: opening writes into a slab in
// which the contents of all records that arrived lie in one piece, sealing
// into the slab that is written. It answers and starts key updates, throws
// session tickets away, sends and understands alerts, and gives its state to
// another Conn, so that a connection can go on in another process.
//
// It never shakes hands, resumes, or logs, and knows no certificate.
//
// Invariants:
//   - What arrives is what was sent, whatever the sizes on either side
//     (TestAnyInterleaving, TestSizes), and the same as crypto/tls and OpenSSL
//     read and write (mtls' TestAgainstStandard, TestOpenSSLBulk).
//   - A record that is changed, cut, repeated or left out ends the connection
//     with the alert that RFC 8446 names, and none of its bytes is delivered
//     (TestBitFlips, TestTruncation, TestRefuses).
//   - An end without close_notify is not taken for an end (TestTruncation).
//   - The reading goroutine never waits for the peer to read: answers are
//     carried by the next write or by a goroutine of their own
//     (TestUpdateWhileBlocked, TestBlockedWriter).
//   - Close wakes who reads and who writes (TestCloseUnblocks).
//   - No slab is out while nothing has arrived (TestIdleHoldsNothing), and
//     nothing is allocated per record (TestNoAllocations).
//   - No byte is lost or read twice by Export and New (TestExport,
//     TestExportAnywhere).
//   - No key seals more than 2^24 records and a KeyUpdate (TestRekey), and none
//     is used that somebody else has begun to use (mtls' TestRefusesTakeOver).
//
// Neighbours: mtls hands connections over; h2 feeds from them; burst reads
// the sockets.
package record
