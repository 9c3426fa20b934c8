// Package strict refuses protobuf messages that say more than this proxy implements.
//
// It walks the set fields of one message and fails for the first that the caller did not name, so a new upstream field, or one that
// was never built here, turns into a NACK that names it instead of being dropped in silence. It never descends by itself: whoever
// compiles a message guards the messages inside it where it reads them.
//
// Invariants: a field that is set and not named is an error (TestOnlyNamesTheField); so are bytes that the schema does not know
// (TestOnlyRefusesUnknownBytes).
//
// Neighbours: every compiler of Envoy configuration (match, filters, table, upstream, intake) calls it first.
package strict
