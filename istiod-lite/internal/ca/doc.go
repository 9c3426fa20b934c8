// Package ca signs workload certificates: a self-signed root kept on disk, and
// the gRPC service that Istio's proxies call.
//
// What is in a CSR beside its public key is ignored: the certificate names the
// caller, or the identity that a trusted node proxy asks for on behalf of a pod
// of its own node. The room never decides who the caller is (authn does) and
// knows pods only through [Pods].
//
// Invariants:
//   - a certificate names only the caller or a pod's identity on the caller's node (TestImpersonation)
//   - a CSR with a broken self-signature is refused (TestHostileCSR)
//   - the key file is never left half written nor readable by others (TestRootOnDisk)
package ca
