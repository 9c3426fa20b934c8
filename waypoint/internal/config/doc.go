// Package config reads the waypoint's settings from the environment that Istio gives its proxies, and checks them before anything
// listens.
//
// It never opens a file or a socket. Invariants: all problems are reported at once (TestProblemsAreJoined); what Istio's Deployment sets
// is understood (TestIstioEnvironment).
//
// Neighbours: app composes the program from a Config.
package config
