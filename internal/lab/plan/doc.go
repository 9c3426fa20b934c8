// Package plan decides what the lab should look like: which pods a Deployment
// wants, on which node a pod runs, which addresses a Service gets, which pods
// stand behind it, and what a container's command line and environment are.
//
// What it does: pure functions over Kubernetes objects. Same input, same
// answer; randomness (pod name suffixes) is an argument.
//
// What it never does: I/O, locks, logs, clocks, and no more of Kubernetes than
// the lab promises. What depends on the API server's semantics is tested in a
// real cluster.
//
// Invariants:
//   - a rollout never has fewer ready pods than its strategy allows
//     (TestRolloutKeepsAvailable),
//   - two Services never share a cluster IP (TestClusterIPsAreUnique),
//   - a pod that is not ready is no endpoint, unless its Service publishes
//     such addresses (TestEndpointsOnlyReady).
//
// Neighbours: internal/lab/cluster drives it.
package plan
