// Package outbound drives connections that a pod opens.
//
// It does: wait for the pod's own workload, take one View, ask steer, do what
// the Plan says (plain TCP, a tunnel, a tunnel in a tunnel), relay, record.
//
// It never does: choose destinations or identities itself, fall back to
// plaintext when a tunnel fails, try a second time.
//
// Invariants:
//   - without a plan nothing is dialled and the connection is closed (TestUnknownFailsClosed);
//   - a tunnel that fails closes the connection, it is never replaced by plaintext
//     (TestNoPlaintextFallback);
//   - one connection reads one View, once (TestOneViewPerDecision in view);
//   - when drain starts no accepted byte is lost (TestDrainLosesNothing).
//
// Neighbours: capture hands it connections; view, steer, pool, conns, flow and relay do the parts.
package outbound
