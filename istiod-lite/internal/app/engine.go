package app

import (
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/istiod-lite/internal/config"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ambient"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/bind"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/gateway"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ingress"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
	"github.com/marrowmesh/marrow/istiod-lite/internal/publish"
	"github.com/marrowmesh/marrow/istiod-lite/internal/serve"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
	"github.com/marrowmesh/marrow/istiod-lite/internal/status"
)

// objectStore is where the engine writes objects that it derives.
type objectStore interface{ Put(o manifest.Object) error }

// engine turns batches of objects into what is served, deployed and said. One goroutine calls handle.
type engine struct {
	cfg     config.Config
	log     *obs.Logger
	objects objectStore
	served  *publish.Store
	status  *status.Writer
	pods    *podIndex

	pipeline  *ambient.Pipeline
	rows      rows
	addresses map[string]*workload.Address
	// waypoints that have resources published, with the places that they were published for.
	waypoints map[types.NamespacedName]map[waypoint.Place]bool
	// found are the objects that the waypoints' derivation had something to say about.
	found map[manifest.Key]bool
	// ingress is what gateways at the border serve.
	ingress ingress.Output
}

func newEngine(cfg config.Config, log *obs.Logger, objects objectStore, served *publish.Store, st *status.Writer, pods *podIndex) *engine {
	return &engine{
		cfg: cfg, log: log, objects: objects, served: served, status: st, pods: pods,
		pipeline: ambient.NewPipeline(ambient.Config{ClusterID: cfg.ClusterID, Domain: cfg.ClusterDomain, SystemNamespace: cfg.RootNamespace, Revision: cfg.Revision, Unguarded: !cfg.WaypointRequired}),
		rows:     rows{}, addresses: map[string]*workload.Address{}, waypoints: map[types.NamespacedName]map[waypoint.Place]bool{}, found: map[manifest.Key]bool{},
	}
}

// Condition types that this room owns.
const (
	validType      = "istio.io/Valid"
	configuredType = "istio.io/WaypointConfigured"
)

// handle takes one batch through all derivations.
func (e *engine) handle(b source.Batch) error {
	e.refusals(b)
	e.rows.apply(b.Events)
	e.pods.apply(b.Events)
	e.ambient(b.Events)
	e.edges()
	e.gateways()
	e.publishWaypoints()
	e.routeStatuses()
	e.limitStatuses()
	return nil
}

// refusals says in an object's status why its present text does not count.
func (e *engine) refusals(b source.Batch) {
	for _, r := range b.Refused {
		e.log.Warn("object refused; the last good one stays in force", obs.F("object", r.Key.String()), obs.Err(r.Err))
		e.status.Conditions(r.Key, "source", []string{validType}, []status.Condition{{Type: validType, Reason: "Invalid", Message: r.Err.Error()}})
	}
	for _, k := range b.Mended {
		e.status.Conditions(k, "source", []string{validType}, nil)
	}
}

// ambient derives and publishes what node proxies see.
func (e *engine) ambient(events []source.Event) {
	ch := e.pipeline.Apply(events)
	for _, p := range ch.Problems {
		e.log.Warn("mesh settings", obs.Err(p))
	}
	for _, r := range ch.Addresses.Updated {
		if a := addressOf(r); a != nil {
			e.addresses[r.Name] = a
		}
	}
	for _, n := range ch.Addresses.Removed {
		delete(e.addresses, n)
	}
	e.served.Publish(
		publish.Change{Scope: serve.MeshScope, URL: xds.AddressType, Updated: resources(ch.Addresses.Updated), Removed: ch.Addresses.Removed},
		publish.Change{Scope: serve.MeshScope, URL: xds.AuthorizationType, Updated: resources(ch.Authorizations.Updated), Removed: ch.Authorizations.Removed},
	)
	owned := []string{
		ambient.ConditionWaypointBound, ambient.ConditionWaypointMissing, ambient.ConditionVisibilityApplied,
		ambient.ConditionZtunnelAccepted, ambient.ConditionWaypointAccepted,
	}
	for _, oc := range ch.Conditions {
		var list []status.Condition
		for _, c := range oc.Conditions {
			list = append(list, status.Condition{Type: c.Type, True: c.True, Reason: c.Reason, Message: c.Message, ObservedGeneration: c.ObservedGeneration})
		}
		e.status.Conditions(oc.Object, "ambient", owned, list)
	}
}

