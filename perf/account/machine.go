package account

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/stat: USER_HZ is 100 on every Linux of today.
const tick = 10 * time.Millisecond

// Machine is the use of all CPUs since the machine's start.
type Machine struct {
	At    time.Time
	CPUs  int
	Idle  time.Duration // idle and waiting for a disk, of all CPUs
	Steal time.Duration // the hypervisor's
}

// ReadMachine looks at /proc/stat.
func ReadMachine() (Machine, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Machine{}, err
	}
	return parseStat(time.Now(), string(raw))
}

func parseStat(at time.Time, text string) (Machine, error) {
	m := Machine{At: at}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 9 || !strings.HasPrefix(words[0], "cpu") {
			continue
		}
		if words[0] != "cpu" {
			m.CPUs++
			continue
		}
		var n [3]uint64
		for i, column := range []int{4, 5, 8} { // idle, iowait, steal
			v, err := strconv.ParseUint(words[column], 10, 64)
			if err != nil {
				return m, fmt.Errorf("/proc/stat: column %d of %q: %w", column, strings.TrimSpace(line), err)
			}
			n[i] = v
		}
		m.Idle, m.Steal = time.Duration(n[0]+n[1])*tick, time.Duration(n[2])*tick
	}
	if m.CPUs == 0 {
		return m, fmt.Errorf("/proc/stat names no CPU")
	}
	return m, nil
}

// Busy is the CPU time that was used between two looks by anything on this
// machine, softirqs included, the hypervisor's share left out.
func (m Machine) Busy(before Machine) time.Duration {
	return max(0, m.total(before)-(m.Idle-before.Idle)-(m.Steal-before.Steal))
}

// Stolen is the hypervisor's part of all CPU time between two looks.
func (m Machine) Stolen(before Machine) float64 {
	return part(m.Steal-before.Steal, m.total(before))
}

func (m Machine) total(before Machine) time.Duration {
	return time.Duration(m.CPUs) * m.At.Sub(before.At)
}

func part(d, of time.Duration) float64 {
	if of <= 0 {
		return 0
	}
	return max(0, float64(d)/float64(of))
}

// Kernel is kernel memory, in bytes.
type Kernel struct {
	TCP  uint64 // buffers of TCP sockets, of all namespaces
	Slab uint64 // sockets, inodes and all other objects
}

// Sum is both.
func (k Kernel) Sum() uint64 { return k.TCP + k.Slab }

// ReadKernel looks at /proc/net/sockstat and /proc/meminfo.
func ReadKernel() (Kernel, error) {
	sock, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return Kernel{}, err
	}
	mem, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Kernel{}, err
	}
	// The slab's reclaimable part is caches of files.
	k := Kernel{Slab: fields(mem)["SUnreclaim"] << 10}
	for line := range strings.Lines(string(sock)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "TCP:" {
			continue
		}
		for i := 1; i+1 < len(words); i += 2 {
			if n, err := strconv.ParseUint(words[i+1], 10, 64); err == nil && words[i] == "mem" {
				k.TCP = n * uint64(os.Getpagesize())
			}
		}
	}
	return k, nil
}

// Process is one line of the process table.
type Process struct {
	PID, Parent int
	CPU         time.Duration // to the tick
	Reaped      time.Duration // of its children that have ended
	Kernel      bool          // a thread of the kernel
}

// Table is the process table.
type Table map[int]Process

// ReadTable looks at every process.
func ReadTable() (Table, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	t := Table{}
	for _, d := range dirs {
		raw, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue // ended
		}
		if p, ok := parseProcess(string(raw)); ok {
			t[p.PID] = p
		}
	}
	return t, nil
}

// parseProcess reads /proc/PID/stat; the name, in parentheses, may hold anything.
func parseProcess(text string) (Process, bool) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return Process{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text[:open]))
	words := strings.Fields(text[end+1:])
	if err != nil || len(words) < 15 {
		return Process{}, false
	}
	n := make([]uint64, len(words))
	for i, w := range words {
		n[i], _ = strconv.ParseUint(w, 10, 64) // the state is no number; it is not used
	}
	const kernelThread = 0x00200000 // PF_KTHREAD of the flags
	return Process{
		PID: pid, Parent: int(n[1]), Kernel: n[6]&kernelThread != 0,
		CPU: time.Duration(n[11]+n[12]) * tick, Reaped: time.Duration(n[13]+n[14]) * tick,
	}, true
}

// Tree is root and all below it.
func (t Table) Tree(root int) map[int]bool {
	in := map[int]bool{root: true}
	for pid := range t {
		var path []int
		for at := pid; ; {
			if in[at] {
				for _, p := range path {
					in[p] = true
				}
				break
			}
			p, ok := t[at]
			if !ok || p.Parent == 0 || len(path) > len(t) {
				break
			}
			path = append(path, at)
			at = p.Parent
		}
	}
	return in
}

// Foreign is the CPU time that was used between two looks by processes that are
// not ours, those that came and went included as far as somebody waited for
// them. Threads of the kernel are nobody's.
func (t Table) Foreign(before Table, ours map[int]bool) time.Duration {
	var sum time.Duration
	for pid, p := range t {
		if ours[pid] || p.Kernel {
			continue
		}
		was := before[pid]
		sum += p.CPU - was.CPU + p.Reaped - was.Reaped
	}
	// What had ended by now was counted in full with who waited for it.
	for pid, p := range before {
		if _, alive := t[pid]; !alive && !ours[pid] && !p.Kernel && !ours[p.Parent] {
			sum -= p.CPU + p.Reaped
		}
	}
	return max(0, sum)
}
