// Package components writes the mesh's own pods as Kubernetes objects: the
// control plane, and on every node the agent and the proxy.
//
// What it does: a pure function from the lab's description to objects, with
// the environment, files and sockets that Istio's charts give theirs, so that
// any compatible program drops in for ours.
//
// What it never does: it starts nothing; the objects are run as any other pod.
//
// Invariants: every component has the environment of its DaemonSet
// (TestEnvironment); a replaced command changes nothing else
// (TestReplacedCommand).
//
// Neighbours: internal/lab/cluster puts the objects into the store.
package components
