// Package admin shows the waypoint to people and tools: in the shapes of Envoy's admin port, so that istioctl proxy-config reads them, what
// the control plane sent and what became of it; in shapes of its own what was compiled from it (/state); and what would become of a request
// (/explain).
//
// It changes log levels and, asked by POST, ends the process; nothing else. Private keys never appear.
//
// Invariants: the state is stable for the same configuration (TestDumpIsStable); a dump is readable as Envoy's messages, with what was
// refused beside what is in force (TestConfigDumpIsEnvoys); it holds no key (TestDumpHasNoKeys).
//
// Neighbours: intake and upstream are shown, phases explains, app mounts the pages.
package admin
