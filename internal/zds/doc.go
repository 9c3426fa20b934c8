// Package zds is the pod protocol between the node agent and the node proxy, both
// sides: which pods to serve, each with its network namespace as a file
// descriptor, over a SOCK_SEQPACKET Unix socket. The bytes are those of Istio's
// ZDS, so either side may be another implementation.
//
// It never opens a namespace, never decides what a pod is, and keeps no list of
// pods: the agent's list comes by the snapshot callback, the proxy's list is its
// Handler's.
//
// Invariants:
//   - one message is outstanding per connection; acks are matched by position,
//     so a late ack ends the connection (TestLateAckEndsConnection);
//   - every received or queued descriptor is closed in every path
//     (TestNoDescriptorLeaks);
//   - keep or snapshot_sent out of order and an add without pod information are
//     protocol errors: nack, then Run returns (TestProtocolErrorsEndRun);
//   - what cannot be read is nacked and the connection made anew
//     (TestGarbageReconnects);
//   - an add goes to the newest proxy, a delete to all (TestSeveralProxies).
//
// Neighbours: cni/internal/handoff serves it, ztunnel/internal/pods is its Handler.
package zds
