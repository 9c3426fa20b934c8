// Package caclient asks the control plane's certificate authority for a
// certificate: one call, one fresh key, one identity.
//
// It does not cache, retry or schedule; who holds certificates does that
// (ztunnel/internal/certs, waypoint/internal/app).
//
// Invariants:
//   - a certificate for another identity than the one asked for is refused (TestForeignIdentityRefused)
//   - every call has its own key (TestFreshKey)
package caclient
