package scenario

import (
	"fmt"
	"time"

	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/result"
)

const (
	warm    = 500 * time.Millisecond
	measure = 1600 * time.Millisecond
)

// goal judges a metric: its number and the bounds of the ratio.
func goal(m result.Metric, number string, ship, ahead float64) result.Metric {
	m.Goal, m.Ship, m.Ahead = number, ship, ahead
	return m
}

// timing is a figure that also exists without a mesh.
func timing(name, unit string) result.Metric {
	return result.Metric{Name: name, Unit: unit, Direct: true}
}

// rate is such a figure of which more is better.
func rate(name, unit string) result.Metric {
	return result.Metric{Name: name, Unit: unit, Direct: true, HigherIsBetter: true}
}

// proxied is a figure of the proxies.
func proxied(name, unit string) result.Metric { return result.Metric{Name: name, Unit: unit} }

// shown is a figure of the load, which nobody is better by.
func shown(name, unit string) result.Metric {
	return result.Metric{Name: name, Unit: unit, Direct: true, Shown: true}
}

// counter is a count; bound 0 = none.
func counter(name, unit string, bound float64) result.Metric {
	return result.Metric{Name: name, Unit: unit, Counter: true, Bound: bound}
}

// Bounds of counters. They are above what was measured by about half, for
// machines that hand work over at other moments, and below what any of the
// usual mistakes costs: a goroutine or a record per read, a copy that
// allocates, a line that is written by itself.
const (
	// maxSyscallsPerMB is what one way in bulk may cost on each proxy.
	maxSyscallsPerMB = 40
	maxFramesPerMB   = 40      // both proxies; one stream alone fills frames of up to 1 MiB, many have 64 KiB each
	maxCopiedPerMB   = 150_000 // of a million bytes, beside encryption: what comes while a socket is full
	maxAllocsPerMB   = 5       // a collection during the phase costs some, a record none
	maxSyscallsPerRT = 16
	maxAllocsPerRT   = 1
	maxFramesPerRT   = 6 // two of DATA, and now and then a window
	// New connections, each proxy for the calls and both for the allocations.
	maxSyscallsPerConn = 45
	maxAllocsPerConn   = 280
)

// bulkMetrics of a transfer; near has one proxy only.
func bulkMetrics(cpu, throughput result.Metric, near bool) []result.Metric {
	out := []result.Metric{throughput, cpu}
	if near {
		out = append(out, timing("cpu_s_per_gb_machine", "CPU-s/GB"), counter("syscalls_per_mb_source", "calls/MB", maxSyscallsPerMB))
	} else {
		out = append(out, proxied("cpu_s_per_gb_source", "CPU-s/GB"), proxied("cpu_s_per_gb_destination", "CPU-s/GB"),
			timing("cpu_s_per_gb_machine", "CPU-s/GB"),
			counter("syscalls_per_mb_source", "calls/MB", maxSyscallsPerMB), counter("syscalls_per_mb_destination", "calls/MB", maxSyscallsPerMB),
			counter("records_per_mb", "records/MB", 0), counter("wire_over_payload", "×", 0))
	}
	return append(out, counter("switches_per_mb", "switches/MB", 0), counter("allocs_per_mb", "allocations/MB", maxAllocsPerMB),
		counter("frames_per_mb", "frames/MB", maxFramesPerMB), counter("copied_bytes_per_mb", "B/MB", maxCopiedPerMB))
}

