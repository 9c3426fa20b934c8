package view_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/ztunnel/internal/view"
)

func pack(t testing.TB, name string, m proto.Message) xds.Resource {
	t.Helper()
	body, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return xds.Resource{Name: name, Body: body}
}

func pod(t testing.TB, name string, last byte, edit ...func(*workload.Workload)) xds.Resource {
	t.Helper()
	w := &workload.Workload{
		Uid: "c//Pod/ns/" + name, Name: name, Namespace: "ns", Node: "n1", ServiceAccount: name,
		Addresses: [][]byte{{10, 0, 0, last}}, TunnelProtocol: workload.TunnelProtocol_HBONE,
	}
	for _, e := range edit {
		e(w)
	}
	return pack(t, w.GetUid(), &workload.Address{Type: &workload.Address_Workload{Workload: w}})
}

func service(t testing.TB, host string, edit ...func(*workload.Service)) xds.Resource {
	t.Helper()
	s := &workload.Service{Name: host, Namespace: "ns", Hostname: host}
	for _, e := range edit {
		e(s)
	}
	return pack(t, "ns/"+host, &workload.Address{Type: &workload.Address_Service{Service: s}})
}

// TestBatchIsAtomic: while responses move two pods back and forth between two addresses, no
// reader ever sees both at one. A bad resource in each response holds nothing back.
func TestBatchIsAtomic(t *testing.T) {
	s := view.New(obs.Discard())
	apply := func(a, b byte) {
		bad := pod(t, "bad", 9, func(w *workload.Workload) { w.TunnelProtocol = workload.TunnelProtocol_LEGACY_ISTIO_MTLS })
		rejects := s.ApplyAddresses(t.Context(), []xds.Resource{pod(t, "a", a), bad, pod(t, "b", b)}, nil)
		if len(rejects) != 1 || rejects[0].Name != "c//Pod/ns/bad" || !strings.Contains(rejects[0].Err.Error(), "LEGACY_ISTIO_MTLS") {
			t.Errorf("rejects %v", rejects)
		}
	}
	apply(1, 2)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := s.Get()
				a, b := v.WorkloadByUID("c//Pod/ns/a"), v.WorkloadByUID("c//Pod/ns/b")
				if a.Addresses[0] == b.Addresses[0] {
					t.Error("half of a batch was seen")
					return
				}
			}
		})
	}
	for i := range 500 {
		apply(byte(1+i%2), byte(2-i%2))
	}
	close(stop)
	readers.Wait()
}

// TestOneViewPerDecision: a View that was taken does not move under the decision.
func TestOneViewPerDecision(t *testing.T) {
	s := view.New(obs.Discard())
	s.ApplyAddresses(t.Context(), []xds.Resource{pod(t, "a", 1)}, nil)
	before := s.Get()
	changed := s.Changed()
	s.ApplyAddresses(t.Context(), []xds.Resource{pod(t, "b", 1)}, []string{"c//Pod/ns/a"})
	select {
	case <-changed:
	default:
		t.Fatal("the change was not announced")
	}
	addr := netip.MustParseAddr("10.0.0.1")
	if w := before.WorkloadByAddr("", addr); w == nil || w.Name != "a" {
		t.Fatalf("the View that was taken changed: %v", w)
	}
	if w := s.Get().WorkloadByAddr("", addr); w == nil || w.Name != "b" {
		t.Fatalf("the next View has %v", w)
	}
}

