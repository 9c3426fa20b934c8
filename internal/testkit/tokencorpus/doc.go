// Package tokencorpus holds requests with tokens, good and forged, and what a waypoint has to answer to each.
//
// The tokens are signed with the private keys that RFC 7515 and RFC 8037 print, so nothing here is a secret and every run makes the
// same keys. The corpus belongs to the world `corpus` of istiod-lite's test data: a stock Envoy and our own waypoint, both configured by what is
// derived from it, are asked the same questions. It decides nothing and opens no socket; tests do.
//
// Neighbours: tests of derive/waypoint ask Envoy, tests of phases ask our waypoint.
package tokencorpus
