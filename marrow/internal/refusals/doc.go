// Package refusals reads what proxies log and keeps what somebody was refused
// and why: the answer to "why does my connection not work?".
//
// It is pure: lines in, entries out. It understands ztunnel's access log (plain
// form) and a waypoint's access log in Istio's default form; other lines are
// passed over.
//
// Invariants:
//   - a line of a connection that went well is never an entry (TestParse)
//   - no line, however broken, makes it panic (FuzzParse)
//
// Neighbours: marrow/internal/cli shows them.
package refusals
