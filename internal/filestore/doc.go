// Package filestore keeps typed objects in a directory that several processes share: one YAML file per object, at
// <dir>/<group or core>/<Kind>/<namespace or _>/<name>.yaml.
//
// Writers hold a file lock on <dir>/.lock and replace files by rename, so a reader sees the old object or the new one,
// and a killed writer leaves nothing half done. It behaves like an API server where that matters to what runs on it:
// uid, creationTimestamp, resourceVersion and generation are the store's, a Put leaves the status alone, a Delete takes
// the objects with it that the deleted one owns.
//
// It never interprets specs, never runs controllers and never keeps an object in memory longer than a call; a watcher
// keeps the bytes that it last delivered.
//
// Invariants:
//   - TestConcurrentPatchesAllCount: no update is lost between processes (each has its own open lock file).
//   - TestWatchSeesEveryLastState: after the writers stop, the events of a watcher add up to what List returns.
//   - TestMalformedFileKeepsLastGood: a file that cannot be read is an Event with Err, never a removal.
//
// Neighbours: manifest (the text form); istiod-lite's source/file, the lab and cni read and write through it.
package filestore
