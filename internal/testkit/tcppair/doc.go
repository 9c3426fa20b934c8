// Package tcppair makes the two ends of a TCP connection over loopback, for
// tests of what works on sockets. It never serves product code, knows no
// protocol and leaves nothing open behind its test; memnet is for tests that
// need no kernel.
//
// Neighbours: the tests of burst, mtls/record and relay.
package tcppair
