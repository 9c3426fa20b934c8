// Package capture accepts connections inside the network namespaces of pods: on
// 15001 what the pod sends, on 15006 what reaches it in plaintext, on 15008 what
// reaches it over HBONE. It finds the original destination and hands each
// connection to the driver of its port.
//
// It never judges, never dials on its own account, never installs redirection
// (that is the node agent's work) and never closes a listener but by drain.
//
// Invariants:
//   - all listeners of a pod are bound when Open returns, or none (TestAllOrNothing);
//   - after a cut no connection of the pod is left (TestCutEndsConnections);
//   - an address is the pod's own only if its namespace has it (TestOwns);
//   - no connection starts after the drain began (TestDrainStopsAccepting).
//
// Neighbours: pods opens and drains it; outbound and inbound implement Handler;
// netsys makes the sockets.
package capture
