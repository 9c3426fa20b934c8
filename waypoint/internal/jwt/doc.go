// Package jwt reads and verifies signed JSON Web Tokens (RFC 7515, 7517, 7518, 7519) as an Envoy with jwt_authn does, and says in the
// same words what is wrong with one.
//
// It is pure: keys and the time are given, nothing is fetched, cached or logged. A token is believed only after its signature was
// checked with a key of the issuer, of the kind that its algorithm needs. What a token says about keys (jwk, jku, x5u, x5c) is never
// looked at, and an extension that must be understood (crit, b64) is refused.
//
// Invariants: no token is good by an algorithm that its key was not made for (TestForgedTokens); the RFCs' own tokens are judged
// right (TestVectors); reading a token never panics and never accepts what another reader may read otherwise (FuzzParse); a secret
// that was fetched over the network is no key (TestKeySets).
//
// Neighbours: filters decides with it, jwks fetches what Keys are made of.
package jwt