func addressOf(r ambient.Resource) *workload.Address {
	switch m := r.Message.(type) {
	case *workload.Workload:
		return &workload.Address{Type: &workload.Address_Workload{Workload: m}}
	case *workload.Service:
		return &workload.Address{Type: &workload.Address_Service{Service: m}}
	case *workload.Address:
		return m
	default:
		return nil
	}
}

func resources(in []ambient.Resource) []xds.Resource {
	out := make([]xds.Resource, 0, len(in))
	for _, r := range in {
		out = append(out, xds.Resource{Name: r.Name, Version: r.Version, Body: r.Body})
	}
	return out
}

// gateways writes what Gateways need and what is to be said of them. What it
// writes comes back as an event; the derivation is empty when all is as it should be.
func (e *engine) gateways() {
	mesh := e.pipeline.Mesh()
	address := "istiod." + e.cfg.RootNamespace + ".svc:15012"
	in := e.rows.gatewayInput(gateway.Config{
		ClusterDomain: e.cfg.ClusterDomain, ClusterID: e.cfg.ClusterID, TrustDomain: mesh.TrustDomain,
		XDSAddress: address, CAAddress: address, Revision: e.cfg.Revision, Image: "marrowmesh/waypoint:latest",
	})
	in.Listeners, in.Insecure = e.ingress.Listeners, e.ingress.Insecure
	out := gateway.Derive(in)
	for _, o := range out.Objects {
		if err := e.objects.Put(o); err != nil {
			e.log.Error("cannot write an object for a Gateway; it is tried again with the next change", obs.F("object", manifest.KeyOf(o).String()), obs.Err(err))
		}
	}
	for n, s := range out.Gateways {
		k := manifest.Key{Group: manifest.GroupGateway, Kind: "Gateway", Namespace: n.Namespace, Name: n.Name}
		if err := e.status.Whole(k, s); err != nil {
			e.log.Error("status of a Gateway", obs.F("object", k.String()), obs.Err(err))
		}
	}
	for n, s := range out.Classes {
		k := manifest.Key{Group: manifest.GroupGateway, Kind: "GatewayClass", Name: n}
		if err := e.status.Whole(k, s); err != nil {
			e.log.Error("status of a GatewayClass", obs.F("object", k.String()), obs.Err(err))
		}
	}
}

// publishWaypoints derives every waypoint's resources. A waypoint's types are published as one.
func (e *engine) publishWaypoints() {
	mesh := e.pipeline.Mesh()
	world := bind.World{
		Mesh:      waypoint.Mesh{TrustDomain: mesh.TrustDomain, ClusterDomain: e.cfg.ClusterDomain, RootNamespace: mesh.RootNamespace, ClusterID: e.cfg.ClusterID, Config: mesh.Config},
		Addresses: e.addresses, Objects: e.rows.bindObjects(e.cfg.Revision),
	}
	inputs := bind.Inputs(world)
	maps.Copy(inputs, bind.Edges(world, e.ingress))
	findings := map[manifest.Key][]waypoint.Finding{}
	for _, f := range e.ingress.Findings {
		findings[findingKey(f)] = append(findings[findingKey(f)], f)
	}
	for n, in := range inputs {
		if e.waypoints[n] == nil {
			e.waypoints[n] = map[waypoint.Place]bool{}
		}
		for _, p := range in.Places {
			e.waypoints[n][p] = true
		}
		// Always for a place that is not known, too: what is wrong with an object is told before the first pod, and a pod whose node
		// became known after its proxy had asked stays where it is served.
		e.waypoints[n][waypoint.Place{}] = true
		for p := range e.waypoints[n] {
			in.Place = p
			res, found := waypoint.Derive(in)
			var changes []publish.Change
			for _, url := range waypointTypes() {
				changes = append(changes, e.served.Diff(serve.WaypointScope(n.Namespace, n.Name, p.String()), url, packed(res.Pack(url))))
			}
			e.served.Publish(changes...)
			for _, f := range found {
				k := findingKey(f)
				if !slices.Contains(findings[k], f) {
					findings[k] = append(findings[k], f)
				}
			}
		}
	}
	for n, places := range e.waypoints {
		if _, still := inputs[n]; still {
			continue
		}
		delete(e.waypoints, n)
		for p := range places {
			e.withdraw(n, p)
		}
	}
	e.tell(findings)
}

