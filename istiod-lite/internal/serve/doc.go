// Package serve decides who is asking for discovery and what they may see, and
// makes the secrets of proxies that cannot ask the certificate authority
// themselves (a stock Envoy, by SDS).
//
// A node proxy sees the whole mesh's addresses and authorizations. A waypoint
// sees its own Gateway's resources only, which one is told by its pod, not by
// what it claims.
//
// Invariants:
//   - without a valid token nothing is served (TestNoTokenNothingServed)
//   - a waypoint never sees another waypoint's resources or secrets (TestWaypointSeesItsOwn)
//   - a secret is renewed before half of its life is over and pushed (TestSecretRenewal)
//
// Neighbours: authn says who calls; publish holds what is served; internal/xds speaks the protocol.
package serve
