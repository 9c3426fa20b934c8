// Package fakecollector receives spans as collectors do: OTLP by gRPC and by HTTP, and Zipkin's JSON, on one port.
//
// The gRPC side is grpc-go's own server, the messages are OpenTelemetry's; nothing of a proxy is used to read what a proxy sent.
//
// Neighbours: tests of the waypoint.
package fakecollector
