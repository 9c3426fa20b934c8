// Package app composes the node agent, top to bottom: settings, sockets,
// rooms, and the order in which they begin and end.
//
// It decides nothing about pods.
//
// Invariants: nothing listens before the settings are accepted; at the end
// pods stay redirected (TestAgentEndToEnd).
//
// Neighbours: every room of cni/internal.
package app
