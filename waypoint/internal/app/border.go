package app

import (
	"context"
	"net"
	"strconv"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/config"
	"github.com/marrowmesh/marrow/waypoint/internal/edge"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// self is this proxy as series name it.
func self(cfg *config.Config) upstream.Workload {
	name := cfg.Metadata["WORKLOAD_NAME"]
	return upstream.Workload{Name: name, Namespace: cfg.Namespace, CanonicalName: name, Cluster: cfg.ClusterID}
}

// border makes what listens at the mesh's border.
func (w *waypoint) border(id identity.ID, handler *phases.Handler) {
	if w.deps.Listen == nil {
		w.deps.Listen = func(ctx context.Context, port uint16) (net.Listener, error) {
			return obs.Listen(ctx, ":"+strconv.Itoa(int(port)))
		}
	}
	w.edge = edge.New(edge.Config{
		Table: w.in.Table, Phases: handler, Local: id, Listen: w.deps.Listen, Limit: w.cfg.Ports.EdgeConnections, Log: w.log.Named("edge"),
	})
	w.in.OnEdges(w.edge.Changed)
	if w.deps.Router {
		w.in.Router()
	}
}
