// Package steer decides where a captured connection goes (Outbound) and whether
// and where a received one is delivered (Inbound).
//
// It does: turn one View and the facts of one connection into a Plan or an
// Admission, with the steps that led there, or into a refusal with its reason.
//
// It never does: I/O, locking, logging, reading a clock, drawing random numbers;
// it does not evaluate policies (package authz does, on the facts an Admission names).
//
// Invariants:
//   - no plan without a reason: what is unknown is refused, and plaintext is
//     always the explicit outcome of a rule (TestUnknownFailsClosed);
//   - a destination that speaks HBONE is never reached in plaintext (TestHBONEIsNeverPlain);
//   - each function reads only the View it was given (TestOneViewPerDecision in view).
//
// Neighbours: mesh and identity below; outbound, inbound and the explain verb call it.
package steer
