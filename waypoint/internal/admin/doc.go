// Package admin shows what the waypoint has compiled: the same tables by which requests are served.
//
// It changes nothing. Invariants: the dump is stable for the same state (TestDumpIsStable).
//
// Neighbours: intake and upstream are shown, app mounts the pages.
package admin
