package scenario

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/result"
)

// How is the way in which a scenario is carried out.
type How int

// The ways.
const (
	// Steady: warm up, come to rest, measure, come to rest.
	Steady How = iota
	// Beside: the load alone, then the same beside a crowd.
	Beside
	// Cold: the load in a lab whose proxies give unused tunnels up at once.
	Cold
	// Held: memory of a fresh lab's proxies, and with idle connections.
	Held
	// Burst: memory of a fresh lab's proxies some time after a burst.
	Burst
	// Routes: memory of a fresh lab's waypoints.
	Routes
)

// Scenario is one row of the table.
type Scenario struct {
	result.Scenario
	How  How
	Load load.Spec // the bench fills in targets and, for HalfOf, the rate
	// Crowd is what Beside puts beside the load.
	Crowd load.Spec
	// Pairs of pods that load at the same time; 0 = 1.
	Pairs int
	// Near: client and server on one node.
	Near bool
	// HalfOf names the closed-loop scenario whose maximum this open loop runs
	// at half of: the maximum of the slowest implementation.
	HalfOf string
	// Warm and Measure are the load before and in the measured part; for Burst
	// Measure is the burst.
	Warm, Measure time.Duration
	// Wait is the rest before memory is read.
	Wait time.Duration
	// Through is the waypoint of requests.
	Through Through
}

// Rounds of a set.
const (
	FullRounds  = 8
	QuickRounds = 7
)

// quickBlock is the measured part of a block of the quick set.
const quickBlock = 700 * time.Millisecond

// NeedsMesh is true of a scenario that means nothing without a mesh.
func (s Scenario) NeedsMesh() bool {
	for _, m := range s.Metrics {
		if m.Direct || m.Added {
			return false
		}
	}
	return true
}

// Overhead is what a block takes beside its load: starting clients, looking at
// counters, coming to rest.
const Overhead = 600 * time.Millisecond

// boot is how long a fresh lab takes.
const boot = 6 * time.Second

// duration of one block, roughly.
func (s Scenario) duration() time.Duration {
	switch s.How {
	case Steady:
		return s.Warm + s.Measure + Overhead
	case Cold:
		return s.Warm + s.Measure + Overhead + s.Load.Gap + time.Second
	case Beside:
		return s.Warm + 2*s.Measure + 2*Overhead
	case Held, Burst, Routes:
		return boot + s.Warm + s.Measure + s.Wait + 2*time.Second
	}
	return s.Measure
}

// Resize sets the length of the measured part, and of the warm-up in
// proportion. Memory scenarios and cold tunnels keep their times: those are
// waits, not loads.
func (s *Scenario) Resize(measured time.Duration) {
	if s.How != Steady && s.How != Beside {
		return
	}
	s.Warm = time.Duration(float64(s.Warm) * float64(measured) / float64(s.Measure))
	s.Measure = measured
	s.Seconds = s.duration().Seconds()
}

// All is the whole table.
func All() []Scenario {
	var all []Scenario
	all = append(all, bulk()...)
	all = append(all, trips()...)
	all = append(all, connections()...)
	all = append(all, memory()...)
	all = append(all, requests()...)
	for i := range all {
		s := &all[i]
		for j := range s.Metrics {
			s.Metrics[j].Scenario = s.Name
		}
		s.Seconds = s.duration().Seconds()
	}
	return all
}

// Full is the set of connections: what node proxies are measured by.
func Full() []Scenario { return slices.DeleteFunc(All(), Scenario.Requested) }

// Requests is the set of requests: what waypoints are measured by.
func Requests() []Scenario {
	return slices.DeleteFunc(All(), func(s Scenario) bool { return !s.Requested() })
}

// Quick is the set that ends within five minutes: shorter blocks of the
// scenarios that are in it.
func Quick() []Scenario {
	var out []Scenario
	for _, s := range All() {
		if !s.Quick {
			continue
		}
		s.Resize(min(s.Measure, quickBlock))
		out = append(out, s)
	}
	return out
}

// Match chooses the scenarios whose names match a pattern as of path.Match, or
// one of several with commas between. None is an error that names them all.
func Match(all []Scenario, patterns string) ([]Scenario, error) {
	var out []Scenario
	for _, s := range all {
		for p := range strings.SplitSeq(patterns, ",") {
			ok, err := path.Match(strings.TrimSpace(p), s.Name)
			if err != nil {
				return nil, fmt.Errorf("scenario pattern %q: %w", p, err)
			}
			if ok {
				out = append(out, s)
				break
			}
		}
	}
	if len(out) == 0 {
		names := make([]string, len(all))
		for i, s := range all {
			names[i] = s.Name
		}
		return nil, fmt.Errorf("scenario pattern %q matches none of %s", patterns, strings.Join(names, ", "))
	}
	return out, nil
}

// Results are the scenarios as the report knows them.
func Results(all []Scenario) []result.Scenario {
	out := make([]result.Scenario, len(all))
	for i, s := range all {
		out[i] = s.Scenario
	}
	return out
}
