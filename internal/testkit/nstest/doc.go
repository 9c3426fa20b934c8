// Package nstest runs a package's tests inside a sandbox: fresh user, network,
// mount and pid namespaces, with or without root.
//
// What it does: Main, called from TestMain, starts the test binary again in a
// sandbox with the same arguments. Need, called first in each test that makes
// namespaces, sockets or mounts, skips it where the host forbids a sandbox, and
// fails it there when MARROW_REQUIRE_LAB=1. AsNobody repeats tests as an
// unprivileged user.
//
// What it never does: it is not imported by product code.
//
// Invariants: a forbidden sandbox is a skip with the remedy in its text, a
// failure when required (TestSkipOrFail).
//
// Neighbours: internal/lab/sandbox makes the namespaces.
package nstest
