package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

func called(typ clusterv3.Cluster_DiscoveryType, hosts ...string) *clusterv3.Cluster {
	g := &endpointv3.LocalityLbEndpoints{}
	for _, h := range hosts {
		g.LbEndpoints = append(g.LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: h, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 443},
			}}},
		}}})
	}
	return &clusterv3.Cluster{
		Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: typ}, DnsLookupFamily: clusterv3.Cluster_V4_PREFERRED,
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: "c", Endpoints: []*endpointv3.LocalityLbEndpoints{g}},
	}
}

func addresses(c *Cluster) string {
	var out []string
	for _, h := range c.Hosts {
		out = append(out, h.Addr.String())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestNamesAreResolvedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := map[string][]netip.Addr{
			"a": {netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			"b": {netip.MustParseAddr("fd00::2")},
		}
		var fail error
		asked := 0
		var mu sync.Mutex // lookups run side by side
		lookup := func(_ context.Context, h string) ([]netip.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return slices.Clone(answers[h]), fail
		}
		locked := func(do func()) {
			mu.Lock()
			defer mu.Unlock()
			do()
		}
		s := NewStore(nowhere{}, time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Resolve(ctx, lookup) }()
		synctest.Wait()
		for typ, want := range map[clusterv3.Cluster_DiscoveryType]string{
			clusterv3.Cluster_LOGICAL_DNS: "10.0.0.1:443 192.0.2.1:443 [fd00::2]:443",
			clusterv3.Cluster_STRICT_DNS:  "10.0.0.1:443 10.0.0.2:443 192.0.2.1:443 [fd00::2]:443",
		} {
			cfg, err := Compile(called(typ, "a", "b", "192.0.2.1"))
			if err != nil {
				t.Fatal(err)
			}
			if names := s.ApplyClusters([]*Config{cfg}, nil); len(names) != 0 {
				t.Errorf("endpoints of %v are asked from the control plane", names)
			}
			if _, err := s.Get("c").Warm(ctx); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if got := addresses(s.Get("c")); got != want {
				t.Errorf("%v: got %s, want %s", typ, got, want)
			}
		}
		kept := s.Get("c").Hosts[0].state
		locked(func() { fail = errors.New("timeout") })
		time.Sleep(20 * time.Second)
		if got := addresses(s.Get("c")); !strings.Contains(got, "10.0.0.1:443") || s.Get("c").Hosts[0].state != kept {
			t.Errorf("a failed lookup changed the endpoints: %s", got)
		}
		locked(func() { fail, answers["a"] = nil, []netip.Addr{netip.MustParseAddr("10.0.0.9")} })
		time.Sleep(6 * time.Second)
		if got := addresses(s.Get("c")); got != "10.0.0.9:443 192.0.2.1:443 [fd00::2]:443" {
			t.Errorf("after a change: %s", got)
		}
		locked(func() { fail = &net.DNSError{IsNotFound: true} })
		time.Sleep(6 * time.Second)
		if got := addresses(s.Get("c")); got != "192.0.2.1:443" {
			t.Errorf("names that are gone: %s", got)
		}
		s.ApplyClusters(nil, []string{"c"})
		synctest.Wait()
		before := 0
		locked(func() { before = asked })
		time.Sleep(time.Minute)
		synctest.Wait()
		locked(func() {
			if asked != before {
				t.Error("asked about names that nobody wants")
			}
		})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
