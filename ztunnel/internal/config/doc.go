// Package config is ztunnel's configuration as a value: Istio's variable names
// and defaults, and a refusal of everything that would silently not hold here.
//
// It reads through conf.Reader and the two files that Istio's deployment gives,
// and never looks at anything else; nothing here starts, dials or listens.
//
// Invariants:
//   - what cannot be honoured and matters is refused, the rest is listed in
//     Ignored (TestRefusals, TestIgnored);
//   - all problems come in one error (TestRefusals);
//   - tokens and header values are not part of the dump (TestDumpHidesSecrets).
//
// Neighbours: app loads it and passes parts on; admin dumps it.
package config
