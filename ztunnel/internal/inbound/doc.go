// Package inbound drives connections that reach a pod: tunnel streams on 15008
// and plaintext on 15006; and those of pods of the same node, which come without
// a tunnel (Arrive) and are treated as if they had one.
//
// It does: authenticate the peer, ask steer where a request may go, register
// it, have policy judged, dial the application from the client's address, and
// only then answer 200 and relay; record.
//
// It never does: judge by anything that a header claims, answer before the
// application's socket is open, let a refused stream disturb its neighbours.
//
// Invariants:
//   - no identity, no verdict or no known pod is a refusal (TestUnknownFailsClosed);
//   - a connection of the same node is admitted only if both sides' certificates would have made a handshake succeed
//     (TestTopologies, mtls' TestVerifyEqualsHandshake);
//   - a connection is registered before it is judged (conns.Admit, TestRegisterBeforeJudge);
//   - CONNECT is answered 200 only when the application's socket is open (TestNo200BeforeUpstream);
//   - who breaks the rules of HTTP/2 again and again is not let in for a while, and nobody else is kept out
//     (TestPenalties, integration/hostile's TestAttackersAreKeptOut);
//   - when drain starts no accepted byte is lost (TestDrainLosesNothing).
//
// Neighbours: capture hands it connections; mtls, hbone, view, steer, conns, flow and relay do the parts.
package inbound
