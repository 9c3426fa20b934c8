// Package handoff is a listener whose connections somebody else has accepted: how what arrives in tunnels, or has shown first bytes,
// reaches an HTTP server.
//
// It accepts nothing itself, reads nothing and closes no connection. Invariants: what is offered reaches Accept once, or the offer is
// refused (TestOffers); the server's own Close, at its shutdown, does not end it (TestCloseIsNoEnd).
//
// Neighbours: front and edge offer connections.
package handoff
