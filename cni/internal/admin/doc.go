// Package admin makes the agent's pages: readiness and metrics for the
// kubelet and Prometheus, and what the agent knows for those who debug it.
//
// It shows; it changes nothing.
//
// Invariants: /readyz says what is awaited (TestReadyz).
//
// Neighbours: obs has the pages that all binaries share; app binds them.
package admin
