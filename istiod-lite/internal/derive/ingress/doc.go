// Package ingress decides what a gateway at the mesh's border serves: which servers its listeners (Gateway API) and the
// Istio Gateways that select its pods make on which port, with which certificates, and which routes are bound to which of
// their hosts. It is a decider: rows in, plans and verdicts out.
//
// A server whose certificate is missing, bad or not permitted is not made: nobody is served by another's. Of two servers
// that claim the same the older one wins, the other is told so. A route is bound to a listener only when the listener's
// owner lets its namespace and kind, and to the most specific listener that its host fits.
//
// It never makes messages of a protocol; derive/waypoint does from what is decided here. It never looks at a secret that a
// listener does not name, or names without a ReferenceGrant of the secret's namespace.
//
// Invariants:
//   - same input, same plan, in any order of the rows (TestDeterministic)
//   - no secret without being named and permitted (TestSecretsNeedGrants)
//   - a host binds to the most specific listener only (TestListenerIsolation)
//   - losers of a conflict are told and do not block others (TestConflicts)
//
// Neighbours: derive/gateway deploys and writes the verdicts into statuses; derive/waypoint makes the configuration.
package ingress
