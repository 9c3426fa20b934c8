// Package demo tells the mesh's story on a lab of two nodes: a namespace goes
// from plaintext to authenticated, routed and protected traffic, step by step,
// with what was expected beside what was observed on the wire.
//
// Observations come from packet captures and from counts at the application,
// not from what a component says of itself; a component's log is quoted only
// where the log itself is the promise (which policy refused).
//
// It decides nothing and knows no room of the mesh: it uses the lab as any user
// would.
//
// Invariants:
//   - a step whose observation differs from its expectation fails the run (TestFailedStepFailsTheRun)
//   - after the mesh took over, no clear-text marker may be seen on any link; every later step checks it again (integration/lab TestDemo)
//   - the report has one entry per step, in order, also after a failure (TestReportIsWhole)
//
// Neighbours: marrow/internal/cli (the verb), internal/lab, manifests/samples.
package demo
