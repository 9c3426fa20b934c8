// Package handoff serves the pod protocol to the node proxy: it binds
// internal/zds to the pods of this node.
//
// It keeps no list of its own: what exists is pods' business.
//
// Invariants: a proxy that connects is told all enrolled pods before
// anything else, and pods that waited for one are tried again
// (TestProxyConnects).
//
// Neighbours: internal/zds speaks, pods.Manager lists.
package handoff
