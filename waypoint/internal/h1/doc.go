// Package h1 is HTTP/1.x on one connection, both ends: a server that reads,
// handles and answers on the goroutine that calls it, and a client whose caller
// writes the request and reads the answer itself. Neither hands anything to
// another goroutine, but a client's request body, which may have to go on while
// its answer comes.
//
// It dials nothing and knows no route and no policy. Whoever handles requests
// sees net/http's types. Why it exists: docs/adr/0013.
//
// Invariants: what net/http's server refuses is refused, and more (TestRefusals,
// TestBrokenBody); what is taken for a request is one for net/http too, and the
// same (FuzzAgainstNetHTTP); no header of a handler can become two
// (TestNoSplitting); a request is given up when its client leaves
// (TestClientLeaves); the next request begins where the last one's body ended,
// or the connection ends (TestUnreadBody); a kept connection that died while
// nobody used it costs no request that may be sent twice, and no other is sent
// twice (TestStaleConnection, TestNoSecondPost); an answer that comes before the request is whole
// is passed on, and ends the connection (TestEarlyAnswer).
//
// Neighbours: front serves tunnels' streams with it, upstream asks through it.
package h1
