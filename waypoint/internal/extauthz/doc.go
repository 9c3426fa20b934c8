// Package extauthz asks an authorization server about a request: by Envoy's ext_authz protocol over gRPC, or over plain HTTP.
//
// What is asked and what an answer means filters decides; this room carries the question to an endpoint of the server's cluster and
// brings the answer back, within the filter's time. It never decides by itself: whatever goes wrong is a failure, and what a failure
// means stands in the filter. It never asks twice and keeps nothing.
//
// Invariants: no answer, a late, broken, oversized or foreign one is a failure and never an allowance (TestEveryFailureIsAFailure); the
// answer is what the server said, over both protocols (TestAsk).
//
// Neighbours: filters makes questions and reads answers, upstream has the clusters, phases asks.
package extauthz
