package account

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/netsys"
)

// Usage is what a process has used since its start.
type Usage struct {
	CPU        time.Duration
	Switches   uint64 // voluntary and involuntary, of the living threads
	ReadCalls  uint64 // /proc/PID/io: read-like calls only
	WriteCalls uint64
}

// Sub is what was used since an earlier look.
func (u Usage) Sub(before Usage) Usage {
	return Usage{
		CPU: u.CPU - before.CPU, Switches: less(u.Switches, before.Switches),
		ReadCalls: less(u.ReadCalls, before.ReadCalls), WriteCalls: less(u.WriteCalls, before.WriteCalls),
	}
}

// less is a-b; a thread that ended takes its count along.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// CPU is the process' CPU time alone: one system call, for the moment itself.
func CPU(pid int) (time.Duration, error) { return netsys.ProcessCPU(pid) }

// Read looks at one process.
func Read(pid int) (Usage, error) {
	var u Usage
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return u, err
	}
	for _, t := range threads {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, t.Name()))
		if err != nil {
			continue // the thread has ended
		}
		f := fields(raw)
		u.Switches += f["voluntary_ctxt_switches"] + f["nonvoluntary_ctxt_switches"]
	}
	// Not readable for another user's process: then the calls stay zero.
	if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid)); err == nil {
		f := fields(raw)
		u.ReadCalls, u.WriteCalls = f["syscr"], f["syscw"]
	}
	u.CPU, err = CPU(pid)
	return u, err
}

// Memory is what a process holds of its own, in bytes.
type Memory struct {
	RSS  uint64 // resident, with the program's shared text
	Anon uint64 // of it heap and stacks: what the process itself allocated
}

// ReadMemory looks at one process. smaps_rollup is exact where it may be read;
// the counters of status may be off by some pages per thread.
func ReadMemory(pid int) (Memory, error) {
	if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)); err == nil {
		f := fields(raw)
		if f["Rss"] > 0 {
			return Memory{RSS: f["Rss"] << 10, Anon: f["Anonymous"] << 10}, nil
		}
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, err
	}
	f := fields(raw)
	return Memory{RSS: f["VmRSS"] << 10, Anon: f["RssAnon"] << 10}, nil
}

// fields reads "name: number unit" lines; others are left out.
func fields(raw []byte) map[string]uint64 {
	out := map[string]uint64{}
	for line := range bytes.Lines(raw) {
		name, rest, ok := strings.Cut(string(line), ":")
		words := strings.Fields(rest)
		if !ok || len(words) == 0 {
			continue
		}
		if n, err := strconv.ParseUint(words[0], 10, 64); err == nil {
			out[name] = n
		}
	}
	return out
}

// Environ is the environment that a process was started with. It can be read
// for processes of one's own labs, as root and in a user namespace.
func Environ(pid int) (map[string]string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for kv := range strings.SplitSeq(string(raw), "\x00") {
		if name, value, ok := strings.Cut(kv, "="); ok {
			out[name] = value
		}
	}
	return out, nil
}

// Program is the path of the program that a process runs.
func Program(pid int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	return path
}

// Arguments are what a process was started with.
func Arguments(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "" // it has ended
	}
	return strings.ReplaceAll(string(raw), "\x00", " ")
}
