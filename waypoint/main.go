// Command waypoint is the L7 proxy of a namespace, a service or a service account: it ends the mesh's tunnels, routes and protects
// requests by standard Envoy configuration, and opens tunnels to the endpoints.
package main

import (
	"context"
	"os"

	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/app"
)

func main() {
	os.Exit(run.Main("waypoint", func(ctx context.Context) error { return app.Command(ctx, os.Args[1:]) }))
}
