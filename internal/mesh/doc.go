// Package mesh holds what the control plane told us about the mesh: workloads,
// services and policies as plain data, and View, an immutable snapshot with the
// indexes that decisions need.
//
// It does: look-ups (by address, name, virtual IP, pod, host name) with the
// ranking and visibility rules of the workload discovery protocol; the choice
// of an endpoint of a service; View.With, which makes the next snapshot from a
// batch and shares everything that the batch did not touch.
//
// It never does: I/O, logging, waiting, reading a clock, drawing random numbers
// (the source of randomness is an argument), decoding the wire form.
//
// Invariants:
//   - a View never changes after it was returned (TestViewIsImmutable);
//   - a View made by batches equals one made from nothing out of the resources
//     that are left (TestWithEqualsScratch);
//   - the work of With grows with the batch, not with the mesh (BenchmarkWith).
//
// Neighbours: identity below; authz judges with the policies found here;
// ztunnel's view room converts the wire form and calls With, steer decides on a View.
package mesh
