// Package match holds what is known of one request and the compiled conditions on it: strings, headers, query parameters, paths and
// fractions. Routes and authorization both speak in these terms, so both see the same request.
//
// It never does I/O, keeps no state and takes no random number itself. Compiling refuses what it cannot evaluate.
//
// Invariants: normalizing a path twice changes nothing more, and no dot segment survives (FuzzNormalize); a compiled matcher never
// panics (FuzzCompileHeader); a missing header matches nothing but an inverted or absence matcher (TestHeaderMatchers).
//
// Neighbours: filters and table compile their conditions here; phases fills in Request.
package match
