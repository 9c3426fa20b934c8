// Package expr evaluates conditions in CEL on the attributes of a request or a connection, as Envoy's access log filters do.
//
// It is a decider: it computes, at a bounded cost, and does nothing else. An expression that fails, asks for what is not known, takes too
// long or answers no boolean does not hold, as in Envoy.
//
// Invariants: what cannot be compiled is refused by name (TestBadExpressions); evaluation never costs more than its limit
// (TestCostIsBounded) and never panics (FuzzExpression).
//
// Neighbours: table compiles it into logs, phases gives attributes.
package expr
