// Package lab holds the black-box tests that need a whole mesh: they run the built programs in a lab of two nodes and
// judge by captures, by what applications saw, by exit codes and by what a component serves to everybody.
//
// The tests carry the build tag lab (`make lab`). They run the programs of ../../bin, or of MARROW_BIN_DIR, from a
// private copy, so that a build beside them disturbs nothing. Where the host forbids namespaces they skip;
// MARROW_REQUIRE_LAB=1 makes that a failure.
//
// One lab is shared by the package; each test has a namespace of its own in it. A test that counts what is left of a
// lab makes its own. Hostile peers are this same test binary, run in a pod (see inside_test.go): it never knows the
// inside of a component.
//
// Invariants of the mesh that are proved here:
//   - a lab leaves nothing behind, also a killed one (TestDemo, TestDownAfterKill9)
//   - an enrolled pod sends and takes no clear text on a new connection (TestEnrolUnderTraffic, TestBornEnrolled)
//   - un-enrolment leaves no trace in the pod (TestEnrolUnderTraffic)
//   - whoever has no right is refused, and nobody else notices (TestConfigRefused, TestAuthorityRefuses,
//     TestDiscoveryRefuses, TestTunnelRefuses, TestHostileBytes)
//   - a dead waypoint is never bypassed (TestDeadWaypoint)
//
// Neighbours: internal/lab (the lab and its client), internal/lab/pcap, integration/envoy.
package lab
