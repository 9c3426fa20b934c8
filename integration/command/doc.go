// Package command starts labs by the built command line, bin/marrow, as a user does, with our waypoint or a stock Envoy in its place.
// It is what the suites that compare the two share.
//
// A host that forbids labs skips the test (MARROW_REQUIRE_LAB=1: fails it); so does a machine without Envoy (MARROW_REQUIRE_ENVOY=1).
//
// Neighbours: integration/grpcinterop; integration/arena, whose labs have agents of the test in their pods.
package command
