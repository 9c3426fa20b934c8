// Package load is the program that loads the mesh from inside the pods: a
// server that serves every kind of load on one port, and a client that makes
// one kind and is told phase by phase what to do.
//
// What it does: bulk streams in both directions, round trips in a closed and an
// open loop, requests by HTTP/1.1, HTTP/2 and gRPC in both, new connections, idle
// connections, slow readers, TLS handshakes.
// A phase begins when the last one is over and ends only when every byte has
// arrived and every answer is there, so that what the kernel has accounted
// between two phases is the whole work of the phase and nothing else.
// Open-loop latency is counted from the moment at which a request should have
// been sent.
//
// What it never does: it knows no mesh, no lab and no namespace. Its only
// setting outside itself is the range of ephemeral ports of its own network
// namespace (PreparePorts), when told.
//
// Invariants: bytes reported are bytes that arrived (TestBulk); a stalled
// server shows in open-loop latency (TestOpenLoopCountsFromIntended); a phase
// that cannot end is an error, not a hang (TestPhaseEnds); a request counts only
// if its answer is whole and the right one (TestWrongAnswers).
//
// Neighbours: perf/bench drives it through package marrow's hidden command
// perf-load; perf/latency counts.
package load
