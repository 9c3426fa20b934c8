// Package spans sends finished spans to collectors: OTLP by gRPC or HTTP, Zipkin by JSON, over the clusters of the configuration.
//
// A request hands its span over and goes on: it never waits, for a collector or for another request's encoding. What does not fit the
// queue, or what a collector does not take, is dropped and counted. It decides nothing about spans: trace does.
//
// Invariants: Add never blocks, whatever collectors do (TestAddNeverBlocks); every span is sent, dropped, refused or failed, and counted as
// that once (TestEverySpanIsCounted); spans reach real readers of each protocol (TestCollectors); one slow collector does not hold up
// another (TestSlowCollectorAlone); what is queued at the end is sent before the deadline of one request (TestLastSpansAreSent).
//
// Neighbours: phases adds, upstream reaches the collectors, app runs it.
package spans
