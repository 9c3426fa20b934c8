// Package identity holds the mesh's one notion of who somebody is: a SPIFFE ID
// of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
//
// It does: parse an identity once, from text or from a certificate, into an
// opaque comparable value, and print it back in the two forms the mesh uses.
//
// It never does: I/O, certificate chain verification, decisions.
//
// Invariants:
//   - the zero ID means "nobody" and equals no parsed ID (TestZeroIsNobody);
//   - Parse(id.String()) == id for every non-zero ID (FuzzParse).
//
// Neighbours: mesh and authz build on it; mtls reads peers' certificates with it.
package identity
