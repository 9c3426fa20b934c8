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
