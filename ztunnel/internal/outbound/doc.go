// Package outbound drives connections that a pod opens.
//
// It does: wait for the pod's own workload, take one View, ask steer, do what
// the Plan says (plain TCP, a tunnel, a tunnel in a tunnel), relay, record. A
// tunnel to a pod of the same node is not made: the pod's side of it is asked
// directly, and the bytes go from socket to socket.
//
// It never does: choose destinations or identities itself, fall back to
// plaintext when a tunnel fails, try a second time.
//
// Invariants:
//   - without a plan nothing is dialled and the connection is closed (TestUnknownFailsClosed);
//   - a tunnel that fails closes the connection, it is never replaced by plaintext
//     (TestNoPlaintextFallback);
//   - whether a connection stays on the node is seen neither by the applications nor in
//     policy, logs, metrics and drain (TestTopologies);
//   - one connection reads one View, once (TestOneViewPerDecision in view);
//   - when drain starts no accepted byte is lost (TestDrainLosesNothing).
//
// Neighbours: capture hands it connections; inbound is the other end on the same node; view, steer, pool, conns, flow and relay do the parts.
package outbound
