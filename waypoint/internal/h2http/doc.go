// Package h2http serves HTTP/2 on one connection, and asks one server by it: internal/h2 below, net/http's
// types for whoever handles requests. A request has one goroutine from its
// header's arrival to its answer's last byte; what its handler writes goes to the
// connection from there, a short answer in one write.
//
// It dials nothing, ends no TLS, knows no route and no policy, and does not
// push. Why it exists: docs/adr/0015.
//
// Invariants: what net/http's server refuses is refused, and more (TestRefusals,
// FuzzAgainstNetHTTP, TestRandomAgainstNetHTTP; most of it by internal/h2); half a body never passes for a whole one
// (TestHalfABody); no header of a handler can become two, none that means
// something on one connection only leaves (TestNoSplitting); a request is given
// up when its client gives it up (TestClientLeaves); an answer may come before
// its request is whole, and both may go on (TestFullDuplex, TestEarlyAnswer); a
// client that does not read, or whose body nobody reads, holds what its windows allow and
// no more (TestBackPressure); who hurries is served, who only makes work is cut
// off (TestHostilePeers); a drain loses no request (TestDrain); a short answer is
// one write (TestOneWrite), and a request allocates less than two thirds of net/http's
// (TestAllocations).
//
// A Pool asks: it is an http.RoundTripper whose requests share connections, as many
// on each as its server allows; the caller's goroutine waits for the answer, another
// one sends a body if there is any.
//
// Invariants of it: a server and a caller see what they see of net/http's client
// (TestPoolLikeNetHTTP), but for its mistakes (TestPoolBetterThanNetHTTP); before a
// server has said how much it takes it gets one request (TestPoolShares); a request is asked
// again only where the server has not looked at it and nobody has read of its body
// (TestPoolGoAway); who gives up tells the server (TestPoolCancel); half an answer never
// passes for a whole one, nor a malformed one for an answer (TestPoolMalformed); what
// nobody reads holds its sender (TestPoolBackPressure); idle connections end
// (TestPoolIdleTimeout).
//
// Neighbours: h2 below; front serves tunnels' streams with it, edge what
// gateways accept; upstream asks endpoints behind tunnels with it.
package h2http