func bulk() []Scenario {
	cpu := func() result.Metric { return proxied("cpu_s_per_gb_proxies", "CPU-s/GB") }
	speed := func() result.Metric { return rate("gb_per_s", "GB/s") }
	var out []Scenario
	add := func(s Scenario, c, r result.Metric) {
		s.Warm, s.Measure = warm, measure
		s.Metrics = bulkMetrics(c, r, s.Near)
		out = append(out, s)
	}
	named := func(name, title, number string, quick bool) result.Scenario {
		return result.Scenario{Name: name, Title: title, Goal: number, Quick: quick}
	}
	for _, n := range []int{1, 4, 16, 64} {
		c, r := cpu(), speed()
		switch n {
		case 1:
			c, r = goal(c, "P1", 0.95, 0.80), goal(r, "P3", 1.05, 1.25)
		case 16:
			r = goal(r, "P3", 1.15, 1.3)
		}
		number := map[int]string{1: "P1", 16: "P3"}[n]
		add(Scenario{
			Scenario: named(fmt.Sprintf("bulk-%d-up", n), fmt.Sprintf("%d streams of one pod pair, client to server, two nodes", n), number, n == 1 || n == 16),
			Load:     load.Spec{Kind: load.BulkUp, Conns: n},
		}, c, r)
	}
	for _, n := range []int{1, 16} {
		add(Scenario{
			Scenario: named(fmt.Sprintf("bulk-%d-down", n), fmt.Sprintf("%d streams of one pod pair, server to client, two nodes", n), "P1", false),
			Load:     load.Spec{Kind: load.BulkDown, Conns: n},
		}, cpu(), speed())
	}
	add(Scenario{
		Scenario: named("bulk-pairs-up", "4 streams of each of four pod pairs, client to server, two nodes", "P3", false),
		Load:     load.Spec{Kind: load.BulkUp, Conns: 4}, Pairs: 4,
	}, cpu(), speed())
	// Far below what any of them can do: nobody saves CPU by being slow, nor
	// by gathering what has piled up.
	add(Scenario{
		Scenario: named("bulk-1-paced", "one stream held at 100 MB/s, client to server, two nodes", "P1", false),
		Load:     load.Spec{Kind: load.BulkUp, Conns: 1, Rate: 100e6},
	}, cpu(), speed())
	add(Scenario{
		Scenario: named("near-1-up", "one stream, both pods on one node", "P2", true),
		Load:     load.Spec{Kind: load.BulkUp, Conns: 1}, Near: true,
	}, goal(cpu(), "P2", 0.40, 0.25), speed())
	add(Scenario{
		Scenario: named("near-16-down", "16 streams, both pods on one node, server to client", "P2", false),
		Load:     load.Spec{Kind: load.BulkDown, Conns: 16}, Near: true,
	}, goal(cpu(), "P2", 0.40, 0.25), speed())
	return out
}

// tripMetrics of round trips.
func tripMetrics(cpu result.Metric, p50, p99 result.Metric, near bool) []result.Metric {
	out := []result.Metric{cpu, timing("cpu_us_per_rt_machine", "µs"), p50, p99, counter("syscalls_per_rt_source", "calls", maxSyscallsPerRT)}
	if !near {
		out = append(out, counter("syscalls_per_rt_destination", "calls", maxSyscallsPerRT))
	}
	return append(out, counter("switches_per_rt", "switches", 0), counter("allocs_per_rt", "allocations", maxAllocsPerRT),
		counter("frames_per_rt", "frames", maxFramesPerRT), counter("copied_bytes_per_rt", "B", 0))
}

