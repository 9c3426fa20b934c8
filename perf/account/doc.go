// Package account reads what the kernel knows of processes and of the machine.
//
// What it does: per process the CPU time to the nanosecond, context switches,
// read and write calls, and memory; for the machine the time its CPUs were not
// idle, what the hypervisor took, kernel memory of sockets; for a tree of
// processes its members; and how much CPU all others used (Foreign).
//
// What the counts mean:
//   - CPU of a process is the scheduler's sum over its threads. A kernel
//     without IRQ_TIME_ACCOUNTING charges interrupts and softirqs to whoever
//     was running; the machine's figure holds them in any case.
//   - CPU of the machine is the time of all CPUs minus idle and waiting time,
//     which the kernel measures, not the sum of the sampled busy columns.
//   - ReadCalls and WriteCalls are /proc/PID/io's syscr and syscw: read, write
//     and their vectored and positioned kinds, sendfile; on a socket too. They
//     are blind to recv, send, recvmsg, sendmsg, splice, epoll_wait and futex.
//     All system calls are counted by netsys.CountSyscalls, where it may.
//   - Switches are the voluntary and involuntary ones of the threads that live.
//
// What it never does: it changes nothing and starts nothing.
//
// Invariants: 50 ms of work are seen as such (TestUsageSeesWork); a child is
// in its parent's tree (TestTree); work of strangers is foreign, also of those
// that ended meanwhile (TestForeign).
//
// Neighbours: perf/bench subtracts two snapshots; internal/netsys has the
// system calls.
package account
