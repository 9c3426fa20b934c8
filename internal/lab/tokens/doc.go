// Package tokens issues the lab's service account tokens.
//
// What it does: holds one ES256 key, signs bound tokens as a Kubernetes API
// server would, and publishes the key as a JSON Web Key Set.
//
// What it never does: it checks no token (the control plane does, with the key
// set) and keeps no key on disk: a lab's tokens die with it.
//
// Invariants: a token names exactly one pod (TestTokenClaims); two issuers
// never accept each other's tokens (TestKeySetIsOwn).
//
// Neighbours: internal/lab/cluster.
package tokens
