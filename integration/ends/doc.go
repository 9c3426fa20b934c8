// Package ends proves that the mesh does not change how TCP connections begin,
// carry and end: the same exchanges run between pods without the mesh and between
// pods in it, on one node and on two, and what both applications observe is
// written down and compared: bytes and their hash, end of file or reset, in order.
//
// One table holds the exchanges; each is a straight-line script over both ends.
// Where the mesh honestly differs (it accepts before it knows the destination) the
// row says what is seen instead, and why.
//
// Invariants of the mesh that are proved here:
//   - an application cannot tell by the ends that it is in the mesh (TestEndsAreTheSame)
//   - aborted connections leave nothing in either proxy (TestAbortsLeaveNothing)
//
// Neighbours: integration/arena (lab, agents), internal/relay (what passes ends on).
package ends
