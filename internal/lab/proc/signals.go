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
	answer := true
	_ = p.cmd.Process.WithHandle(func(pidfd uintptr) {
		// /proc may count in another pid namespace than this process does; it
		// says itself under which number it shows the one behind the handle.
		info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
		if err != nil {
			return
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%s/status", field(string(info), "Pid")))
		if err == nil {
			answer = noticed(string(raw), sig)
		}
	})
	return answer
}

// field reads one `Name: value` line of a status text.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if n, value, _ := strings.Cut(line, ":"); n == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
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
