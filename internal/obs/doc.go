// Package obs is what operators see: logs in the two formats of Istio's ztunnel
// with levels per scope that change at run time, metrics in OpenMetrics text,
// the admin pages and plain HTTP servers with sane limits, build information.
//
// It is the only room that knows the logging library. It never reads the
// environment, never decides readiness and holds no domain type: a log field is
// a key and a value.
//
// Invariants:
//   - lines are written whole and never interleaved (TestLinesAreWhole);
//   - a Batch loses no line, keeps their order and holds a bounded number of
//     bytes (TestBatchIsBounded, TestBatchKeepsOrderAndLines);
//   - no thread sleeps in a write because nobody reads the log (TestPatient);
//   - the plain format is tab-separated and free of foreign control characters,
//     whatever a peer put into a value (TestPlainFormat, FuzzPlainIsOneLine);
//   - a bad level filter changes nothing (TestLevelsBadFilter);
//   - the metrics body does not depend on the Accept header (TestMetricsExposition);
//   - servers end with their context and leave no goroutine (TestServeStops).
//
// Neighbours: every driver logs through a *Logger; apps mount Admin and Metrics.
package obs
