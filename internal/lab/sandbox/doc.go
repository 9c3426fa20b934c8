// Package sandbox re-executes the running program as the first process of new
// namespaces: network, mount, pid, uts and ipc, and a user namespace when the
// caller may not make the others without one.
//
// What it does: Enter starts the sandbox and either stays in front of it
// (forwards signals, ends with it) or leaves it behind once it has said that it
// is ready. Inside, two processes of the same program run: a small init (pid 1:
// mounts, loopback, reaping of orphans) and, as its only child, the program
// itself, which learns from Inside where it is. The kernel ends every process,
// mount and namespace of the sandbox with its pid 1, and pid 1 ends with its
// child, so that killing either leaves nothing.
//
// Because orphans belong to init and not to the program, the program may use
// os/exec freely: nobody steals the exit status of its children.
//
// What it never does: it runs no other program, leaves no file, and changes no
// setting outside the namespaces it made.
//
// Invariants: killing pid 1 leaves no process (TestKillLeavesNothing); orphans
// are reaped and own children are not (TestOrphansAreReaped); a host that
// forbids namespaces is named with a remedy (TestForbiddenSaysWhatToDo).
//
// Neighbours: fabric builds the network inside, proc starts pods inside;
// internal/lab composes them.
package sandbox
