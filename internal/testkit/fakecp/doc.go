// Package fakecp is a control plane in memory for tests of proxies: discovery
// and certificates over real TLS on loopback, holding what the test puts in.
//
// It checks no token and signs whatever is asked for, which the real one never
// does; it is never imported by product code.
//
// Neighbours: internal/xds serves its resources; fakeca is the authority without
// a network.
package fakecp
