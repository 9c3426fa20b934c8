// Package app is ztunnel from top to bottom: configuration, logs, the pages for
// operators, the control plane, the data plane, and the end. Read Run to know
// what happens in which order.
//
// It never decides about a connection and never reads the environment but
// through package conf.
//
// Invariants:
//   - a refused configuration ends the process with code 64 before anything
//     listens (TestConfigRefused);
//   - readiness answers first, pods are asked for only when the control plane
//     has told everything (TestStartOrder);
//   - the end is polite until the deadline, then total (TestDrainLosesNothing).
//
// Neighbours: everything of ztunnel; main.go calls it.
package app
