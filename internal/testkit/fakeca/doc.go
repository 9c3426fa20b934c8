// Package fakeca is a small certificate authority in memory for tests. Its
// certificates are real: chains, key usages and validity are checked by the
// code under test as in production.
//
// Neighbours: mtls makes requests and certificates; never imported by product code.
package fakeca
