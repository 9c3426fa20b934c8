package intake

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	bufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

type bench struct {
	*Intake
	t     testing.TB
	ups   *upstream.Store
	names map[string][]string
}

func newBench(t testing.TB) *bench {
	b := &bench{t: t, ups: upstream.NewStore(nil, time.Now), names: map[string][]string{}}
	b.Intake = New(b.ups, obs.Discard())
	b.OnNames(func(url string, names []string) { b.names[url] = names })
	return b
}

func (b *bench) handle(url string, removed []string, ms ...proto.Message) []xds.Reject {
	var up []xds.Resource
	for _, m := range ms {
		body, err := anypb.New(m)
		if err != nil {
			b.t.Fatal(err)
		}
		name := ""
		switch m := m.(type) {
		case *endpointv3.ClusterLoadAssignment:
			name = m.GetClusterName()
		case interface{ GetName() string }:
			name = m.GetName()
		}
		up = append(up, xds.Resource{Name: name, Version: "1", Body: body})
	}
	for _, typ := range b.Types() {
		if typ.URL == url {
			return typ.Handle(b.t.Context(), up, removed)
		}
	}
	b.t.Fatalf("no type %s", url)
	return nil
}

func edsCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}}
}

func listenerWith(t testing.TB, chain string, fs ...proto.Message) *listenerv3.Listener {
	m := &hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: chain}}}
	for i, f := range append(fs, &routerv3.Router{}) {
		a, err := anypb.New(f)
		if err != nil {
			t.Fatal(err)
		}
		m.HttpFilters = append(m.HttpFilters, &hcmv3.HttpFilter{Name: fmt.Sprint(i), ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: a}})
	}
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return &listenerv3.Listener{Name: internalName, FilterChains: []*listenerv3.FilterChain{{
		Name: chain, Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: a}}},
	}}}
}

func rules(name string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}}}}
}

func TestBatchIsAtomic(t *testing.T) {
	b := newBench(t)
	bad := edsCluster("bad")
	bad.HealthChecks = []*corev3.HealthCheck{{}}
	rejects := b.handle(ClusterType, nil, edsCluster("a"), bad, edsCluster("z"))
	if len(rejects) != 1 || rejects[0].Name != "bad" {
		t.Fatalf("refused %v, want bad alone", rejects)
	}
	if b.ups.Get("a") == nil || b.ups.Get("z") == nil || b.ups.Get("bad") != nil {
		t.Error("the good ones of the batch are not in force")
	}
	if got := b.names[EndpointType]; !slices.Equal(got, []string{"a", "z"}) {
		t.Errorf("endpoints of %v are asked for", got)
	}
	if r := b.Refusals(); len(r) != 1 || !strings.Contains(r[0].Reason, "health_checks") {
		t.Errorf("the refusal is kept as %+v", r)
	}
	// A good version takes the refusal back.
	b.handle(ClusterType, nil, edsCluster("bad"))
	if len(b.Refusals()) != 0 || b.ups.Get("bad") == nil {
		t.Error("a good version did not take the refusal back")
	}
}

func TestUnknownFilterKeepsLastGood(t *testing.T) {
	b := newBench(t)
	b.handle(ListenerType, nil, listenerWith(t, "c"))
	b.handle(RouteType, nil, rules("c"))
	before := b.Table().Internal
	if before == nil {
		t.Fatal("the good listener is not in force")
	}
	rejects := b.handle(ListenerType, nil, listenerWith(t, "d", &bufferv3.Buffer{}))
	if len(rejects) != 1 || !strings.Contains(rejects[0].Err.Error(), "buffer") {
		t.Fatalf("refused %v", rejects)
	}
	if b.Table().Internal != before {
		t.Error("the last good listener is not in force any more")
	}
	if rejects = b.handle(ListenerType, nil, &listenerv3.Listener{Name: "other"}); len(rejects) != 1 {
		t.Error("a listener without meaning was accepted")
	}
}

func TestListenerWaitsForItsRoutes(t *testing.T) {
	b := newBench(t)
	done := 0
	b.OnComplete(func() { done++ })
	b.handle(ListenerType, nil, listenerWith(t, "old"))
	b.handle(RouteType, nil, rules("old"))
	old := b.Table().Internal
	b.handle(ListenerType, nil, listenerWith(t, "new"))
	if b.Table().Internal != old || b.Table().Routes["old"] == nil {
		t.Error("a listener without routes replaced one with routes")
	}
	if got := b.names[RouteType]; !slices.Equal(got, []string{"new", "old"}) {
		t.Errorf("routes %v are asked for", got)
	}
	b.handle(RouteType, nil, rules("new"))
	if tab := b.Table(); tab.Internal == old || tab.Routes["old"] != nil || tab.Routes["new"] == nil {
		t.Error("the new listener is not in force with its routes alone")
	}
}

func TestRemovedResourceIsGone(t *testing.T) {
	b := newBench(t)
	b.handle(ClusterType, nil, edsCluster("a"))
	b.handle(EndpointType, nil, &endpointv3.ClusterLoadAssignment{ClusterName: "a"})
	b.handle(ListenerType, nil, listenerWith(t, "c"))
	b.handle(RouteType, nil, rules("c"))
	b.handle(RouteType, []string{"c"})
	if b.Table().Routes["c"] != nil {
		t.Error("removed routes are still there")
	}
	b.handle(ListenerType, []string{internalName})
	b.handle(ClusterType, []string{"a"})
	if b.Table().Internal != nil || b.ups.Get("a") != nil || len(b.names[EndpointType]) != 0 {
		t.Error("removed resources are still there")
	}
}

func TestNamesHaveToAgree(t *testing.T) {
	b := newBench(t)
	body, err := anypb.New(rules("other"))
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range b.Types() {
		if typ.URL == RouteType {
			if r := typ.Handle(t.Context(), []xds.Resource{{Name: "c", Body: body}}, nil); len(r) != 1 {
				t.Error("a resource of another name was accepted")
			}
		}
		if r := typ.Handle(t.Context(), []xds.Resource{{Name: "c", Body: &anypb.Any{TypeUrl: typ.URL, Value: []byte{0xff}}}}, nil); len(r) != 1 {
			t.Errorf("%s: bytes that are no message were accepted", typ.URL)
		}
	}
}

func FuzzListeners(f *testing.F) {
	seed, _ := proto.Marshal(listenerWith(f, "c"))
	f.Add(seed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		b := newBench(t)
		for _, typ := range b.Types() {
			typ.Handle(t.Context(), []xds.Resource{{Name: internalName, Body: &anypb.Any{TypeUrl: typ.URL, Value: raw}}}, nil)
		}
	})
}
