// Package probe asks containers whether they are well, as a kubelet does.
//
// What it does: Run repeats one corev1.Probe (httpGet, tcpSocket, exec, grpc)
// with its delays and thresholds and reports each change of the outcome. The
// counting is the pure type Tracker.
//
// What it never does: it decides nothing about the container; restarting and
// readiness are the caller's. It opens connections only through the Target it
// is given, which puts them into the node's network namespace.
//
// Invariants: the outcome changes only after the threshold's number of equal
// answers in a row (TestTracker); probes keep their period whatever the probe
// takes (TestRunTiming); no probe outlives its timeout (TestTimeout).
//
// Neighbours: fabric gives the node's dialer, proc runs exec probes.
package probe
