package app

import (
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
	"github.com/marrowmesh/marrow/istiod-lite/internal/status"
)

// limitStatuses says of rate limits whether somebody carries them out, and what they refer to in vain.
func (e *engine) limitStatuses() {
	mesh := e.pipeline.Mesh()
	o := e.rows.bindObjects(e.cfg.Revision)
	all := waypoint.LimitConditions(waypoint.LimitRows{
		Mesh:     waypoint.Mesh{ClusterDomain: e.cfg.ClusterDomain, RootNamespace: mesh.RootNamespace},
		Services: o.Services, HTTPRoutes: o.HTTPRoutes, Gateways: o.Gateways, Policies: o.RateLimits,
	})
	for name, conditions := range all {
		var list []status.Condition
		for _, c := range conditions {
			list = append(list, status.Condition{Type: c.Type, True: c.True, Reason: c.Reason, Message: c.Message, ObservedGeneration: c.Generation})
		}
		k := manifest.Key{Group: manifest.GroupPolicy, Kind: "RateLimitPolicy", Namespace: name.Namespace, Name: name.Name}
		e.status.Conditions(k, "ratelimit", []string{waypoint.LimitAccepted, waypoint.LimitResolved}, list)
	}
}
