// Package lab is the library surface of the lab: a small cluster made of
// Linux namespaces on one machine, fed with ordinary Kubernetes manifests.
//
// What it does: starts a lab (Up), finds running ones (List, Connect), ends
// them and sweeps what a killed one left (Down), and speaks to a running one
// through its control socket (Client): apply, delete, label, get, exec, logs,
// capture, kill, wait.
//
// What it never does: it starts no pod and touches no namespace itself. The
// lab proper runs as pid 1 of its own sandbox; package cluster composes it.
//
// Invariants:
//   - a manifest with an error changes nothing (TestApplyRefusesWhole),
//   - Down leaves nothing, also after the lab was killed
//     (TestLabLeavesNothing).
//
// Neighbours: internal/lab/sandbox (new namespaces), internal/lab/cluster (the
// lab inside the sandbox), internal/manifest (reading objects), marrow (CLI).
package lab
