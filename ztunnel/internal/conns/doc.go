// Package conns is the table of live connections of this node.
//
// It does: register each connection before its policy is checked, judge it,
// judge it again whenever the View changes, cut those that policy no longer
// allows, cut all of a pod when it goes, list them for the admin page.
//
// It never does: I/O on connections; it ends their contexts, with the cause,
// and the driver that owns the connection does the rest.
//
// Invariants:
//   - a connection is in the table before its policy is checked, so that no
//     change in between is lost (TestRegisterBeforeJudge);
//   - a connection that the present View refuses does not stay open, whether a
//     policy changed or the workload's list of policies (TestPolicyChangeCuts);
//   - a connection that was cut is never judged allowed again.
//
// Neighbours: view tells of changes; outbound and inbound register; admin lists.
package conns
