package netsys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SyscallCounter counts every system call that the threads of a process enter,
// those included that start later. It counts in the kernel's raw_syscalls
// tracepoint and stops nothing; while it is open every system call of the
// machine is a little slower, so nothing should be timed.
type SyscallCounter struct{ events []*os.File }

// CountSyscalls begins to count. It needs root, or CAP_PERFMON and access to
// the tracepoints: where it fails the caller has to do without.
func CountSyscalls(pid int) (*SyscallCounter, error) {
	id, err := tracepoint("raw_syscalls/sys_enter")
	if err != nil {
		return nil, err
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	c := &SyscallCounter{}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Bits: unix.PerfBitInherit}
		fd, err := unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if errors.Is(err, unix.ESRCH) {
			continue // this thread has ended
		}
		if err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("count system calls of process %d: %w", pid, err)
		}
		c.events = append(c.events, os.NewFile(uintptr(fd), "perf event"))
	}
	if len(c.events) == 0 {
		return nil, fmt.Errorf("count system calls of process %d: it has no threads", pid)
	}
	return c, nil
}

// Count is the number of calls so far.
func (c *SyscallCounter) Count() (uint64, error) {
	var sum uint64
	for _, f := range c.events {
		var b [8]byte
		if _, err := io.ReadFull(f, b[:]); err != nil {
			return 0, fmt.Errorf("read a perf event: %w", err)
		}
		sum += binary.NativeEndian.Uint64(b[:])
	}
	return sum, nil
}

// Close ends the counting.
func (c *SyscallCounter) Close() error {
	var errs []error
	for _, f := range c.events {
		errs = append(errs, f.Close())
	}
	c.events = nil
	return errors.Join(errs...)
}

// tracepoint looks an event's number up in a trace file system of our own that
// is mounted nowhere, since the host may have mounted none.
func tracepoint(name string) (uint64, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("open the trace file system: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return 0, fmt.Errorf("open the trace file system: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open the trace file system: %w", err)
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := unix.Openat(root, "events/"+name+"/id", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("find tracepoint %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(f)
	if err != nil {
		return 0, fmt.Errorf("read tracepoint %s: %w", name, err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}
