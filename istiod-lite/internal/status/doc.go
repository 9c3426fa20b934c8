// Package status writes what the control plane has to say about objects into
// their status: conditions with their transition times, and the status of
// Gateways. It is a driver with one worker; the latest word on an object wins
// and an unchanged status is not written, so that writing ends.
//
// It decides nothing: derivations say which conditions hold, and every caller
// owns its condition types. Types of others are left alone.
//
// Invariants:
//   - writing the same status twice changes nothing (TestSameStatusIsNotWritten)
//   - a condition keeps its transition time while its status stays (TestTransitionTime)
//   - conditions of other owners survive (TestForeignConditionsStay)
//
// Neighbours: the app feeds it; a Store writes (internal/filestore; later the API server).
package status
