// Package quota counts requests where the filters' limits say so: in buckets of this process, and at a rate limit service.
//
// It drives what filters decides: Local takes the tokens of a request's draws, Service asks what a question says. The time is that of
// the caller's clock. It never looks at a request, and it answers nobody: phases does.
//
// Invariants: no more requests pass a bucket than it holds and what has dripped in since, whoever comes at once (TestNeverMoreThanAllowed,
// TestTakersAtOnce); what a client sends cannot make it hold more than a rule's number of keys of a fixed size each
// (TestSprayingIsBounded); a bucket survives a configuration that says the same again (TestBucketsOutliveConfiguration); a service that
// is slow, gone or talks nonsense is an error within the time limit, never an answer (TestServiceFailures).
//
// Neighbours: filters decides, upstream reaches the service, phases asks and answers.
package quota
