// Package websocket carries frames of all kinds and sizes through the waypoint inside of HBONE and through the gateway, with our programs
// and with a stock Envoy in their place: byte for byte, and whoever says goodbye first or hangs up first (TestFrames). Over HTTP/2
// nobody offers it, we no more than Envoy by the same configuration.
//
// The frames are made and read here, by RFC 6455 section 5.2; client and server are the test binary in pods.
//
// Neighbours: integration/command (the lab), waypoint/internal/phases/upgrade.go (what is judged).
package websocket
