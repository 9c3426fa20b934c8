// Package kubelet runs the lab's pods: one worker per pod takes it from its
// network to its end.
//
// What it does: connects the pod to its node, asks the node's agent to enrol
// it, writes its tokens and volumes, starts its containers as host processes,
// probes and restarts them, reports its status, and ends it gracefully.
//
// What it never does: it schedules nothing and creates no pod; it enrols
// nothing itself. A pod whose labels ask for the mesh does not start before
// the agent has said yes: it is never open first.
//
// Invariants:
//   - an enrolled pod starts only after the agent's answer
//     (TestEnrolledPodWaitsForAgent),
//   - a status is computed from the containers' states alone (TestStatus),
//   - back-off grows and is forgotten after a good run (TestBackoff).
//
// Neighbours: internal/lab/cluster owns it; fabric, proc and probe do the work
// in namespaces; plan decides environments and command lines.
package kubelet
