// Package ratelimit asks a real rate limit service, github.com/envoyproxy/ratelimit, through a waypoint in a lab. The service is built
// from a module of its own in tool.
//
// It holds tests alone, behind the tag lab: a RateLimitPolicy of scope global lets through what it says, for each identity
// (TestRealService).
package ratelimit
