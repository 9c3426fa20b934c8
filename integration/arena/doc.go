// Package arena is the ground of the suites that attack the mesh or compare it
// with no mesh: a lab of two nodes with bare pods, and agents in them that a
// test drives call by call.
//
// It starts the lab from the built programs (../../bin, or MARROW_BIN_DIR; a
// private copy, so that a build beside the test disturbs nothing), makes pods,
// gets a pod's own certificate from the mesh's authority, and runs the services
// of the test binary in pods as agents: net/rpc over the standard streams of a
// process that is this same test binary. It judges nothing and never looks
// inside a component.
//
// MARROW_ARENA_ZTUNNEL_ENV gives the proxies more environment, as
// MARROW_ARENA_ZTUNNEL_ENV=MARROW_TLS_RECORDS=std for the reference's records.
//
// Where the host forbids namespaces a test skips; MARROW_REQUIRE_LAB=1 makes
// that a failure.
//
// Invariants:
//   - an agent ends with its test, and the lab with the test binary, also with a
//     killed one (the sandbox of internal/lab/sandbox sees to it).
//
// Neighbours: integration/h2spec, integration/hostile and integration/ends are
// its users; internal/lab below.
package arena
