package app

import (
	"context"
	"net"
	"strconv"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/edge"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
)

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
