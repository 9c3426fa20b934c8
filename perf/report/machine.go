package report

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/perf/result"
)

// fact is one line of the machine block.
type fact struct{ Name, Text string }

// machineLines is everything one must know to believe a number. Two machines,
// or two sets of lines, are not comparable.
func machineLines(m result.Machine) []fact {
	where := "bare metal, as far as the CPU says"
	if m.Hypervisor {
		where = "virtual machine"
	}
	out := []fact{
		{"cpu", fmt.Sprintf("%s, %d cores for the run, %s", orNone(m.CPU), m.Cores, where)},
		{"flags", orNone(strings.Join(m.CPUFlags, " "))},
		{"AES", orNone(m.AESPath)},
		{"memory", grouped(float64(m.MemoryMiB)) + " MiB"},
		{"kernel", orNone(m.Kernel)},
		{"mitigations", mitigations(m.Mitigations)},
		{"go", orNone(m.GoVersion)},
		{"commit", orNone(m.Commit)},
	}
	for _, impl := range allImpls(m) {
		var parts []string
		if v := m.Versions[impl]; v != "" {
			parts = append(parts, v)
		}
		if v := m.CipherSuites[impl]; v != "" {
			parts = append(parts, v)
		}
		if v := m.KeyExchanges[impl]; v != "" {
			parts = append(parts, "key exchange "+v)
		}
		if v := m.Environment[impl]; v != "" {
			parts = append(parts, "with "+v)
		}
		out = append(out, fact{impl, strings.Join(parts, "; ")})
	}
	if !m.Started.IsZero() {
		out = append(out, fact{"started", m.Started.UTC().Format(time.RFC3339)})
	}
	if m.Wall > 0 {
		out = append(out, fact{"took", (time.Duration(m.Wall) * time.Second).String()})
	}
	return append(out, fact{"repeat", command(m)})
}

// mitigations names only what the kernel does something about.
func mitigations(ms map[string]string) string {
	var out []string
	idle := 0
	for _, name := range sorted(ms) {
		if strings.HasPrefix(ms[name], "Not affected") {
			idle++
			continue
		}
		out = append(out, name+": "+strings.TrimPrefix(ms[name], "Mitigation: "))
	}
	if idle > 0 {
		out = append(out, fmt.Sprintf("%d others: not affected", idle))
	}
	return orNone(strings.Join(out, "; "))
}

// allImpls lists who the machine block knows: direct, marrow, then peers.
func allImpls(m result.Machine) []string {
	seen := map[string]bool{}
	for _, set := range []map[string]string{m.Versions, m.CipherSuites, m.KeyExchanges, m.Environment} {
		for k := range set {
			seen[k] = true
		}
	}
	out := sorted(seen)
	place := map[string]int{result.Direct: -2, result.Marrow: -1}
	slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(place[a], place[b]) })
	return out
}

// command is what to type to repeat the run.
func command(m result.Machine) string {
	words := make([]string, len(m.Command))
	for i, w := range m.Command {
		words[i] = quoted(w)
	}
	return orNone(strings.Join(words, " "))
}

// quoted is w as a shell takes it.
func quoted(w string) string {
	plain := strings.IndexFunc(w, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_./=:,@%+", r)
	})
	if w != "" && plain < 0 {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

// byNumber sorts P2 before P10.
func byNumber(goals []string) []string {
	number := func(g string) int {
		n, _ := strconv.Atoi(strings.TrimLeft(g, "PR"))
		return n
	}
	slices.SortStableFunc(goals, func(a, b string) int { return cmp.Or(cmp.Compare(number(a), number(b)), cmp.Compare(a, b)) })
	return goals
}