func trips() []Scenario {
	var out []Scenario
	sizes := map[int]string{100: "100", 1000: "1k"}
	for _, size := range []int{100, 1000} {
		for _, n := range []int{1, 32, 256} {
			cpu := proxied("cpu_us_per_rt_proxies", "µs")
			number := ""
			if n <= 32 {
				cpu, number = goal(cpu, "P4", 0.95, 0.70), "P4"
			}
			out = append(out, Scenario{
				Scenario: result.Scenario{
					Name: fmt.Sprintf("rt-%s-%d", sizes[size], n), Title: fmt.Sprintf("round trips of %d bytes on %d connections, closed loop, two nodes", size, n), Goal: number,
					Quick:   size == 100 && n == 1 || size == 1000 && n == 32,
					Metrics: append([]result.Metric{rate("rt_per_s", "1/s")}, tripMetrics(cpu, timing("rtt_p50_us", "µs"), timing("rtt_p99_us", "µs"), false)...),
				},
				Load: load.Spec{Kind: load.Closed, Conns: n, Size: size}, Warm: warm, Measure: measure,
			})
		}
	}
	out = append(out, Scenario{
		Scenario: result.Scenario{
			Name: "near-rt-100-32", Title: "round trips of 100 bytes on 32 connections, closed loop, both pods on one node",
			Metrics: append([]result.Metric{rate("rt_per_s", "1/s")},
				tripMetrics(proxied("cpu_us_per_rt_proxies", "µs"), timing("rtt_p50_us", "µs"), timing("rtt_p99_us", "µs"), true)...),
		},
		Load: load.Spec{Kind: load.Closed, Conns: 32, Size: 100}, Near: true, Warm: warm, Measure: measure,
	})
	added := func(name string) result.Metric {
		m := timing(name, "µs")
		m.Added = true
		return goal(m, "P5", 1.0, 0.75)
	}
	open := func(name, title string, quick bool, spec load.Spec, halfOf string) {
		spec.Kind = load.Open
		out = append(out, Scenario{
			Scenario: result.Scenario{
				Name: name, Title: title, Goal: "P5", Quick: quick,
				Metrics: append(tripMetrics(proxied("cpu_us_per_rt_proxies", "µs"), added("rtt_p50_us"), added("rtt_p99_us"), false),
					timing("rtt_p999_us", "µs"), shown("generator_late_p99_us", "µs"), shown("offered_per_s", "1/s")),
			},
			Load: spec, HalfOf: halfOf, Warm: warm, Measure: measure,
		})
	}
	open("open-100-1000", "1,000 round trips of 100 bytes a second on 32 connections, from the intended time", true, load.Spec{Conns: 32, Size: 100, Rate: 1000}, "")
	open("open-1k-1000", "1,000 round trips of 1,000 bytes a second on 32 connections, from the intended time", false, load.Spec{Conns: 32, Size: 1000, Rate: 1000}, "")
	open("open-100-half", "100 bytes on 32 connections at half of what the slowest can do, from the intended time", false, load.Spec{Conns: 32, Size: 100, Rate: 1000}, "rt-100-32")
	beside := func(name, title string, crowd load.Spec) {
		out = append(out, Scenario{
			Scenario: result.Scenario{
				Name: name, Title: title, MaxRounds: 4,
				Metrics: []result.Metric{timing("rtt_p50_us", "µs"), timing("rtt_p99_us", "µs"), timing("p99_beside_over_alone", "×")},
			},
			How: Beside, Load: load.Spec{Kind: load.Closed, Conns: 8, Size: 100}, Crowd: crowd, Warm: warm, Measure: measure / 2,
		})
	}
	beside("slow-beside", "round trips of 100 bytes on 8 connections beside 16 slow readers of the same pod pair", load.Spec{Kind: load.Slow, Conns: 16})
	// Held at a rate, so that nobody suffers from being fast.
	beside("bulk-beside", "round trips of 100 bytes on 8 connections beside 4 streams of together 100 MB/s of the same pod pair",
		load.Spec{Kind: load.BulkUp, Conns: 4, Rate: 100e6})
	return out
}

