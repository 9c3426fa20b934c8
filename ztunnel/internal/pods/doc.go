// Package pods lives the life of each pod of the node: it hears from the node
// agent which pods exist, opens their proxies before it answers, tries again what
// failed, and ends what is gone.
//
// It never makes sockets itself (a Namespace does), never looks at the mesh's
// state, and never ends a pod's proxy because the agent's connection broke: only
// a message or a snapshot does.
//
// Invariants:
//   - an add is answered yes only when the pod's listeners are bound
//     (TestAddBindsBeforeAck);
//   - one proxy per uid and namespace; a new namespace replaces the old one, and
//     a pending entry never outlives a success (TestNamespaceChange,
//     TestAddWhilePendingDropsIt);
//   - a pod is found by its name only while it takes new connections (TestServing);
//   - what a snapshot does not name is cut (TestSnapshotReconciles);
//   - readiness = connected, snapshot received, nothing pending (TestReadiness);
//   - every namespace is closed once its proxy has ended (TestNamespacesAreClosed).
//
// Neighbours: internal/zds calls it; capture makes the proxies; admin lists it.
package pods
