// Package edge serves the listeners at the mesh's border: sockets at which strangers arrive, in plaintext or by TLS that is
// ended here or passed through by the name that the client asks for.
//
// It opens and closes sockets as the configuration says, reads what stands before the first request (PROXY header, first
// message of TLS), asks the table for the chain, shakes hands with the chain's certificate in force and hands on to the
// request phases. Nobody who comes in here has an identity of the mesh, whatever certificate is shown. It never reads
// requests and never connects anywhere.
//
// Invariants: a chain without its certificate turns clients away and never serves them by another's (TestNoCertificateNoService);
// whoever says nothing is let go, and too many are not let in (TestSilentClientsGo, TestConnectionLimit); a new certificate
// serves the next connection, open ones stay (TestReload); no session has an identity (TestNobodyIsIdentified); drain finishes
// what was accepted (TestDrainLosesNothing).
//
// Neighbours: clienthello and proxyproto read first bytes, table chooses, phases follow; HTTP/2 is served by h2http, HTTP/1 by net/http through handoff; front does the same for tunnels.
package edge
