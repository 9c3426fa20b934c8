// Package collect keeps derived tables up to date without computing everything again.
//
// A [Table] holds rows by key. Rows of input tables are set by the caller; rows of derived tables are made by a function
// that runs once per key of its source and fetches what it needs from other tables and [Index]es. The engine remembers
// what each run fetched, also what it looked for and did not find. When rows change, [Engine.Settle] runs again exactly
// the functions that had fetched a changed row or bucket, in the order in which the tables were made; a row that comes
// out equal goes no further. An [Output] then tells what changed since it was last asked, as one batch.
//
// The package knows nothing of what the rows mean. It has no locks and starts nothing: one caller owns an engine.
//
// Invariants:
//   - TestIncrementalEqualsScratch: after any events every table equals that of a new engine given the same inputs.
//   - TestOnlyReadersRun: a change runs only what had fetched it.
//   - TestEqualRowsStop: a row that is derived again and equal runs nothing behind it.
//   - TestOutputIsNet: what came and went between two calls of Take is not reported.
//
// Neighbours: derive/ambient builds its pipeline of these tables; publish gets the batches.
package collect
