// Package filters holds the filters that a request or an opaque connection passes, one per file, compiled from Envoy's messages.
//
// A filter is a pure decision: it says allowed or denied, delay or abort, answer or go on; phases carries it out. It never waits,
// writes, or takes a random number of its own. Compiling refuses every filter, field and matcher that it cannot evaluate, since a
// filter that is left out is a door that is left open.
//
// Invariants: an unknown filter is an error (TestUnknownFilterIsRefused); authorization follows the rules of authz: DENY before ALLOW
// is the order of the chain, an ALLOW without a match denies (TestRBAC), a peer without identity meets only negative conditions
// (TestRBACWithoutIdentity); an authorization server is asked exactly as configured, and what it answers is checked before it is carried
// out (TestExtAuthzStrict, FuzzCheckResponse); a condition on what no filter found out is never true (TestRBACMetadata); a header that
// tokens set comes from a verified token or not at all (TestTokenHeaders); of several tokens each has to be good (TestTokens). A rate
// limit says which tokens a request takes (TestDraws), and a bucket never gives more than its configuration
// (TestNeverMoreThanAllowed); the buckets themselves are in quota.
//
// Neighbours: match gives the conditions, jwt judges tokens, table puts filters into chains and routes, phases asks them.
package filters
