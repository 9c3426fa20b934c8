// Package bench carries scenarios out: it boots one lab per implementation,
// loads one of them at a time as the schedule says, and writes down what the
// kernel and the clients say about it.
//
// What it does: Run boots the labs (direct without a mesh, marrow, and each
// peer in the place of our ztunnel on both nodes, under the same control plane
// and node agent), checks that traffic takes the way it should, sees which
// cipher suite is really negotiated, runs block after block, and takes the labs
// down. A block is: calibrate, connect, warm up, come to rest, look, load, come
// to rest, look again. System calls, context switches and allocations are
// counted in a further short phase behind the timed one, in the first rounds
// only: counting costs time, and counts hardly vary.
//
// What is counted: system calls of every kind by the kernel's raw_syscalls
// tracepoint (root only), context switches of living threads, heap allocations
// of proxies in Go by the memory statistics of their heap profile, less those of
// asking for it, TCP connections opened in the clients' network namespaces
// (less the clients' own: tunnels), and TLS records on the wire.
//
// On request CPU profiles of our own proxies are taken while blocks are timed. A
// profile that cannot be had spoils no block (TestProfiles), and none says where
// on this machine the program lies (TestAnonymous).
//
// What it never does: it chooses no order, drops no round and judges nothing
// (package stats does), and it touches nothing outside its own labs.
//
// Requests have labs of their own, with waypoints between two pods; there the
// implementations differ in the waypoint alone, and its process alone is charged
// (TestRequestLabs).
//
// Invariants: a lab that goes up comes down, also after an interrupt; a block
// in which an operation failed has no metrics (TestFailedBlockHasNoMetrics); a
// figure that could not be measured is absent, not zero (TestFill); one tiny
// scenario runs end to end on a real lab (TestTinyRun).
//
// Neighbours: perf/scenario (what), perf/load (the programs in the pods),
// perf/account (the kernel's view), internal/lab (the labs), marrow/internal/perf
// (the command that puts all together).
package bench
