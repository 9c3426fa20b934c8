// Package config reads the node agent's settings into one value.
//
// It reads nothing else and starts nothing.
//
// Invariants: everything wrong is said at once, before anything listens
// (TestRefusals); the names are those of Istio's agent where it has them.
//
// Neighbours: internal/conf reads, app uses.
package config
