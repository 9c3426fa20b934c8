// Package proc runs the containers of the lab's pods as host processes.
//
// What it does: Start runs a program in a pod's network namespace, in a mount
// and a pid namespace of its own, with its own /etc/resolv.conf, a fresh
// /var/run holding the files it is given, and what else is mounted. Exec runs
// one more program in the namespaces of a started one.
//
// The program is pid 1 of its pid namespace, as in a container: when it ends,
// the kernel ends everything it started. As in a container, too, a program
// without a handler for a signal does not get it; Stop ends with SIGKILL, which
// always works. Programs that must see the lab's processes (Spec.ShareProc) have
// no pid namespace; their session is killed with its leader instead.
//
// How: Start re-executes the running binary under a hidden name. That process
// (MaybeInit) makes the mounts and then becomes the program by execve, so that
// its pid, its exit status and its standard streams are the program's own.
//
// What it never does: it holds no shell, writes no file outside the new mounts
// and restarts nothing.
//
// Invariants: nothing of a container outlives its main process
// (TestNothingOutlivesMain); the host's files are untouched
// (TestOwnResolvConf); Start fails with the reason when the program cannot be
// run (TestStartErrors).
//
// Neighbours: sandbox (the processes' world), fabric (network namespaces).
package proc
