package intake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Resource types.
const (
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	RouteType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	SecretType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// Names of the listeners that have a meaning here.
const (
	terminateName = "connect_terminate"
	internalName  = "main_internal"
	originateName = "connect_originate"
)

// Intake holds the configuration in force.
type Intake struct {
	ups *upstream.Store
	log *obs.Logger
	cur atomic.Pointer[table.Table]

	mu sync.Mutex
	// staged is an inner listener whose routes are not all known yet; the one before it serves meanwhile. nil = none.
	staged   *table.Internal
	edges    stagedEdges
	want     func(url string, names []string)
	complete func()
	changed  func(*table.Table)
	refused  map[string]Refused
	status   map[string]Accepted
}

// Refused is a resource whose last version was not taken.
type Refused struct {
	Type, Name, Version, Reason string
	Time                        time.Time
	Body                        *anypb.Any `json:"-"`
}

// Accepted is a resource in force.
type Accepted struct {
	Type, Name, Version string
	Time                time.Time
	Body                *anypb.Any `json:"-"` // as it came; nobody changes it
}

// New makes an empty intake: it serves nothing.
func New(ups *upstream.Store, log *obs.Logger) *Intake {
	in := &Intake{ups: ups, log: log, refused: map[string]Refused{}, status: map[string]Accepted{}, want: func(string, []string) {}, complete: func() {}, changed: func(*table.Table) {}}
	in.cur.Store(&table.Table{})
	return in
}

// Table returns the configuration in force; it never changes after that.
func (in *Intake) Table() *table.Table { return in.cur.Load() }

// Types is what to subscribe to, in the order in which a proxy needs it.
func (in *Intake) Types() []*xds.Type {
	return []*xds.Type{
		{URL: ClusterType, Handle: in.clusters},
		{URL: SecretType, Names: []string{}, Handle: in.secrets},
		{URL: EndpointType, Names: []string{}, Handle: in.endpoints},
		{URL: ListenerType, Handle: in.listeners},
		{URL: RouteType, Names: []string{}, Handle: in.routes},
	}
}

// OnNames sets what is called when other names of a type are needed.
func (in *Intake) OnNames(want func(url string, names []string)) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.want = want
}

// Refusals lists what was refused and still is, by type and name.
func (in *Intake) Refusals() []Refused {
	in.mu.Lock()
	defer in.mu.Unlock()
	out := make([]Refused, 0, len(in.refused))
	for _, k := range slices.Sorted(maps.Keys(in.refused)) {
		out = append(out, in.refused[k])
	}
	return out
}

// InForce lists what was accepted, by type and name.
func (in *Intake) InForce() []Accepted {
	in.mu.Lock()
	defer in.mu.Unlock()
	out := make([]Accepted, 0, len(in.status))
	for _, k := range slices.Sorted(maps.Keys(in.status)) {
		out = append(out, in.status[k])
	}
	return out
}

// judge compiles every resource of a response and keeps the books. The caller holds mu.
func judge[P proto.Message, T any](in *Intake, url string, up []xds.Resource, removed []string, empty func() P, compile func(string, P) (T, error)) (good map[string]T, rejects []xds.Reject) {
	good = map[string]T{}
	now := time.Now()
	for _, r := range up {
		p := empty()
		v, err := func() (v T, err error) {
			if err = r.Body.UnmarshalTo(p); err != nil {
				return v, err
			}
			return compile(r.Name, p)
		}()
		k := url + "/" + r.Name
		if err != nil {
			rejects = append(rejects, xds.Reject{Name: r.Name, Err: err})
			in.refused[k] = Refused{Type: url, Name: r.Name, Version: r.Version, Reason: err.Error(), Time: now, Body: r.Body}
			in.log.Warn("resource refused", obs.F("type", url), obs.F("name", r.Name), obs.F("version", r.Version), obs.Err(err))
			continue
		}
		delete(in.refused, k)
		in.status[k] = Accepted{Type: url, Name: r.Name, Version: r.Version, Time: now, Body: r.Body}
		good[r.Name] = v
	}
	for _, name := range removed {
		delete(in.refused, url+"/"+name)
		delete(in.status, url+"/"+name)
	}
	return good, rejects
}

func (in *Intake) clusters(_ context.Context, up []xds.Resource, removed []string) []xds.Reject {
	in.mu.Lock()
	defer in.mu.Unlock()
	good, rejects := judge(in, ClusterType, up, removed, func() *clusterv3.Cluster { return &clusterv3.Cluster{} },
		func(name string, p *clusterv3.Cluster) (*upstream.Config, error) {
			if p.GetName() != name {
				return nil, fmt.Errorf("resource %q holds the cluster %q", name, p.GetName())
			}
			return upstream.Compile(p)
		})
	names := in.ups.ApplyClusters(slices.Collect(maps.Values(good)), removed)
	in.want(EndpointType, names)
	in.want(SecretType, in.secretNames(in.cur.Load()))
	return rejects
}

