// Package grpcinterop has grpc-go's own interop client speak to its interop server through the mesh: all cases that need nobody's cloud
// (TestInterop), over the paths in the table of the test, with our waypoint and gateway and with a stock Envoy in their place.
//
// Client and server are built from a module of their own in tool (`make grpc-interop`), so that what they need is none of the product's
// dependencies. Both the cases that run and those that cannot are compared with what the client itself offers.
//
// Neighbours: integration/command (the lab), waypoint/internal/{front,edge,phases,upstream} (what is judged).
package grpcinterop
