// Package source names what the rooms that read objects hand to the derivations: batches of events. Rooms below it
// (file, later kube) make them.
//
// It holds types only and never reads anything.
//
// Neighbours: source/file fills batches; derive/ambient and the app consume them.
package source
