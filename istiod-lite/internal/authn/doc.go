// Package authn tells who makes a gRPC call to the control plane: a pod with a
// service-account token whose signature, audience, subject and time hold.
//
// It never decides what the caller may do.
//
// Invariants:
//   - a token that is unsigned, expired, for another audience or signed by another key is refused (TestTokenRefusals)
//
// Neighbours: ca and serve ask it on each call and stream.
package authn
