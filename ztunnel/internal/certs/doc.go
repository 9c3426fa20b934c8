// Package certs keeps one certificate per local identity: fetched when first
// needed, fetched ahead for pods of this node, renewed at half of its life,
// forgotten when the last pod goes.
//
// It never makes keys or speaks to the authority itself (a Fetch function does),
// never verifies peers, and never gives a certificate of one identity to another.
//
// Invariants:
//   - however many ask, one fetch per identity is under way (TestCoalescing);
//   - at most Parallel fetches run at once, the most urgent first
//     (TestConcurrencyAndOrder);
//   - a failed renewal keeps the certificate until it expires (TestRenewalFailureKeepsCertificate);
//   - after a failure, asking does not hasten the next try (TestBackoff);
//   - Forget wakes whoever waits, with an error (TestForget).
//
// Neighbours: internal/caclient fetches; pool and inbound take a Source per
// identity; admin lists States; app feeds Follow from the view.
package certs
