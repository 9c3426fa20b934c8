package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/stats"
)

// changed is the fixture with one metric of marrow multiplied.
func changed(metric string, factor float64, peers ...string) result.File {
	run := fixture(peers...)
	for _, s := range run.Samples {
		if v, ok := s.Metrics[metric]; ok && s.Impl == result.Marrow {
			s.Metrics[metric] = v * factor
		}
	}
	run.Machine.Commit = "ba9876543210"
	return stats.Analyse(run)
}

func compared(t *testing.T, a, b result.File) string {
	t.Helper()
	var out bytes.Buffer
	if err := Compare(&out, a, b); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// says is the last words of the first line that holds all of what.
func says(t *testing.T, out string, what ...string) string {
	t.Helper()
	for l := range strings.Lines(out) {
		all := true
		for _, w := range what {
			all = all && strings.Contains(l, w)
		}
		if all {
			return strings.TrimSpace(l)
		}
	}
	t.Fatalf("no line with %q in\n%s", what, out)
	return ""
}

func TestCompare(t *testing.T) {
	a := stats.Analyse(fixture("peer"))
	b := changed("cpu_s_per_gb_proxies", 0.8, "peer")
	b.Rows = append(b.Rows[:len(b.Rows)-1:len(b.Rows)-1], result.Row{Scenario: "new", Metric: "rate", Unit: "1/s"})
	out := compared(t, a, b)
	golden(t, "compare.golden", []byte(out))
	if l := says(t, out, "CPU per GB, proxies", "÷ peer"); !strings.HasSuffix(l, "better") || !strings.Contains(l, "0.80") {
		t.Error(l)
	}
	if l := says(t, out, "throughput"); !strings.HasSuffix(l, "no change shown") {
		t.Error(l)
	}
	if l := says(t, compared(t, b, a), "CPU per GB, proxies"); !strings.HasSuffix(l, "worse") {
		t.Error(l)
	}
	faster := changed("gb_per_s", 1.3, "peer")
	if l := says(t, compared(t, a, faster), "throughput"); !strings.HasSuffix(l, "better") {
		t.Error(l)
	}
}

// TestCompareAnchors: a peer of another version is no measure; direct is, and
// where it has no value marrow's own has to do. Counters need none.
func TestCompareAnchors(t *testing.T) {
	a, b := stats.Analyse(fixture("peer")), stats.Analyse(fixture("peer"))
	b.Machine.Versions = map[string]string{result.Marrow: "v0.0.0-test", "peer": "1.2.4 /opt/peer/ztunnel"}
	out := compared(t, a, b)
	if !strings.Contains(out, "peer's version: A 1.2.3 /opt/peer/ztunnel, B 1.2.4 /opt/peer/ztunnel") {
		t.Error(out)
	}
	if strings.Contains(out, "÷ peer") {
		t.Error("rows are measured by a peer that changed")
	}
	says(t, out, "throughput", "÷ direct")
	says(t, out, "CPU per GB, proxies", "value, CPU-s/GB")
	says(t, compared(t, a, a), "syscalls per MB", "value, calls/MB", "no change shown")
}

func TestCompareTooFewRounds(t *testing.T) {
	a, b := changed("user_bytes_per_conn", 1), changed("user_bytes_per_conn", 3)
	for i := range a.Rows {
		a.Rows[i].Rounds = 1
	}
	if l := says(t, compared(t, a, b), "user memory"); !strings.HasSuffix(l, stats.TooFew) {
		t.Error(l)
	}
}

func TestCompareRefusesTwoMachines(t *testing.T) {
	a := stats.Analyse(fixture("peer"))
	for name, change := range map[string]func(*result.Machine){
		"cpu":         func(m *result.Machine) { m.CPU = "Other CPU" },
		"cores":       func(m *result.Machine) { m.Cores = 4 },
		"flags":       func(m *result.Machine) { m.CPUFlags = []string{"aes"} },
		"kernel":      func(m *result.Machine) { m.Kernel = "6.2" },
		"memory":      func(m *result.Machine) { m.MemoryMiB++ },
		"mitigations": func(m *result.Machine) { m.Mitigations = nil },
		"virtual":     func(m *result.Machine) { m.Hypervisor = false },
		"host":        func(m *result.Machine) { m.Host = "elsewhere" },
	} {
		b := changed("cpu_s_per_gb_proxies", 0.5, "peer")
		change(&b.Machine)
		var out bytes.Buffer
		err := Compare(&out, a, b)
		if !errors.Is(err, ErrTwoMachines) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if text := out.String(); strings.Contains(text, "better") || strings.Contains(text, "worse") || !strings.Contains(text, "TWO MACHINES") {
			t.Errorf("%s: %s", name, text)
		}
		if name == "cpu" {
			golden(t, "compare-machines.golden", out.Bytes())
		}
	}
	b := a // the order of flags and another Go are no other machine
	b.Machine.CPUFlags = []string{"vpclmulqdq", "vaes", "avx2", "aes"}
	b.Machine.GoVersion = "go1.28"
	if err := Compare(&bytes.Buffer{}, a, b); err != nil {
		t.Error(err)
	}
}

// FuzzResults: a results.json of anybody's is printed, compared and gated
// without falling over.
func FuzzResults(f *testing.F) {
	for _, peers := range [][]string{nil, {"peer"}} {
		file := stats.Analyse(fixture(peers...))
		file.Rows = file.Rows[:2] // small seeds, for speed
		b, err := json.Marshal(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"rows":[{"goal":"P1","metric":"a","verdict":{"direct":"win, ahead","":"x"},"values":{"marrow":-1},"per_round":{"marrow":[],"direct":[0]},"rounds":-1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var file result.File
		if json.Unmarshal(b, &file) != nil || len(file.Rows) > 20 {
			return
		}
		Tables(&bytes.Buffer{}, file)
		if err := Compare(&bytes.Buffer{}, file, file); err != nil {
			t.Error("a file is of another machine than itself:", err)
		}
		_ = Gate(file, []Budget{{Metric: "a", Most: 1}})
		if _, _, err := render(result.Run{}, file); err != nil {
			t.Error(err)
		}
	})
}
