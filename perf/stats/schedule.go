package stats

import (
	"hash/fnv"
	"math/rand/v2"
	"slices"

	"github.com/marrowmesh/marrow/perf/result"
)

// Schedule orders the blocks of a run. Rounds count from 1. Inside a round the
// scenarios keep their order; inside a scenario the implementations stand in
// random order, and every second time in the reverse of the order before: so in
// each pair of rounds each implementation has run before and after each other,
// and what a block leaves behind (a warm cache, a clock still boosted, memory
// not yet returned) falls on all alike.
//
// A scenario with fewer rounds than the run (MaxRounds) is spread over it, so
// that it sees the same machine as the others. The same arguments give the same
// schedule, and a scenario's orders do not depend on which others are chosen.
func Schedule(scenarios []result.Scenario, impls []string, rounds int, seed uint64) []result.Block {
	orders := make([][][]string, len(scenarios))
	for i, s := range scenarios {
		orders[i] = turns(impls, take(s, rounds), source(seed, s.Name))
	}
	var out []result.Block
	for round := 1; round <= rounds; round++ {
		for i, s := range scenarios {
			n := take(s, rounds)
			k := (round - 1) * n / rounds // how many rounds of s came before
			if k == round*n/rounds {
				continue
			}
			for _, impl := range orders[i][k] {
				out = append(out, result.Block{Round: round, Scenario: s.Name, Impl: impl})
			}
		}
	}
	return out
}

// take is the number of rounds that s gets in a run of the given length.
func take(s result.Scenario, rounds int) int {
	if s.MaxRounds > 0 {
		return min(rounds, s.MaxRounds)
	}
	return rounds
}

// turns gives n orders of impls: random ones, each followed by its reverse.
func turns(impls []string, n int, rng *rand.Rand) [][]string {
	out := make([][]string, 0, n)
	for len(out) < n {
		order := slices.Clone(impls)
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		out = append(out, order)
		if len(out) < n {
			back := slices.Clone(order)
			slices.Reverse(back)
			out = append(out, back)
		}
	}
	return out
}

// source is a stream of random numbers that depends on its arguments alone.
func source(seed uint64, names ...string) *rand.Rand {
	h := fnv.New64a()
	for _, n := range names {
		_, _ = h.Write([]byte(n))
		_, _ = h.Write([]byte{0}) // "ab","c" is not "a","bc"
	}
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}
