// Package shopapp is the demo's application: an HTTP and TCP server that says
// who it is, and a client that counts what it got.
//
// What it does: answers HTTP/1.1 and HTTP/2 in clear text with JSON, echoes
// lines over TCP, fans out to other services; drives load and long-lived
// connections and reports results.
//
// What it never does: it knows nothing of the mesh. All its texts carry a
// marker, so that a capture shows whether a link carried them in the clear.
//
// Invariants: each request is counted once, as a status or as an error
// (TestClientCountsEachRequestOnce); a held connection that stalls reports the
// gap (TestHoldReportsGaps).
//
// Neighbours: marrow (the hidden verb `app`), manifests/samples.
package shopapp
