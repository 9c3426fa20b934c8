package upstream

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

type nowhere struct{}

func (nowhere) Open(context.Context, Target) (Conn, error) { return nil, errors.New("nowhere") }

// at is a store with a clock that the test turns.
type at struct {
	*Store
	now time.Time
}

func newAt() *at {
	a := &at{now: time.Unix(1_000_000, 0)}
	a.Store = NewStore(nowhere{}, func() time.Time { return a.now })
	return a
}

func eds(name string, change ...func(*Config)) *Config {
	c := &Config{
		Name: name, EDSName: name, ConnectTimeout: time.Second, Limits: Limits{Connections: 100, Pending: 100, Requests: 100, Retries: 100},
		Balancer: Balancer{Choices: 2, Bias: 1, MinRing: 1024, MaxRing: 1 << 20, Table: 65537, Aggression: 1, MinWeight: 0.1},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func list(name string, n int, change ...func(i int, e *Endpoint)) *Assignment {
	a := &Assignment{Name: name}
	for i := range n {
		ip := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
		e := Endpoint{Addr: netip.AddrPortFrom(ip, 80), Hop: netip.AddrPortFrom(ip, HBONEPort), Healthy: true, Weight: 1}
		for _, f := range change {
			f(i, &e)
		}
		a.Endpoints = append(a.Endpoints, e)
	}
	return a
}

func counter() func(uint64) uint64 {
	n := uint64(0)
	return func(m uint64) uint64 { n++; return n % m }
}

func TestPickSkipsUnhealthy(t *testing.T) {
	for _, b := range []Policy{LeastRequest, RoundRobin, Random, RingHash, Maglev} {
		s := newAt()
		s.ApplyClusters([]*Config{eds("c", func(c *Config) { c.Balancer.Policy = b })}, nil)
		s.ApplyEndpoints([]*Assignment{list("c", 4, func(i int, e *Endpoint) { e.Healthy = i%2 == 1 })}, nil)
		rnd := counter()
		for i := range 50 {
			h, err := s.Get("c").Pick(Choice{Rand: rnd, Hash: uint64(i), HasHash: true})
			if err != nil || !h.Healthy {
				t.Fatalf("balancer %d picked %+v, %v", b, h, err)
			}
		}
	}
}

func TestPickNeedsHosts(t *testing.T) {
	s := newAt()
	s.ApplyClusters([]*Config{eds("c")}, nil)
	s.ApplyEndpoints([]*Assignment{list("c", 2, func(_ int, e *Endpoint) { e.Healthy = false })}, nil)
	if _, err := s.Get("c").Pick(Choice{Rand: counter()}); !errors.Is(err, ErrNoHealthy) {
		t.Errorf("got %v", err)
	}
}

func TestPriorities(t *testing.T) {
	s := newAt()
	s.ApplyClusters([]*Config{eds("c", func(c *Config) { c.Balancer.Policy = Random })}, nil)
	far := func(i int, e *Endpoint) { e.Priority = uint32(i); e.Healthy = i > 0 }
	s.ApplyEndpoints([]*Assignment{list("c", 3, far)}, nil)
	for range 10 {
		if h, err := s.Get("c").Pick(Choice{Rand: counter()}); err != nil || h.Priority != 1 {
			t.Fatalf("got %+v, %v; want the nearest that is healthy", h, err)
		}
	}
}

func TestWarm(t *testing.T) {
	s := newAt()
	s.ApplyClusters([]*Config{eds("c")}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Get("c").Warm(ctx); !errors.Is(err, ErrNoHealthy) {
		t.Errorf("a cluster without a list is warm: %v", err)
	}
	old := s.Get("c")
	s.ApplyEndpoints([]*Assignment{list("c", 1)}, nil)
	c, err := old.Warm(t.Context())
	if err != nil || len(c.Hosts) != 1 {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestOutlierEjection(t *testing.T) {
	s := newAt()
	s.ApplyClusters([]*Config{eds("c", func(c *Config) {
		c.Balancer.Policy = RoundRobin
		c.Outlier = &Outlier{Consecutive5xx: 3, Interval: 10 * time.Second, Base: 30 * time.Second, Max: time.Minute, MaxPercent: 10, AlwaysOne: true}
	})}, nil)
	s.ApplyEndpoints([]*Assignment{list("c", 3)}, nil)
	c := s.Get("c")
	bad, worse := c.Hosts[0], c.Hosts[1]
	for range 3 {
		c.Report(bad, GatewayErr)
		c.Report(worse, ServerErr)
	}
	if c.Hosts[0].EjectedUntil(s.now).IsZero() {
		t.Error("three failures in a row did not eject")
	}
	if !worse.EjectedUntil(s.now).IsZero() {
		t.Error("more than the allowed share was ejected")
	}
	// What was learnt survives a new list.
	s.ApplyEndpoints([]*Assignment{list("c", 3, func(_ int, e *Endpoint) { e.Weight = 2 })}, nil)
	for range 20 {
		if h, _ := s.Get("c").Pick(Choice{Rand: counter()}); h.Addr == bad.Addr {
			t.Fatal("an ejected host was picked")
		}
	}
	s.now = s.now.Add(31 * time.Second)
	if !s.Get("c").Hosts[0].EjectedUntil(s.now).IsZero() {
		t.Error("the ejection did not end")
	}
	c.Report(worse, Answered)
	c.Report(worse, ServerErr)
	if !worse.EjectedUntil(s.now).IsZero() {
		t.Error("failures that are not in a row ejected")
	}
}

func TestIdentityChangeDropsConnections(t *testing.T) {
	s := newAt()
	s.ApplyClusters([]*Config{eds("c")}, nil)
	as := func(sa string) func(int, *Endpoint) {
		return func(_ int, e *Endpoint) { e.Identity = identity.MustParse("spiffe://td/ns/n/sa/" + sa) }
	}
	s.ApplyEndpoints([]*Assignment{list("c", 1, as("a"))}, nil)
	before := s.Get("c").Hosts[0]
	s.ApplyEndpoints([]*Assignment{list("c", 1, as("a"), func(_ int, e *Endpoint) { e.Healthy = false })}, nil)
	if s.Get("c").Hosts[0].state != before.state {
		t.Error("a change of health lost what was learnt")
	}
	s.ApplyEndpoints([]*Assignment{list("c", 1, as("b"))}, nil)
	if s.Get("c").Hosts[0].state == before.state || !before.state.pools.retired {
		t.Error("another identity behind the same address kept the old connections")
	}
}

func TestRemovedClusterIsGone(t *testing.T) {
	s := newAt()
	names := s.ApplyClusters([]*Config{eds("a"), eds("b")}, nil)
	if strings.Join(names, ",") != "a,b" {
		t.Errorf("endpoints of %v are wanted", names)
	}
	if names = s.ApplyClusters(nil, []string{"a"}); len(names) != 1 || s.Get("a") != nil || s.Get("b") == nil {
		t.Errorf("got %v", names)
	}
}

func TestUnsupportedClustersAreRefused(t *testing.T) {
	renegotiating, err := anypb.New(&tlsv3.UpstreamTlsContext{AllowRenegotiation: true})
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]*clusterv3.Cluster{
		"renegotiation":   {TransportSocket: &corev3.TransportSocket{ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: renegotiating}}},
		"custom type":     {ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{Name: "x"}}},
		"two checks":      {HealthChecks: []*corev3.HealthCheck{{}, {}}},
		"subset balancer": {LbSubsetConfig: &clusterv3.Cluster_LbSubsetConfig{}},
	}
	for name, c := range bad {
		c.Name = "c"
		if _, err := Compile(c); !errors.Is(err, strict.ErrUnsupported) || !strings.Contains(err.Error(), `cluster "c"`) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
