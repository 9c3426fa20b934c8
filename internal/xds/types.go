package xds

import (
	"context"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"
)

// Type URLs that this mesh speaks.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
	ClusterType       = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType      = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType      = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType         = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	SecretType        = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// pushOrder is the order in which one event's types go out on a stream: what is
// referred to goes before what refers to it. Policies go around all of them, see push.
func pushOrder() []string {
	return []string{SecretType, ClusterType, EndpointType, ListenerType, RouteType, AddressType}
}

// Resource is one named, versioned resource of some type.
type Resource struct {
	Name string
	// Version changes with the content; empty means that the server always sends it again.
	Version string
	Body    *anypb.Any
}

// Reject names a resource that a handler refused and why.
type Reject struct {
	Name string
	Err  error
}

// Type is one resource type of a client's stream.
type Type struct {
	URL string
	// Names is what to ask for; nil asks for everything, empty for nothing yet (see [Client.SetNames]).
	Names []string
	// Handle judges and applies one response. It is called from one goroutine at a
	// time per client. What it does not reject is in force when it returns.
	Handle func(ctx context.Context, updated []Resource, removed []string) []Reject
}

// rejectText joins refusals as "<name>: <reason>; <name>: <reason>".
func rejectText(rejects []Reject) string {
	parts := make([]string, 0, len(rejects))
	for _, r := range rejects {
		parts = append(parts, r.Name+": "+r.Err.Error())
	}
	return strings.Join(parts, "; ")
}
