// Package ambient derives what node proxies are served (WDS) from Kubernetes, Gateway API and Istio objects: workloads,
// services, policies, and the conditions that tell the objects' owners what became of them.
//
// The rules are pure functions, one file per subject. [Pipeline] feeds them incrementally through collect: a change of
// one pod computes that pod's workload again and nothing else.
//
// It never reads files or clusters, never writes a status, and never looks at the clock: ages come from the objects.
//
// Invariants:
//   - TestIncrementalEqualsScratch: after random events the served set equals that of a new pipeline.
//   - TestOnePodChangeIsOneRun: a pod change runs O(1) derivations, whatever the size of the mesh.
//   - TestGolden (istiod-lite/internal/source/file): every world of the shared goldens comes out as pinned.
//   - TestSameInputSameBytes: resources are byte-equal for equal inputs, in whatever order they came.
//
// Neighbours: source rooms feed it; publish and serve hand its resources out; status writes its conditions; derive/kube
// holds what it shares with derive/waypoint and derive/gateway.
package ambient