func TestRejects(t *testing.T) {
	u32 := func(n uint32) *uint32 { return &n }
	for _, tc := range []struct {
		name string
		r    xds.Resource
		want string
	}{
		{"no payload", xds.Resource{Name: "x"}, "no payload"},
		{"garbage", xds.Resource{Name: "x", Body: &anypb.Any{Value: []byte{0xff, 0xff}}}, "istio.workload.Address"},
		{"neither", pack(t, "x", &workload.Address{}), "neither"},
		{"no uid", pod(t, "a", 1, func(w *workload.Workload) { w.Uid = "" }), "no uid"},
		{"address bytes", pod(t, "a", 1, func(w *workload.Workload) { w.Addresses = [][]byte{{1, 2, 3}} }), "addresses[0] has 3 bytes"},
		{"protocol", pod(t, "a", 1, func(w *workload.Workload) { w.TunnelProtocol = 77 }), "tunnel_protocol 77"},
		{"status", pod(t, "a", 1, func(w *workload.Workload) { w.Status = 77 }), "status 77"},
		{"network mode", pod(t, "a", 1, func(w *workload.Workload) { w.NetworkMode = 77 }), "network_mode 77"},
		{"tunnel", pod(t, "a", 1, func(w *workload.Workload) {
			w.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: 77}
		}), "application_tunnel.protocol 77"},
		{"service key", pod(t, "a", 1, func(w *workload.Workload) { w.Services = map[string]*workload.PortList{"x": nil} }), "namespace/hostname"},
		{"identity", pod(t, "a", 1, func(w *workload.Workload) { w.ServiceAccount = "a/b" }), "service account"},
		{"waypoint", pod(t, "a", 1, func(w *workload.Workload) { w.Waypoint = &workload.GatewayAddress{} }), "waypoint has no destination"},
		{"gateway", pod(t, "a", 1, func(w *workload.Workload) { w.NetworkGateway = &workload.GatewayAddress{} }), "network_gateway has no destination"},
		{"no hostname", service(t, ""), "no hostname"},
		{"vip bytes", service(t, "h", func(s *workload.Service) { s.Addresses = []*workload.NetworkAddress{{Address: []byte{1}}} }), "want 4 or 16"},
		{"vip length", service(t, "h", func(s *workload.Service) {
			s.Addresses = []*workload.NetworkAddress{{Address: []byte{10, 0, 0, 0}, Length: u32(33)}}
		}), "length 33"},
		{"lb mode", service(t, "h", func(s *workload.Service) { s.LoadBalancing = &workload.LoadBalancing{Mode: 77} }), "load_balancing.mode"},
		{"lb scope", service(t, "h", func(s *workload.Service) {
			s.LoadBalancing = &workload.LoadBalancing{RoutingPreference: []workload.LoadBalancing_Scope{0}}
		}), "routing_preference[0]"},
		{"lb health", service(t, "h", func(s *workload.Service) { s.LoadBalancing = &workload.LoadBalancing{HealthPolicy: 77} }), "health_policy"},
		{"families", service(t, "h", func(s *workload.Service) { s.IpFamilies = 77 }), "ip_families"},
		{"weighted", service(t, "h", func(s *workload.Service) { s.WeightedWaypoints = []*workload.WeightedWaypoint{{}} }), "weighted_waypoints[0]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := view.New(obs.Discard())
			rejects := s.ApplyAddresses(t.Context(), []xds.Resource{tc.r, pod(t, "good", 9)}, nil)
			if len(rejects) != 1 || !strings.Contains(rejects[0].Err.Error(), tc.want) {
				t.Fatalf("rejects %v, want one with %q", rejects, tc.want)
			}
			if s.Get().WorkloadByUID("c//Pod/ns/good") == nil {
				t.Fatal("the good resource was held back")
			}
		})
	}
}

func TestConversion(t *testing.T) {
	u32 := func(n uint32) *uint32 { return &n }
	s := view.New(obs.Discard())
	rejects := s.ApplyAddresses(t.Context(), []xds.Resource{
		pod(t, "a", 1, func(w *workload.Workload) {
			w.ServiceAccount, w.Node = "", ""
			w.Capacity = wrapperspb.UInt32(0)
			w.Services = map[string]*workload.PortList{"ns/h": {Ports: []*workload.Port{{ServicePort: 80, TargetPort: 8080}}}}
		}),
		service(t, "h", func(s *workload.Service) {
			s.Addresses = []*workload.NetworkAddress{
				{Address: []byte{10, 96, 0, 1}}, {Address: []byte{10, 96, 0, 2}, Length: u32(32)}, {Address: []byte{10, 97, 3, 4}, Length: u32(16)},
			}
			s.SubjectAltNames = []string{"spiffe://td/ns/ns/sa/x", "nonsense"}
			s.Visibility = 77
			s.Ports = []*workload.Port{{ServicePort: 65536 + 80, TargetPort: 8080}}
		}),
	}, nil)
	if len(rejects) != 0 {
		t.Fatal(rejects)
	}
	v := s.Get()
	w, svc := v.WorkloadByUID("c//Pod/ns/a"), v.ServiceByHost("ns", "h")
	if w.ID.String() != "spiffe://cluster.local/ns/ns/sa/default" || w.ClusterID != "Kubernetes" || w.Capacity != 0 || w.WorkloadType != "deployment" {
		t.Fatalf("defaults of %+v", w)
	}
	if len(svc.SANs) != 1 || svc.Private || svc.Ports[0].Service != 80 {
		t.Fatalf("service %+v", svc)
	}
	for _, ip := range []string{"10.96.0.1", "10.96.0.2", "10.97.200.1"} {
		if v.ServiceByVIP("", netip.MustParseAddr(ip), "x") != svc {
			t.Errorf("%s does not lead to the service", ip)
		}
	}
	if ep := v.Endpoint(svc.Key(), w.UID); ep == nil || ep.Ports[0].Target != 8080 {
		t.Fatalf("endpoint %+v", ep)
	}
}

