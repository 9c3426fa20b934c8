// Package front ends the mesh's tunnels and hands what is inside to the request phases.
//
// Each accepted connection proves its identity, each CONNECT stream in it names a destination; the table gives the chain that serves
// it. What an HTTP chain gets is served by h1 or h2http, by its first bytes, what an opaque chain gets is passed on as bytes, and a port whose
// protocol is not declared is looked at first, and so is one whose policies ask which server a TLS client wants (clienthello). Nothing is served without a certificate, an identity of the trust domain and a chain:
// the refusal says which of them was missing. It never reads requests and never connects anywhere.
//
// Invariants: no certificate, no configuration, no chain or a foreign identity is refused (TestUnknownFailsClosed); drain finishes what
// was accepted (TestDrainLosesNothing); what HTTP/2 has inside a tunnel comes whole, however it arrives (TestInnerHTTP2, TestPushed); a protocol is told from its first bytes alone (TestDetect); where a policy asks for the server's name of a TLS
// client, nobody passes who has not said it (TestServerName).
//
// Neighbours: hbone and mtls below, h1 and h2http speak HTTP, table for the choice, phases for what follows.
package front
