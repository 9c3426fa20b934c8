// Package trace decides about spans: whether a request is traced, as part of which trace, what its headers say to the next hop, and what
// its span holds. It is a decider: identifiers come as random numbers, moments as values; it sends nothing.
//
// Invariants: what is injected is extracted again, in each form (TestContextsSurvive); nothing but a well formed context is taken
// (FuzzExtract); a request with a context keeps its trace and its sampling, one without is sampled by its request id, so that every hop
// with the same share decides alike (TestSampling); encoded spans are readable by others' readers (TestEncodings).
//
// Neighbours: table compiles it into chains, phases begins and ends spans, spans sends them.
package trace
