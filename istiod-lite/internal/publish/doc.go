// Package publish holds what the control plane serves now: versioned resources
// by scope and type, and who waits for changes.
//
// A scope is an audience ("mesh" for node proxies, "waypoint/ns/name" for the
// proxies of one waypoint, …); the room does not know what scopes or types
// mean. Publishing the same content again is no change. A subscriber is told
// which names changed and reads their present state, so many changes to one
// name cost one.
//
// Invariants:
//   - one Publish is seen whole: a subscriber never reads between two of its changes (TestPublishIsAtomic)
//   - equal versions notify nobody (TestSameVersionIsNoChange)
//   - memory per subscriber is bounded by the number of distinct names (TestPendingNamesAreASet)
//
// Neighbours: the derivations above produce the resources; internal/xds serves them.
package publish
