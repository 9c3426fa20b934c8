// Package phases is the life of one request inside a waypoint, and of one opaque connection.
//
//	identify -> match -> authenticate -> authorize -> request filters -> choose -> connect -> forward -> response filters -> record
//
// It drives what the deciders say: table names the route, filters judge, upstream picks. Every failure ends in answer, the only place
// that knows statuses and response flags; record always runs, once. It never listens, never dials by itself and keeps nothing from
// one request to the next.
//
// Invariants: one request reads one table (TestOneViewPerDecision); nothing reaches an upstream before it is authorized
// (TestDeniedRequestReachesNobody); a retry happens only while the client has got nothing (TestNoRetryAfterFirstByte) and sends the
// same body (TestRetryReplaysBody); a request without a session, a chain or routes is refused (TestUnknownFailsClosed); bodies are
// passed on as they come (TestStreaming). What Explain says of a request that nobody sent is what serving it does
// (TestExplainEqualsServing). No spelling of a refused path or host, and no framing, brings to an application what was refused or was
// not judged (TestNoSpellingPasses, TestNoSpellingPassesHTTP2, TestNoHostPasses, TestNothingIsSmuggled). An authorization server's answer
// comes before the application sees anything, and its absence refuses (TestCustomAuthorization, TestCustomFailure). What only proxies may
// say no client says (TestForgedHeaders). An answer that is none, and a mistake of ours, cost the request that met them and no other
// (TestAnswersThatAreNone, TestPanicIsContained).
//
// Neighbours: front brings sessions, table, filters and upstream decide, telemetry counts.
package phases
