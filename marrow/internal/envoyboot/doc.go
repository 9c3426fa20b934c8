// Package envoyboot starts a stock Envoy as a waypoint of this mesh: it writes the bootstrap that Istio's agent would
// write, from the environment of a waypoint's pod, and becomes Envoy. It is the judge in the Envoy suite and an escape
// hatch for users; our own waypoint does not need it.
//
// The bootstrap holds only what cannot come by xDS: who we are, where istiod-lite is and how to prove ourselves there
// (TLS with the mesh's root, the pod's service-account token read again whenever its file changes), the internal
// listeners' extension, administration on 127.0.0.1:15000, readiness on 15021 and statistics on 15090.
// Everything else is LDS, CDS, EDS, RDS and SDS over one delta stream.
//
// It never talks to the network itself and never reads the environment: the caller passes a conf.Reader.
//
// Invariants:
//   - Envoy accepts the bootstrap (TestEnvoyAcceptsBootstrap)
//   - no token stands in the bootstrap, so none is seen in an admin dump or process list (TestNoTokenInBootstrap)
//
// Limits: Envoy re-reads the token when the kubelet replaces its file, and uses the new one with the next stream; an
// open stream goes on with the token that it was opened with.
//
// Neighbours: istiod-lite/internal/derive/waypoint says what Envoy is sent; the command `marrow envoy-waypoint` calls Run.
package envoyboot
