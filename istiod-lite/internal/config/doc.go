// Package config is the control plane's configuration as one value, read from a
// lookup function; see [Load] for each setting's unit and default.
//
// Invariants:
//   - every problem is reported at once, before anything listens (TestAllProblemsAtOnce)
package config
