// Package authz judges layer 4 connections by the mesh's authorization policies.
//
// It does: find the policies of a destination workload in one View, evaluate
// them against the facts of one connection, and say why in Istio's words.
//
// It never does: I/O, logging, waiting; it does not decode policies and knows
// nothing of HTTP.
//
// Invariants:
//   - an enforced DENY that matches beats every ALLOW (TestOrder);
//   - dry-run policies never change the verdict (TestDryRunNeverDecides);
//   - with an enforced ALLOW policy present, what no ALLOW matches is refused (TestOrder);
//   - the zero Verdict refuses (TestZeroVerdictRefuses).
//
// Neighbours: mesh holds the policies as data; ztunnel's view room decodes them;
// ztunnel's inbound and conns rooms ask for verdicts.
package authz
