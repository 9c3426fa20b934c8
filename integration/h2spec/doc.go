// Package h2spec has a stranger judge the HTTP/2 of the tunnel port: it runs
// summerwind/h2spec against port 15008 of a real ztunnel in a lab.
//
// h2spec cannot present a certificate, so that it speaks to a forwarder in a pod
// of the lab: plain TCP in, mutual TLS with that pod's own certificate out. The
// program comes from tool/go.mod, a module of its own: build/h2spec (`make
// h2spec`), else it is built for the test. Where it cannot be built the test
// skips; MARROW_REQUIRE_H2SPEC=1 makes that a failure.
//
// Clean means that every case passes, or stands in the table of exceptions with
// its section of RFC 9113 and the reason.
//
// TestServersNotWorse asks the HTTP/2 servers that stand before applications, at
// the waypoint inside of HBONE and at the gateway in the clear and by TLS, and
// compares with net/http's server and with a stock Envoy in the same place.
//
// Neighbours: integration/command (the labs of that),
// integration/arena (the lab), internal/h2 (what is judged).
package h2spec
