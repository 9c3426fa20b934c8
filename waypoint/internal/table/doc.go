// Package table is the waypoint's decider: which chain serves a destination, and which route a request takes in it.
//
// A Table is immutable and holds everything that one version of the configuration says; intake builds a new one per batch. It does no
// I/O, takes no lock and no clock, and gets its random numbers from the caller, so the same request in the same table always gives
// the same answer.
//
// Invariants: the first route that matches wins (TestFirstMatchWins); a destination that is not listed has no chain
// (TestUnknownDestinationHasNoChain); weights share out exactly (TestWeightsShareOut); compiling what cannot be evaluated fails
// (TestUnknownConfigIsRefused) and never panics (FuzzCompileRoutes).
//
// Neighbours: match holds the conditions, filters the filters; intake compiles, front asks for the chain, phases for the route.
package table