func (e *engine) withdraw(n types.NamespacedName, p waypoint.Place) {
	for _, url := range waypointTypes() {
		e.served.Replace(serve.WaypointScope(n.Namespace, n.Name, p.String()), url, nil)
	}
}

// parents are the verdicts of gateways at the border on routes.
func (e *engine) parents() map[manifest.Key][]waypoint.GatewayParent {
	out := map[manifest.Key][]waypoint.GatewayParent{}
	for k, list := range e.ingress.Parents {
		for _, p := range list {
			out[k] = append(out[k], waypoint.GatewayParent{Ref: p.Ref, OK: p.Accepted.OK, Reason: p.Accepted.Reason, Message: p.Accepted.Message})
		}
	}
	return out
}

// edges decides what gateways at the border serve.
func (e *engine) edges() {
	topology := e.pipeline.Mesh().Config.GetDefaultConfig().GetGatewayTopology()
	e.ingress = ingress.Derive(e.rows.ingressInput(e.cfg.ClusterDomain, e.cfg.Revision, topology))
}

// routeStatuses says of the mesh's routes whether they are accepted by their parents and find their backends, and of policies on TLS to
// backends whether they are in force.
func (e *engine) routeStatuses() {
	mesh := e.pipeline.Mesh()
	o := e.rows.bindObjects(e.cfg.Revision)
	rows := waypoint.RouteRows{
		Mesh:     waypoint.Mesh{TrustDomain: mesh.TrustDomain, ClusterDomain: e.cfg.ClusterDomain, RootNamespace: mesh.RootNamespace},
		Services: o.Services, ServiceEntries: o.ServiceEntries, HTTPRoutes: o.HTTPRoutes, GRPCRoutes: o.GRPCRoutes,
		TLSRoutes: o.TLSRoutes, TCPRoutes: o.TCPRoutes, Gateways: e.parents(), Permitted: e.ingress.Permitted,
	}
	whole := func(k manifest.Key, s any) {
		if err := e.status.Whole(k, s); err != nil {
			e.log.Error("status of an object", obs.F("object", k.String()), obs.Err(err))
		}
	}
	for k, s := range waypoint.RouteStatuses(rows) {
		whole(k, s)
	}
	for k, s := range waypoint.BackendTLSStatuses(waypoint.BackendTLSOf(o.BackendTLS, o.ConfigMaps), rows) {
		whole(k, s)
	}
}

func waypointTypes() []string {
	return []string{waypoint.SecretType, waypoint.ClusterType, waypoint.EndpointType, waypoint.ListenerType, waypoint.RouteType}
}

func packed(in []waypoint.Resource) []xds.Resource {
	out := make([]xds.Resource, 0, len(in))
	for _, r := range in {
		out = append(out, xds.Resource{Name: r.Name, Version: r.Version, Body: r.Body})
	}
	return out
}

// findingKey is the object that a finding is about.
func findingKey(f waypoint.Finding) manifest.Key {
	group := map[string]string{
		"HTTPRoute": manifest.GroupGateway, "GRPCRoute": manifest.GroupGateway, "TLSRoute": manifest.GroupGateway, "TCPRoute": manifest.GroupGateway,
		"AuthorizationPolicy": manifest.GroupSecurity, "RequestAuthentication": manifest.GroupSecurity,
		"Gateway":        manifest.GroupNetworking,
		"VirtualService": manifest.GroupNetworking, "DestinationRule": manifest.GroupNetworking, "Telemetry": manifest.GroupTelemetry, "ServiceEntry": manifest.GroupNetworking,
	}[f.Kind]
	return manifest.Key{Group: group, Kind: f.Kind, Namespace: f.Namespace, Name: f.Name}
}

// tell writes findings into statuses and withdraws those that no longer hold.
func (e *engine) tell(findings map[manifest.Key][]waypoint.Finding) {
	for k := range e.found {
		if _, still := findings[k]; !still {
			delete(e.found, k)
			e.status.Conditions(k, "waypoint", []string{configuredType}, nil)
		}
	}
	for k, list := range findings {
		e.found[k] = true
		if k.Group == manifest.GroupGateway {
			continue // their conditions stand per parent
		}
		text := list[0].Message
		for _, f := range list[1:] {
			if f.Message != text {
				text += fmt.Sprintf("; %s: %s", f.Reason, f.Message)
			}
		}
		e.status.Conditions(k, "waypoint", []string{configuredType}, []status.Condition{{Type: configuredType, Reason: list[0].Reason, Message: text}})
	}
}
