// Package admin shows operators the inside of ztunnel in the words and shapes
// that Istio's tools read: the config dump with workloads, services, policies,
// certificates and live connections.
//
// It never changes anything but log levels (and, asked by POST, ends the process),
// never shows a private key or a token, and computes nothing that decisions use.
//
// Invariants:
//   - lists are sorted and members with defaults are left out, so that dumps can
//     be compared (TestDumpShape);
//   - private keys never appear (TestDumpHasNoKeys).
//
// Neighbours: obs serves the pages; view, certs, pods and conns are read; app mounts it.
package admin
