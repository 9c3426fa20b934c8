package bench

import (
	"time"

	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/scenario"
)

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// fill writes a timed phase's figures under all names that the table knows,
// and keeps those that the scenario wants.
func fill(metrics map[string]float64, s scenario.Scenario, r load.Report, u used, mesh bool) {
	put := func(name string, value float64, per float64) {
		if per > 0 && wants(s, name) {
			metrics[name] = value / per
		}
	}
	gb, ops := float64(r.Bytes)/1e9, float64(r.Ops)
	put("gb_per_s", gb, r.Seconds)
	put("cpu_s_per_gb_machine", u.busy.Seconds(), gb)
	put("rt_per_s", ops, r.Seconds)
	put("cpu_us_per_rt_machine", micros(u.busy), ops)
	put("req_per_s", ops, r.Seconds)
	put("cpu_us_per_req_machine", micros(u.busy), ops)
	put("conns_per_s", ops, r.Seconds)
	put("cpu_us_per_conn_machine", micros(u.busy), ops)
	if mesh {
		all := u.of(s).CPU
		put("cpu_us_per_req_waypoint", micros(all), ops)
		source, destination := u.usage[nodeA].CPU, u.usage[nodeB].CPU
		put("cpu_s_per_gb_proxies", all.Seconds(), gb)
		put("cpu_s_per_gb_source", source.Seconds(), gb)
		put("cpu_s_per_gb_destination", destination.Seconds(), gb)
		put("cpu_us_per_rt_proxies", micros(all), ops)
		put("conns_per_cpu_s", ops, all.Seconds())
		put("cpu_us_per_cold_conn_proxies", micros(all), ops)
		put("cpu_us_per_cold_conn_source", micros(source), ops)
		put("cpu_us_per_cold_conn_destination", micros(destination), ops)
		put("cpu_us_per_handshake_destination", micros(destination), ops)
		if r.Opens >= r.Ops {
			put("tunnels_per_conn", float64(r.Opens-r.Ops), ops) // a plain proxy has none
		}
	}
	if r.Latency != nil && r.Latency.Count() > 0 {
		for name, q := range map[string]float64{"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999} {
			for _, kind := range []string{"rtt_", "req_", "conn_", "cold_", "handshake_"} {
				put(kind+name, micros(r.Latency.Quantile(q)), 1)
			}
		}
	}
	if r.Late != nil {
		put("generator_late_p99_us", micros(r.Late.Quantile(0.99)), 1)
		put("offered_per_s", s.Load.Rate, 1)
	}
}

// counts of a counting phase.
type counts struct {
	calls    map[string]float64 // node -> system calls
	partial  bool               // only reads and writes were counted
	switches float64
	allocs   map[string]float64 // node -> heap allocations; nodes may be missing
	frames   map[string]float64 // node -> HTTP/2 frames written; likewise
	copied   map[string]float64 // node -> bytes copied; likewise
}

// sum adds up what all nodes of a scenario tell; complete is false if one does not.
func sum(s scenario.Scenario, by map[string]float64) (total float64, complete bool) {
	complete = true
	for _, node := range nodes(s) {
		n, ok := by[node]
		total, complete = total+n, complete && ok
	}
	return total, complete
}

func (c counts) fill(metrics map[string]float64, s scenario.Scenario, r load.Report) {
	units := map[string]float64{
		"_per_mb": float64(r.Bytes) / 1e6, "_per_rt": float64(r.Ops), "_per_req": float64(r.Ops), "_per_conn": float64(r.Ops), "_per_handshake": float64(r.Ops),
	}
	allocs, complete := sum(s, c.allocs)
	frames, framed := sum(s, c.frames)
	copied, copies := sum(s, c.copied)
	for unit, per := range units {
		put := func(name string, value float64) {
			if per > 0 && wants(s, name) {
				metrics[name] = value / per
			}
		}
		if !c.partial {
			put("syscalls"+unit+"_source", c.calls[nodeA])
			put("syscalls"+unit+"_destination", c.calls[nodeB])
			put("syscalls"+unit, c.calls[nodes(s)[0]])
		}
		put("switches"+unit, c.switches)
		if complete {
			put("allocs"+unit, allocs)
		}
		if framed {
			put("frames"+unit, frames)
		}
		if copies {
			put("copied_bytes"+unit, copied)
		}
	}
}