func TestPolicies(t *testing.T) {
	s := view.New(obs.Discard())
	policy := func(name string, scope security.Scope, action security.Action) xds.Resource {
		return pack(t, "ns/"+name, &security.Authorization{
			Name: name, Namespace: "ns", Scope: scope, Action: action,
			Groups: []*security.Group{{Rules: []*security.Rules{{Matches: []*security.Match{{
				Principals:       []*security.StringMatch{{}, {MatchType: &security.StringMatch_Prefix{Prefix: "td/"}}},
				SourceIps:        []*security.Address{{Address: []byte{1}}, {Address: []byte{127, 0, 0, 1}, Length: 24}, {Address: []byte{1, 2, 3, 4}, Length: 99}},
				DestinationPorts: []uint32{65536 + 80},
			}}}}}},
		})
	}
	rejects := s.ApplyAuthorizations(t.Context(), []xds.Resource{
		policy("good", security.Scope_NAMESPACE, security.Action_DENY), policy("scope", 77, 0), policy("action", 0, 77), {Name: "empty"},
	}, nil)
	if len(rejects) != 3 {
		t.Fatalf("rejects %v", rejects)
	}
	p := s.Get().PolicyByName("ns/good")
	m := p.Rules[0][0][0]
	if p.Action != mesh.Deny || len(m.Principals) != 1 || m.Principals[0].Kind != mesh.Prefix ||
		len(m.SourceIPs) != 1 || m.SourceIPs[0].String() != "127.0.0.0/24" || m.DestinationPorts[0] != 80 {
		t.Fatalf("policy %+v", p)
	}
	s.ApplyAuthorizations(t.Context(), nil, []string{"ns/good"})
	if s.Get().PolicyByName("ns/good") != nil {
		t.Fatal("the policy was not removed")
	}
}

func TestWaitWorkload(t *testing.T) {
	t.Run("arrives", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := view.New(obs.Discard())
			start := time.Now()
			time.AfterFunc(time.Second, func() { s.ApplyAddresses(t.Context(), []xds.Resource{pod(t, "other", 2)}, nil) })
			time.AfterFunc(3*time.Second, func() { s.ApplyAddresses(t.Context(), []xds.Resource{pod(t, "a", 1)}, nil) })
			w, err := s.WaitWorkload(t.Context(), "n1", "ns", "a", "a")
			if err != nil || w.Name != "a" || time.Since(start) != 3*time.Second {
				t.Fatalf("%v, %v after %v", w, err, time.Since(start))
			}
		})
	})
	t.Run("never", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := view.New(obs.Discard())
			start := time.Now()
			_, err := s.WaitWorkload(t.Context(), "n1", "ns", "a", "sa")
			if err == nil || err.Error() != "failed to fetch information about local workload: sa.ns (a)" || time.Since(start) != view.WaitLimit {
				t.Fatalf("%v after %v", err, time.Since(start))
			}
		})
	})
	t.Run("given up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("why")
			time.AfterFunc(time.Second, func() { cancel(why) })
			if _, err := view.New(obs.Discard()).WaitWorkload(ctx, "", "ns", "a", "sa"); !errors.Is(err, why) {
				t.Fatal(err)
			}
		})
	})
}

func FuzzAddress(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(pod(f, "a", 1).Body.GetValue())
	f.Add(service(f, "h").Body.GetValue())
	f.Fuzz(func(_ *testing.T, b []byte) {
		s := view.New(obs.Discard())
		r := xds.Resource{Name: "x", Body: &anypb.Any{Value: b}}
		if len(s.ApplyAddresses(context.Background(), []xds.Resource{r}, nil)) == 0 {
			s.ApplyAddresses(context.Background(), []xds.Resource{r}, []string{"x"})
		}
	})
}

func FuzzAuthorization(f *testing.F) {
	f.Add([]byte(nil))
	f.Fuzz(func(_ *testing.T, b []byte) {
		s := view.New(obs.Discard())
		s.ApplyAuthorizations(context.Background(), []xds.Resource{{Name: "x", Body: &anypb.Any{Value: b}}}, nil)
	})
}

func BenchmarkApplyOne(b *testing.B) {
	s := view.New(obs.Discard())
	var all []xds.Resource
	for i := range 10_000 {
		all = append(all, pod(b, fmt.Sprint("p", i), byte(i), func(w *workload.Workload) { w.Addresses[0][1] = byte(i >> 8) }))
	}
	s.ApplyAddresses(b.Context(), all, nil)
	b.ReportAllocs()
	for b.Loop() {
		s.ApplyAddresses(b.Context(), all[:1], nil)
	}
}