func connections() []Scenario {
	var out []Scenario
	for _, n := range []int{1, 16} {
		cpu := proxied("conns_per_cpu_s", "1/CPU-s")
		cpu.HigherIsBetter = true
		if n == 16 {
			cpu = goal(cpu, "P6", 1.1, 1.5)
		}
		out = append(out, Scenario{
			Scenario: result.Scenario{
				Name: fmt.Sprintf("conn-warm-%d", n), Title: fmt.Sprintf("new connections, one byte each way, %d at a time, tunnel warm, two nodes", n), Goal: "P6", Quick: n == 16,
				Metrics: []result.Metric{
					cpu, rate("conns_per_s", "1/s"), timing("cpu_us_per_conn_machine", "µs"), timing("conn_p50_us", "µs"), timing("conn_p99_us", "µs"),
					counter("syscalls_per_conn_source", "calls", maxSyscallsPerConn), counter("syscalls_per_conn_destination", "calls", maxSyscallsPerConn),
					counter("switches_per_conn", "switches", 0), counter("allocs_per_conn", "allocations", maxAllocsPerConn), counter("tunnels_per_conn", "tunnels", 0),
				},
			},
			Load: load.Spec{Kind: load.Connect, Conns: n}, Warm: warm, Measure: measure,
		})
	}
	return append(out, Scenario{
		Scenario: result.Scenario{
			Name: "conn-cold", Title: "new connections, one byte each way, each with a tunnel and its mTLS handshake of its own, two nodes", Goal: "",
			Metrics: []result.Metric{
				proxied("cpu_us_per_cold_conn_proxies", "µs"), proxied("cpu_us_per_cold_conn_source", "µs"), proxied("cpu_us_per_cold_conn_destination", "µs"),
				timing("cold_p50_us", "µs"), counter("tunnels_per_conn", "tunnels", 0),
			},
		},
		How: Cold, Pairs: coldPairs, Load: load.Spec{Kind: load.Cold, Conns: 1, Gap: coldGap}, Warm: 100 * time.Millisecond, Measure: 2 * coldGap,
	}, Scenario{
		Scenario: result.Scenario{
			Name: "handshake", Title: "full mTLS handshakes with the destination's port 15008, key exchange and client alike for all", Goal: "", Quick: false,
			Metrics: []result.Metric{
				proxied("cpu_us_per_handshake_destination", "µs"), proxied("handshake_p50_us", "µs"), counter("syscalls_per_handshake_destination", "calls", 0),
			},
		},
		Load: load.Spec{Kind: load.Handshake, Conns: 4}, Warm: warm, Measure: measure,
	})
}

// Cold tunnels: every pair of a client and a server pod has a tunnel of its
// own, which the proxies give up after ColdRelease without a stream.
const (
	ColdRelease = 500 * time.Millisecond
	coldGap     = 1500 * time.Millisecond
	coldPairs   = 4
)

// memory scenarios begin with a lab of two pods that nobody has used.
func memory() []Scenario {
	held := func(name string, n int, quick bool, number string, rounds int, rest time.Duration) Scenario {
		perConn := proxied("user_bytes_per_conn", "B")
		if number != "" {
			perConn = goal(perConn, number, 1.5, 0.8)
		}
		return Scenario{
			Scenario: result.Scenario{
				Name: name, Title: fmt.Sprintf("%d idle connections through one pod pair, two nodes, fresh proxies", n), Goal: number, Quick: quick, MaxRounds: rounds,
				Metrics: []result.Metric{
					perConn, proxied("user_bytes_per_conn_source", "B"), proxied("user_bytes_per_conn_destination", "B"),
					timing("kernel_bytes_per_conn_machine", "B"), goal(proxied("base_rss_mib", "MiB"), "P8", 2.0, 1.2),
				},
			},
			How: Held, Load: load.Spec{Kind: load.Idle, Conns: n}, Wait: rest,
		}
	}
	return []Scenario{
		held("idle-1k", 1000, true, "", 1, 2*time.Second),
		held("idle-10k", 10000, false, "P7", 3, 30*time.Second),
		{
			Scenario: result.Scenario{
				Name: "burst", Title: "memory 60 s after a burst of 1,000 streams, fresh proxies", Goal: "P8", MaxRounds: 2,
				Metrics: []result.Metric{
					goal(proxied("rss_after_burst_mib", "MiB"), "P8", 1.0, 0.5), proxied("rss_peak_mib", "MiB"), proxied("base_rss_mib", "MiB"),
				},
			},
			How: Burst, Load: load.Spec{Kind: load.BulkUp, Conns: 1000}, Measure: 2 * time.Second, Wait: 60 * time.Second,
		},
	}
}
