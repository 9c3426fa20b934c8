// Package file reads objects from a directory that a filestore keeps, and hands on what changes in it.
//
// It never writes: statuses are the work of the room status. A file that turns malformed is reported, and the last good
// object stays in force until the file is mended or removed.
//
// Invariants:
//   - TestLastGoodStaysInForce: a refused file changes no row.
//   - TestGolden: the shared golden worlds come out as pinned through manifest, this package and derive/ambient.
//
// Neighbours: internal/filestore watches; the app applies the batches to the derivations.
package file
