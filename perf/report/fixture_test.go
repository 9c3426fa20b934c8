package report

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/stats"
)

// fixture is a made-up run: its numbers are random with a fixed seed, and
// nobody measured them.
func fixture(peers ...string) result.Run {
	run := result.Run{
		Impls: append([]string{result.Direct, result.Marrow}, peers...),
		Machine: result.Machine{
			CPU: "Example CPU 3000", Cores: 2, CPUFlags: []string{"aes", "avx2", "vaes", "vpclmulqdq"}, AESPath: "AES-NI; VAES on 256 bits", MemoryMiB: 7936,
			Kernel: "6.1.0-0", Hypervisor: true, GoVersion: "go1.27.4", Commit: "0123456789ab", Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			Mitigations: map[string]string{"meltdown": "Not affected", "mds": "Not affected", "spectre_v2": "Mitigation: Retpolines", "srso": "Vulnerable"},
			Command:     []string{"marrow", "perf", "run", "--rounds", "20", "--peer", "peer=/opt/peer/ztunnel --flag"}, Seed: 42, Wall: 1234,
			Versions:     map[string]string{result.Marrow: "v0.0.0-test", "peer": "1.2.3 /opt/peer/ztunnel"},
			CipherSuites: map[string]string{result.Marrow: "TLS_AES_128_GCM_SHA256", "peer": "TLS_AES_256_GCM_SHA384"},
			KeyExchanges: map[string]string{result.Marrow: "X25519MLKEM768", "peer": "X25519"},
			Environment:  map[string]string{"peer": "RUST_LOG=error"},
		},
	}
	run.Scenarios = []result.Scenario{
		{Name: "bulk-1-up", Title: "1 stream of one pod pair, client to server, two nodes", Goal: "P1", Metrics: []result.Metric{
			{Name: "gb_per_s", Unit: "GB/s", Goal: "P3", Ship: 1.05, Ahead: 1.25, HigherIsBetter: true, Direct: true},
			{Name: "cpu_s_per_gb_proxies", Unit: "CPU-s/GB", Goal: "P1", Ship: 0.95, Ahead: 0.8},
			{Name: "cpu_s_per_gb_machine", Unit: "CPU-s/GB", Direct: true},
			{Name: "syscalls_per_mb_source", Unit: "calls/MB", Counter: true, Bound: 40},
		}},
		{Name: "open-100-1000", Title: "1,000 round trips of 100 bytes a second on 32 connections, from the intended time", Goal: "P5", Metrics: []result.Metric{
			{Name: "cpu_us_per_rt_proxies", Unit: "µs"},
			{Name: "rtt_p50_us", Unit: "µs", Goal: "P5", Ship: 1, Ahead: 0.75, Direct: true, Added: true},
			{Name: "rtt_p99_us", Unit: "µs", Goal: "P5", Ship: 1, Ahead: 0.75, Direct: true, Added: true},
			{Name: "offered_per_s", Unit: "1/s", Direct: true, Shown: true},
		}},
		{Name: "idle-10k", Title: "10000 idle connections through one pod pair, two nodes, fresh proxies", Goal: "P7", MaxRounds: 3, Metrics: []result.Metric{
			{Name: "user_bytes_per_conn", Unit: "B", Goal: "P7", Ship: 1.5, Ahead: 0.8},
			{Name: "base_rss_mib", Unit: "MiB", Goal: "P8", Ship: 2, Ahead: 1.2},
		}},
	}
	// What each needs, relative to marrow, and direct where it has the metric.
	typical := map[string][2]float64{ // marrow, direct
		"gb_per_s": {0.3, 0.7}, "cpu_s_per_gb_proxies": {2.9, 0}, "cpu_s_per_gb_machine": {4.4, 1.1}, "syscalls_per_mb_source": {12, 0},
		"cpu_us_per_rt_proxies": {88, 0}, "rtt_p50_us": {240, 70}, "rtt_p99_us": {910, 260}, "offered_per_s": {1000, 1000},
		"user_bytes_per_conn": {3900, 0}, "base_rss_mib": {31, 0},
	}
	factor := map[string]float64{
		"gb_per_s": 0.93, "cpu_s_per_gb_proxies": 1.31, "cpu_s_per_gb_machine": 1.18, "syscalls_per_mb_source": 7, "cpu_us_per_rt_proxies": 1,
		"rtt_p50_us": 1.05, "rtt_p99_us": 1.3, "offered_per_s": 1, "user_bytes_per_conn": 1.4, "base_rss_mib": 0.55,
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for i, b := range stats.Schedule(run.Scenarios, run.Impls, 20, run.Machine.Seed) {
		s := result.Sample{
			Scenario: b.Scenario, Impl: b.Impl, Round: b.Round, Start: run.Machine.Started.Add(time.Duration(2*i) * time.Second), Seconds: 1.6,
			Metrics: map[string]float64{}, Noise: result.Noise{Steal: 0.004 * rng.Float64(), Calibration: 1 + 0.02*rng.Float64(), Foreign: 0.01 * rng.Float64()},
		}
		mood := 1 + 0.1*math.Sin(float64(b.Round)/3)
		for _, sc := range run.Scenarios {
			if sc.Name == b.Scenario {
				fill(&s, sc, typical, factor, mood, rng)
			}
		}
		run.Samples = append(run.Samples, s)
	}
	for i := range run.Samples {
		s := &run.Samples[i]
		if s.Round == 9 && s.Impl == result.Marrow && s.Scenario == "bulk-1-up" {
			s.Noise.Steal = 0.034
		}
		if s.Round == 14 && s.Impl == result.Direct && s.Scenario == "bulk-1-up" {
			s.Noise.Calibration = 1.13
		}
	}
	return run
}

func fill(s *result.Sample, sc result.Scenario, typical map[string][2]float64, factor map[string]float64, mood float64, rng *rand.Rand) {
	for _, m := range sc.Metrics {
		v := typical[m.Name][0]
		switch s.Impl {
		case result.Direct:
			if v = typical[m.Name][1]; !m.Direct {
				continue
			}
		case result.Marrow:
		case "other":
			v *= 1 + 2*(factor[m.Name]-1)
		default:
			v *= factor[m.Name]
		}
		noise := 0.03
		if m.Counter {
			s.Metrics[m.Name] = math.Round(v)
			continue
		}
		s.Metrics[m.Name] = v * mood * (1 + noise*rng.NormFloat64())
	}
	if p50, ok := s.Metrics["rtt_p50_us"]; ok {
		for e := range 60 {
			up := math.Round(20 * math.Pow(1.16, float64(e)))
			z := math.Log(up/p50) / 0.35
			n := uint64(math.Round(1600 * (0.5*math.Erfc(-z/math.Sqrt2) - 0.5*math.Erfc(-(z-math.Log(1.16)/0.35)/math.Sqrt2))))
			if e > 30 && n == 0 && rng.Float64() < 0.12 {
				n = 1
			}
			if n > 0 {
				s.Histogram = append(s.Histogram, result.Bucket{UpTo: up, Count: n})
			}
		}
	}
}
