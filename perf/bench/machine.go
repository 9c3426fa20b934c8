package bench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/perf/account"
	"github.com/marrowmesh/marrow/perf/result"
)

// describe is the machine block, as far as it is known before any lab.
func describe(began time.Time) result.Machine {
	m := result.Machine{
		Cores: runtime.NumCPU(), GoVersion: runtime.Version(), Started: began.UTC(), Mitigations: map[string]string{},
		Versions: map[string]string{}, CipherSuites: map[string]string{}, KeyExchanges: map[string]string{}, Environment: map[string]string{},
	}
	m.Host, _ = os.Hostname() // for the reader only
	info := keys("/proc/cpuinfo")
	m.CPU = info["model name"]
	flags := strings.Fields(info["flags"])
	for _, f := range []string{"aes", "vaes", "pclmulqdq", "vpclmulqdq", "avx", "avx2", "avx512f", "avx512vl", "avx512bw", "sha_ni", "bmi2", "adx", "fsrm", "erms"} {
		if slices.Contains(flags, f) {
			m.CPUFlags = append(m.CPUFlags, f)
		}
	}
	m.Hypervisor = slices.Contains(flags, "hypervisor")
	m.AESPath = aesPath(flags)
	m.MemoryMiB = memoryMiB(keys("/proc/meminfo")["MemTotal"])
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // for the reader only
	m.Kernel = strings.TrimSpace(string(release))
	files, _ := filepath.Glob("/sys/devices/system/cpu/vulnerabilities/*") // the pattern is right
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil {
			m.Mitigations[filepath.Base(f)] = strings.TrimSpace(string(raw))
		}
	}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			switch {
			case s.Key == "vcs.revision":
				m.Commit = s.Value + m.Commit
			case s.Key == "vcs.modified" && s.Value == "true":
				m.Commit += " with changes"
			}
		}
	}
	return m
}

// keys reads "name : value" lines; of several with one name the first.
func keys(path string) map[string]string {
	out := map[string]string{}
	raw, err := os.ReadFile(path)
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(raw)) {
		name, value, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		if _, have := out[name]; ok && !have {
			out[name] = strings.TrimSpace(value)
		}
	}
	return out
}

func memoryMiB(text string) int {
	var kib int
	_, _ = fmt.Sscan(text, &kib) // zero when it is not there
	return kib >> 10
}

// aesPath says which of the usual implementations of AES-GCM this CPU allows.
func aesPath(flags []string) string {
	has := func(names ...string) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(flags, n) })
	}
	switch {
	case has("vaes", "vpclmulqdq", "avx512f", "avx512vl", "avx512bw"):
		return "VAES with AVX-512 (OpenSSL and AWS-LC use it; Go's standard library uses AES-NI)"
	case has("vaes", "vpclmulqdq", "avx2"):
		return "VAES with AVX2 (newer OpenSSL and AWS-LC use it; Go's standard library uses AES-NI)"
	case has("aes", "pclmulqdq"):
		return "AES-NI with PCLMULQDQ"
	}
	return "none in hardware that we know"
}

// version names the program that is really running as this lab's proxy: what
// it says of itself, and the hash of its file.
func (w *world) version(ctx context.Context, place string) string {
	if !w.proxied() {
		return "no mesh"
	}
	table, err := account.ReadTable()
	if err != nil {
		return ""
	}
	pids, err := w.proxies(table)
	if err != nil {
		return ""
	}
	exe := fmt.Sprintf("/proc/%d/exe", pids[place][0])
	path := account.Program(pids[place][0])
	sum := sha256.New()
	f, err := os.Open(exe)
	if err != nil {
		return path
	}
	defer func() { _ = f.Close() }()
	if _, err := io.Copy(sum, f); err != nil {
		return path
	}
	words := []string{path, "sha256:" + hex.EncodeToString(sum.Sum(nil))[:16]}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, path, "version").Output(); err == nil && len(out) < 4096 {
		words = append(words, strings.Join(strings.Fields(string(out)), " "))
	}
	return strings.Join(words, " ")
}
