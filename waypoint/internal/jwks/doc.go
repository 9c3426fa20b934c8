// Package jwks fetches the keys of tokens' issuers and keeps them fresh.
//
// One goroutine per source that the configuration names: it fetches at once, again shortly before the keys count as old, and after a
// failure with growing pauses. A request that meets a key id nobody knows may ask for an earlier fetch, and waits for it, but not
// oftener than minEarly. Whatever fails, the last good keys stay. It never judges a token, never follows a redirect, reads no more than
// maxDocument, and reaches hosts outside the mesh only at addresses that are no machine's own or link's (TestForbiddenAddresses).
//
// Invariants: keys that were good are not lost by a failed fetch (TestLastGoodStays); unknown key ids cause a bounded number of fetches
// (TestEarlyFetchIsBounded); a source that is not named any more is not asked any more (TestUnusedSourceEnds); a document that is too
// large, too late, redirected or no key set changes nothing (TestBadAnswers).
//
// Neighbours: jwt reads the documents, phases asks for keys, app connects it with upstream's clusters and intake's table.
package jwks
