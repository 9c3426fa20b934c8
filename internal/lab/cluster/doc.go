// Package cluster is the lab inside the sandbox: it composes the network, the
// object store, the reconcilers, the kubelet, the mesh's components and the
// control API.
//
// What it does: keeps a copy of the store (world), reacts to each change with
// the deciders of package plan (controller), serves the control socket
// (control), and ends everything in order.
//
// What it never does: it decides nothing about the mesh; enrolment,
// discovery and policy are the components' own.
//
// Invariants:
//   - what the lab wrote itself is never undone by a late notice of the store
//     (TestWorldIgnoresOldEvents),
//   - an apply with a refused object changes nothing (TestApplyRefusesWhole),
//   - down leaves nothing, also after kill -9 (TestLabLeavesNothing).
//
// Neighbours: internal/lab (client and start), sandbox, fabric, labdns, plan,
// kubelet, components, tokens, filestore.
package cluster