func (in *Intake) endpoints(_ context.Context, up []xds.Resource, removed []string) []xds.Reject {
	in.mu.Lock()
	defer in.mu.Unlock()
	good, rejects := judge(in, EndpointType, up, removed, func() *endpointv3.ClusterLoadAssignment { return &endpointv3.ClusterLoadAssignment{} },
		func(name string, p *endpointv3.ClusterLoadAssignment) (*upstream.Assignment, error) {
			if p.GetClusterName() != name {
				return nil, fmt.Errorf("resource %q holds the endpoints of %q", name, p.GetClusterName())
			}
			return upstream.CompileAssignment(p)
		})
	in.ups.ApplyEndpoints(slices.Collect(maps.Values(good)), removed)
	return rejects
}

func (in *Intake) routes(_ context.Context, up []xds.Resource, removed []string) []xds.Reject {
	in.mu.Lock()
	defer in.mu.Unlock()
	good, rejects := judge(in, RouteType, up, removed, func() *routev3.RouteConfiguration { return &routev3.RouteConfiguration{} },
		func(name string, p *routev3.RouteConfiguration) (*table.Rules, error) {
			if p.GetName() != name {
				return nil, fmt.Errorf("resource %q holds the routes %q", name, p.GetName())
			}
			return table.CompileRules(p)
		})
	next := *in.cur.Load()
	next.Routes = maps.Clone(next.Routes)
	if next.Routes == nil {
		next.Routes = map[string]*table.Rules{}
	}
	maps.Copy(next.Routes, good)
	for _, name := range removed {
		delete(next.Routes, name)
	}
	in.promote(&next)
	in.cur.Store(&next)
	in.changed(&next)
	in.settle(&next)
	return rejects
}

// listener is one compiled listener; at most one field is set.
type listener struct {
	terminate *table.Terminate
	internal  *table.Internal
	edge      *table.Edge
}

func (in *Intake) listeners(_ context.Context, up []xds.Resource, removed []string) []xds.Reject {
	in.mu.Lock()
	defer in.mu.Unlock()
	good, rejects := judge(in, ListenerType, up, removed, func() *listenerv3.Listener { return &listenerv3.Listener{} }, compileListener)
	next := *in.cur.Load()
	for _, name := range removed {
		switch name {
		case terminateName:
			next.Terminate = nil
		case internalName:
			next.Internal, in.staged = nil, nil
		default:
			in.edges.drop(&next, name)
		}
	}
	for _, l := range good {
		if l.terminate != nil {
			next.Terminate = l.terminate
		}
		if l.internal != nil {
			in.staged = l.internal
		}
		if l.edge != nil {
			in.edges.stage(l.edge)
		}
	}
	in.edges.heard = true
	in.want(RouteType, slices.Sorted(maps.Keys(in.routeNames(&next))))
	in.want(SecretType, in.secretNames(&next))
	in.promote(&next)
	in.cur.Store(&next)
	in.changed(&next)
	in.settle(&next)
	return rejects
}

// promote puts the staged listener in force once every route that it names is known or was refused, and forgets the routes that
// nothing names. The caller holds mu.
func (in *Intake) promote(t *table.Table) {
	in.promoteEdges(t)
	if in.staged != nil {
		for name := range routeNames(in.staged) {
			if !in.routeKnown(t, name) {
				return
			}
		}
		t.Internal, in.staged = in.staged, nil
	}
	names := in.routeNames(t)
	t.Routes = maps.Clone(t.Routes)
	maps.DeleteFunc(t.Routes, func(name string, _ *table.Rules) bool { return !names[name] })
}

// OnComplete sets what is called whenever everything that was announced is in force.
func (in *Intake) OnComplete(fn func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.complete = fn
}

// OnTable sets what is told every new table, after it came into force.
func (in *Intake) OnTable(fn func(*table.Table)) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.changed = fn
}

func routeNames(ls ...*table.Internal) map[string]bool {
	names := map[string]bool{}
	for _, l := range ls {
		if l == nil {
			continue
		}
		for _, c := range l.Chains {
			if c.HTTP != nil && c.HTTP.Inline == nil {
				names[c.HTTP.RouteName] = true
			}
		}
	}
	return names
}

// errUnknownListener refuses what nothing here could serve.
var errUnknownListener = errors.New("listener has no meaning here: want connect_terminate, main_internal, connect_originate or one with a socket address")

func compileListener(name string, p *listenerv3.Listener) (listener, error) {
	if p.GetName() != name {
		return listener{}, fmt.Errorf("resource %q holds the listener %q", name, p.GetName())
	}
	switch name {
	case terminateName:
		t, err := table.CompileTerminate(p)
		return listener{terminate: t}, err
	case internalName:
		i, err := table.CompileInternal(p)
		return listener{internal: i}, err
	case originateName, "inner_connect_originate", "outer_connect_originate":
		return listener{}, nil // how Envoy opens tunnels; upstream does it by itself
	}
	if p.GetAddress().GetSocketAddress() == nil {
		return listener{}, errUnknownListener
	}
	e, err := table.CompileEdge(p)
	return listener{edge: e}, err
}
