package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// notices reports whether the signal would have any effect: the kernel keeps
// from the first process of a pid namespace what it neither handles nor waits
// for. In doubt the answer is yes.
func (p *Process) notices(sig syscall.Signal) bool {
	// Where /proc shows the host's processes, the pid is another's there.
	if self, err := os.Readlink("/proc/self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return true
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return true
	}
	return noticed(string(raw), sig)
}

// noticed reads a process's status file: caught signals are handled; blocked
// ones may be waited for; a program that ignores one has decided so.
func noticed(status string, sig syscall.Signal) bool {
	bit := uint64(1) << (uint(sig) - 1)
	known := false
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "SigCgt", "SigBlk", "SigIgn":
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil || mask&bit != 0 {
				return true
			}
			known = true
		}
	}
	return !known
}
