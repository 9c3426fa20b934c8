// Package source names what the rooms that read objects hand to the derivations: batches of events. Rooms below it
// (file, later kube) make them.
//
// It holds types only and never reads anything.
//
// Neighbours: source/file fills batches; derive/ambient and the app consume them.
package source

import "github.com/marrowmesh/marrow/internal/manifest"

// Event is one object that is new or different or, with a nil Object, gone. Nobody may change the object.
type Event struct {
	Key    manifest.Key
	Object manifest.Object
}

// Refusal is an object whose present text cannot be used. What was read of it before stays in force.
type Refusal struct {
	Key manifest.Key
	Err error
}

// Batch is what changed since the batch before. The first one holds everything.
type Batch struct {
	Events  []Event
	Refused []Refusal
	// Mended are keys that an earlier batch refused and that are good or gone now.
	Mended []manifest.Key
}
