//go:build lab

package lab_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	perf "github.com/marrowmesh/marrow/perf/result"
)

// TestTinyRun boots real labs for one short round of a few scenarios, with our
// own ztunnel once more as a peer, and finds a figure for everything that the
// table promises. Whether the figures are good is not this test's to say.
func TestTinyRun(t *testing.T) {
	p := here.apart(t)
	out := filepath.Join(p.dir, "report")
	r := p.marrow(t, 2*time.Minute, "perf", "run", "--scenario", "bulk-1-up,rt-100-1,open-100-1000,conn-warm-1,handshake", "--rounds", "1", "--block", "300ms",
		"--peer", "twin="+filepath.Join(p.bin, "ztunnel"), "--peer-ztunnel-config", "LOG_FORMAT=json", "--out", out, "--json")
	if r.forbidden() {
		skipOrFail(t, r.stderr)
	}
	if r.exit != 0 {
		t.Fatalf("status %d\n%s", r.exit, tail(r.stderr, 4000))
	}
	var file perf.File
	if err := json.Unmarshal([]byte(r.stdout), &file); err != nil {
		t.Fatalf("results: %v", err)
	}
	m := file.Machine
	for _, name := range []string{perf.Marrow, "twin"} {
		if m.CipherSuites[name] == "" || m.KeyExchanges[name] == "" || m.Versions[name] == "" {
			t.Errorf("%s: what was negotiated and run is not known: %+v", name, m)
		}
	}
	if m.Environment["twin"] != "LOG_FORMAT=json" || m.CPU == "" || m.Kernel == "" {
		t.Errorf("machine %+v", m)
	}
	raw, err := os.ReadFile(filepath.Join(out, "samples.json"))
	if err != nil {
		t.Fatal(err)
	}
	var run perf.Run
	if err := json.Unmarshal(raw, &run); err != nil {
		t.Fatal(err)
	}
	if len(run.Samples) != 4*3+2 {
		t.Errorf("%d samples, want 14", len(run.Samples))
	}
	scenarios := map[string]perf.Scenario{}
	for _, s := range run.Scenarios {
		scenarios[s.Name] = s
	}
	for _, s := range run.Samples {
		if s.Failed != "" {
			t.Errorf("%s, %s: %s", s.Scenario, s.Impl, s.Failed)
			continue
		}
		for _, metric := range scenarios[s.Scenario].Metrics {
			v, ok := s.Metrics[metric.Name]
			// Calls can be counted by root only, and a capture may lose packets.
			may := metric.Counter && (os.Getuid() != 0 || metric.Name == "records_per_mb" || metric.Name == "wire_over_payload")
			if !ok && !may && (s.Impl != perf.Direct || metric.Direct) || v < 0 {
				t.Errorf("%s, %s: %s = %v, measured: %t", s.Scenario, s.Impl, metric.Name, v, ok)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(out, "report.html")); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(p.labs, "*")); err != nil || len(left) > 0 {
		t.Errorf("labs are left: %v, %v", left, err)
	}
}
