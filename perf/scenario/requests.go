package scenario

import (
	"fmt"
	"time"

	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/result"
)

// Through is the waypoint that a scenario's requests go through. The bench
// makes one per number of routes, and in it a service with policies and, where
// there is one route, another without.
type Through struct {
	Routes int  // 0 = no waypoint
	Open   bool // no AuthorizationPolicy
}

// RouteCounts are those of which waypoints are made.
func RouteCounts() []int { return []int{1, 1000, 5000} }

// RequestPath is what a request asks for: of many routes the middle one.
func (t Through) RequestPath() string {
	if t.Routes == 1 {
		return "/item/1"
	}
	return RoutePrefix(t.Routes/2) + "item"
}

// RoutePrefix is what route i of many matches.
func RoutePrefix(i int) string { return fmt.Sprintf("/route-%04d/", i) }

// Requested is true of scenarios that go through a waypoint.
func (s Scenario) Requested() bool { return s.Through.Routes > 0 || s.How == Routes }

// requestMetrics of the waypoint; cpu and speed are the judged ones.
func requestMetrics(cpu, speed result.Metric) []result.Metric {
	return []result.Metric{
		cpu, speed, timing("cpu_us_per_req_machine", "µs"), timing("req_p50_us", "µs"), timing("req_p99_us", "µs"),
		counter("syscalls_per_req", "calls", 0), counter("switches_per_req", "switches", 0), counter("allocs_per_req", "allocations", 0),
	}
}

func requests() []Scenario {
	words := map[load.Protocol]string{load.HTTP1: "h1", load.HTTP2: "h2", load.GRPC: "grpc"}
	titles := map[load.Protocol]string{load.HTTP1: "HTTP/1.1 GETs of 1,000 bytes", load.HTTP2: "HTTP/2 GETs of 1,000 bytes", load.GRPC: "unary gRPC calls of 100 bytes"}
	var out []Scenario
	cpu := func(p load.Protocol) result.Metric {
		m := proxied("cpu_us_per_req_waypoint", "µs")
		if p == load.HTTP1 {
			return goal(m, "P9", 0.80, 0.50)
		}
		return goal(m, "P10", 0.90, 0.60)
	}
	add := func(name, title string, p load.Protocol, conns int, through Through, speed result.Metric) {
		c := cpu(p)
		out = append(out, Scenario{
			Scenario: result.Scenario{Name: name, Title: title, Goal: c.Goal, Metrics: requestMetrics(c, speed), MaxRounds: 6},
			Load:     load.Spec{Kind: load.Requests, Protocol: p, Conns: conns, Path: through.RequestPath()}, Through: through, Warm: warm / 2, Measure: measure / 2,
		})
	}
	speed := func() result.Metric { return rate("req_per_s", "1/s") }
	one := Through{Routes: 1}
	for _, p := range []load.Protocol{load.HTTP1, load.HTTP2, load.GRPC} {
		add("wp-"+words[p]+"-1", titles[p]+" on one connection through a waypoint, closed loop, one route, authorization", p, 1, one, speed())
		add("wp-"+words[p]+"-32", titles[p]+" on 32 connections through a waypoint, closed loop, one route, authorization", p, 32, one, goal(speed(), "P11", 1.1, 1.5))
	}
	for _, n := range RouteCounts()[1:] {
		add(fmt.Sprintf("wp-h1-32-routes-%d", n), fmt.Sprintf("%s on 32 connections, %d routes, authorization", titles[load.HTTP1], n), load.HTTP1, 32, Through{Routes: n}, speed())
	}
	add("wp-h1-32-open", titles[load.HTTP1]+" on 32 connections, one route, no authorization", load.HTTP1, 32, Through{Routes: 1, Open: true}, speed())
	half := func(p load.Protocol) Scenario {
		late := timing("req_p99_us", "µs")
		late.Added = true
		return Scenario{
			Scenario: result.Scenario{
				Name: "wp-" + words[p] + "-half", Title: titles[p] + " on 32 connections through a waypoint at half of what the slowest can do, from the intended time", Goal: "P11", MaxRounds: 6,
				Metrics: []result.Metric{
					goal(late, "P11", 1.0, 0.75), timing("req_p50_us", "µs"), timing("req_p999_us", "µs"), proxied("cpu_us_per_req_waypoint", "µs"),
					shown("generator_late_p99_us", "µs"), shown("offered_per_s", "1/s"),
				},
			},
			Load: load.Spec{Kind: load.RequestsOpen, Protocol: p, Conns: 32, Rate: 1000, Path: one.RequestPath()}, Through: one, HalfOf: "wp-" + words[p] + "-32", Warm: warm / 2, Measure: measure / 2,
		}
	}
	memory := Scenario{
		Scenario: result.Scenario{Name: "wp-memory", Title: "memory of waypoints that have served some requests and rest since 12 s, by number of routes", Goal: "P12", MaxRounds: 2},
		How:      Routes, Load: load.Spec{Kind: load.Requests, Protocol: load.HTTP1, Conns: 1}, Measure: time.Second, Wait: 12 * time.Second,
	}
	for _, n := range RouteCounts() {
		memory.Metrics = append(memory.Metrics, goal(proxied(RSSMetric(n), "MiB"), "P12", 0.5, 0.2))
	}
	return append(out, half(load.HTTP1), half(load.GRPC), memory)
}

// RSSMetric names the memory of a waypoint with n routes.
func RSSMetric(n int) string { return fmt.Sprintf("rss_%d_routes_mib", n) }
