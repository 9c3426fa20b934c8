// Package flow tells what happened to connections: one access log line and the
// istio_tcp_* metrics, from one record of the connection. It also reads and
// writes the headers by which proxies tell each other about a connection.
//
// It does: count while the connection lives, write the line at its end, name
// the flag of a failure; build and parse baggage, forwarded and traceparent.
//
// It never does: decide anything from a header (they are claims, used for
// telemetry only), I/O on connections.
//
// Invariants:
//   - opened and closed counters are equal in sum when nothing lives (TestCounters);
//   - a refusal before the connection was admitted touches no TCP metric (TestRefused);
//   - parsers accept any bytes and return only well-formed values (FuzzBaggage,
//     FuzzForwarded, FuzzTraceparent).
//
// Neighbours: obs writes and exposes; outbound and inbound record.
package flow
