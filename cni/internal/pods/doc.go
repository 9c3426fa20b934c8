// Package pods lives the mesh's side of each pod of the node: it compares
// what labels ask for with what is in force and takes the steps between,
// in order, again and again until they hold.
//
// It decides who is enrolled (Selection, pure), and drives namespaces, the
// node proxy and annotations through the interfaces it declares. It knows
// neither where pods come from nor how rules reach the kernel.
//
// Enrolment: open the namespace and check that it is the pod's; rules; the
// proxy's ack; the probe set; annotation enabled. Removal: probe set; rules
// (if the pod still lives); the proxy; annotation gone. The end of the
// process is no removal: redirected pods stay redirected, and fail closed.
//
// Invariants:
//   - A pod is never annotated enabled before the proxy took it
//     (TestEnrolmentOrder), and rules leave before the proxy does
//     (TestRemovalOrder).
//   - A namespace that does not hold the pod's addresses, or is the node's
//     own, is refused (TestForeignNamespaceIsRefused).
//   - What failed is tried again, after 5 ms to 5 s; while the proxy refuses,
//     the pod is annotated pending (TestRetryUntilAccepted).
//   - The snapshot never lacks an enrolled pod, also right after a restart
//     (TestRestartKeepsPods).
//   - One pod's trouble delays no other (TestPodsAreIndependent).
//
// Neighbours: source gives pods and takes annotations, redirect decides
// rules, netsys applies them, handoff is the proxy, plugin asks for new pods.
package pods
