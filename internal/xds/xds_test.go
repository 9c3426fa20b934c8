package xds_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/internal/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bed is a real server and store on an in-memory listener.
type bed struct {
	store *board
	srv   *xds.Server
	lis   *bufconn.Listener
	grpc  *grpc.Server

	mu    sync.Mutex
	nacks []string
	deny  error
}

func (b *bed) Authenticate(ctx context.Context) (context.Context, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return ctx, b.deny
}

func (b *bed) Admit(_ context.Context, n *corev3.Node) (xds.Admission, error) {
	return xds.Admission{
		Scope:        n.GetId(),
		Types:        map[string]bool{xds.AddressType: true, xds.AuthorizationType: true, xds.ClusterType: true, xds.EndpointType: true},
		Subscription: b.store.subscribe(),
	}, nil
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{store: newBoard()}
	b.srv = xds.NewServer(xds.ServerConfig{Gatekeeper: b, OnNack: func(_, _, m string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.nacks = append(b.nacks, m)
	}})
	b.start(t)
	t.Cleanup(func() { b.grpc.Stop() })
	return b
}

func (b *bed) start(t *testing.T) {
	t.Helper()
	b.lis = bufconn.Listen(1 << 20)
	b.grpc = grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(b.grpc, b.srv)
	lis, srv := b.lis, b.grpc
	go func() { _ = srv.Serve(lis) }()
}

func (b *bed) dial(context.Context) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///bed", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.lis.DialContext(ctx) }))
}

func (b *bed) put(url string, names ...string) {
	var rs []xds.Resource
	for _, n := range names {
		name, version, _ := strings.Cut(n, "=")
		body, _ := anypb.New(wrapperspb.String(n))
		rs = append(rs, xds.Resource{Name: name, Version: version, Body: body})
	}
	b.store.change(url, rs, nil)
}

func (b *bed) remove(url string, names ...string) {
	b.store.change(url, nil, names)
}

// table is a handler that keeps what it was given and refuses names with "bad" in the body.
type table struct {
	mu      sync.Mutex
	have    map[string]string
	updates int
	got     chan string
}

func newTable() *table { return &table{have: map[string]string{}, got: make(chan string, 100)} }

func (tb *table) handle(_ context.Context, up []xds.Resource, removed []string) (out []xds.Reject) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, r := range up {
		tb.updates++
		var s wrapperspb.StringValue
		if err := r.Body.UnmarshalTo(&s); err != nil || strings.Contains(s.GetValue(), "bad") {
			out = append(out, xds.Reject{Name: r.Name, Err: errors.New("field value is bad")})
			continue
		}
		tb.have[r.Name] = r.Version
	}
	for _, n := range removed {
		delete(tb.have, n)
	}
	var names []string
	for n, v := range tb.have {
		names = append(names, n+"="+v)
	}
	sort.Strings(names)
	tb.got <- strings.Join(names, " ")
	return out
}

func (tb *table) want(t *testing.T, state string) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	var last string
	for {
		select {
		case last = <-tb.got:
			if last == state {
				return
			}
		case <-deadline:
			t.Fatalf("state is %q, want %q", last, state)
		}
	}
}

func run(t *testing.T, c *xds.Client) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func client(b *bed, types ...*xds.Type) *xds.Client {
	return xds.NewClient(xds.ClientConfig{Dial: b.dial, Node: &corev3.Node{Id: "ztunnel~10.0.0.1~z.ns~ns.svc.cluster.local"}, Types: types})
}

func TestFirstRequestAlwaysAnswered(t *testing.T) {
	b := newBed(t)
	addr, auth := newTable(), newTable()
	c := client(b, &xds.Type{URL: xds.AddressType, Handle: addr.handle}, &xds.Type{URL: xds.AuthorizationType, Handle: auth.handle})
	run(t, c)
	select {
	case <-c.Synced():
	case <-time.After(5 * time.Second):
		t.Fatal("an empty server must still answer both first requests")
	}
}

func TestPushAndRemove(t *testing.T) {
	b := newBed(t)
	b.put(xds.AddressType, "a=1", "b=1")
	tb := newTable()
	run(t, client(b, &xds.Type{URL: xds.AddressType, Handle: tb.handle}))
	tb.want(t, "a=1 b=1")
	b.put(xds.AddressType, "a=2")
	tb.want(t, "a=2 b=1")
	b.remove(xds.AddressType, "b")
	tb.want(t, "a=2")
	if tb.updates != 3 {
		t.Errorf("the client was sent %d resources, want 3: only what changed", tb.updates)
	}
}

// TestPoliciesCoverTheirWorkloads: a proxy passes over a policy that it does not know, so at no moment may it know a
// workload without the policy that the workload names.
func TestPoliciesCoverTheirWorkloads(t *testing.T) {
	b := newBed(t)
	body, _ := anypb.New(wrapperspb.String("x"))
	resource := func(name string) []xds.Resource { return []xds.Resource{{Name: name, Body: body}} }
	b.store.change(xds.AuthorizationType, resource("old"), nil)
	b.store.change(xds.AddressType, resource("by-old"), nil)
	events := make(chan string, 100)
	note := func(kind string) func(context.Context, []xds.Resource, []string) []xds.Reject {
		return func(_ context.Context, up []xds.Resource, removed []string) []xds.Reject {
			for _, r := range up {
				events <- kind + "+" + r.Name
			}
			for _, n := range removed {
				events <- kind + "-" + n
			}
			return nil
		}
	}
	c := client(b, &xds.Type{URL: xds.AddressType, Handle: note("workload")}, &xds.Type{URL: xds.AuthorizationType, Handle: note("policy")})
	run(t, c)
	<-c.Synced()
	<-events
	<-events
	b.store.mu.Lock()
	b.store.changeLocked(xds.AddressType, resource("by-new"), []string{"by-old"})
	b.store.changeLocked(xds.AuthorizationType, resource("new"), []string{"old"})
	b.store.mu.Unlock()
	var got []string
	for range 4 {
		select {
		case e := <-events:
			got = append(got, e)
		case <-time.After(5 * time.Second):
			t.Fatalf("only %q came", got)
		}
	}
	if want := []string{"policy+new", "workload+by-new", "workload-by-old", "policy-old"}; !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

func TestRejectedNotRetained(t *testing.T) {
	b := newBed(t)
	b.put(xds.AddressType, "good=1", "bad=1")
	tb := newTable()
	run(t, client(b, &xds.Type{URL: xds.AddressType, Handle: tb.handle}))
	tb.want(t, "good=1")
	b.grpc.Stop()
	b.start(t)
	tb.want(t, "good=1")
	// The reconnect sends only the refused one again.
	if tb.updates != 3 {
		t.Errorf("sent %d resources over two connections, want 3: good once, bad twice", tb.updates)
	}
	heard := func() []string {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Clone(b.nacks)
	}
	for deadline := time.Now().Add(5 * time.Second); len(heard()) == 0 && time.Now().Before(deadline); {
		b.srv.Clients() // the answer is on its way
	}
	if got := heard(); len(got) == 0 || got[0] != "bad: field value is bad" {
		t.Errorf("server heard %q, want the name and the reason", got)
	}
}

func TestReconnectLearnsRemovals(t *testing.T) {
	b := newBed(t)
	b.put(xds.AddressType, "a=1", "b=1", "c=1")
	tb := newTable()
	run(t, client(b, &xds.Type{URL: xds.AddressType, Handle: tb.handle}))
	tb.want(t, "a=1 b=1 c=1")
	b.grpc.Stop()
	b.remove(xds.AddressType, "b")
	b.put(xds.AddressType, "c=2")
	b.start(t)
	tb.want(t, "a=1 c=2")
	if tb.updates != 4 {
		t.Errorf("sent %d resources, want 4: the reconnect costs the difference", tb.updates)
	}
}

func TestNamedType(t *testing.T) {
	b := newBed(t)
	b.put(xds.EndpointType, "x=1", "y=1", "z=1")
	tb := newTable()
	cds := newTable()
	c := client(b, &xds.Type{URL: xds.ClusterType, Handle: cds.handle}, &xds.Type{URL: xds.EndpointType, Names: []string{}, Handle: tb.handle})
	run(t, c)
	<-c.Synced() // a named type without names does not hold back readiness
	c.SetNames(xds.EndpointType, []string{"x", "missing"})
	tb.want(t, "x=1")
	c.SetNames(xds.EndpointType, []string{"x", "y"})
	tb.want(t, "x=1 y=1")
	b.put(xds.EndpointType, "z=2")
	b.put(xds.EndpointType, "y=2")
	tb.want(t, "x=1 y=2")
	c.SetNames(xds.EndpointType, []string{"y", "z"})
	tb.want(t, "x=1 y=2 z=2") // the server has read the new list
	b.put(xds.EndpointType, "x=7")
	b.put(xds.EndpointType, "y=3")
	tb.want(t, "x=1 y=3 z=2") // x is no longer asked for; the handler's owner drops it
}

func TestRefusedByGatekeeper(t *testing.T) {
	b := newBed(t)
	b.deny = status.Error(codes.Unauthenticated, "no token")
	events := make(chan xds.Event, 100)
	c := xds.NewClient(xds.ClientConfig{Dial: b.dial, Node: &corev3.Node{Id: "x"}, OnEvent: func(e xds.Event) {
		select {
		case events <- e:
		default:
		}
	}, Types: []*xds.Type{{URL: xds.AddressType, Handle: newTable().handle}}})
	run(t, c)
	for {
		e := <-events
		if e.Kind == xds.EventTerminated {
			if e.Reason != "Error" || status.Code(e.Err) != codes.Unauthenticated || e.Wait < 20*time.Millisecond {
				t.Fatalf("refusal reported as %+v", e)
			}
			return
		}
	}
}

// raw opens a stream and speaks the protocol by hand.
func raw(t *testing.T, b *bed) discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
	t.Helper()
	conn, err := b.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestServerRules(t *testing.T) {
	node := &corev3.Node{Id: "ztunnel~1~z.ns~x"}
	t.Run("node is needed", func(t *testing.T) {
		s := raw(t, newBed(t))
		_ = s.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.AddressType})
		if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Fatalf("a stream without node id: %v", err)
		}
	})
	t.Run("on demand starts empty", func(t *testing.T) {
		b := newBed(t)
		b.put(xds.AddressType, "a=1", "b=1")
		s := raw(t, b)
		_ = s.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: xds.AddressType, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}})
		r, err := s.Recv()
		if err != nil || len(r.GetResources()) != 0 {
			t.Fatalf("subscribed to nothing, got %v, %v", r, err)
		}
		_ = s.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.AddressType, ResourceNamesSubscribe: []string{"a", "gone"}})
		r, err = s.Recv()
		if err != nil || len(r.GetResources()) != 1 || !slices.Equal(r.GetRemovedResources(), []string{"gone"}) {
			t.Fatalf("asked for a and gone, got %v, %v", r, err)
		}
	})
	t.Run("stale nonce and unchanged ack are not answered", func(t *testing.T) {
		b := newBed(t)
		b.put(xds.AddressType, "a=1")
		s := raw(t, b)
		_ = s.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: xds.AddressType})
		r, _ := s.Recv()
		_ = s.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.AddressType, ResponseNonce: "old", ResourceNamesSubscribe: []string{"*"}})
		_ = s.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.AddressType, ResponseNonce: r.GetNonce()})
		b.put(xds.AddressType, "b=1")
		r, err := s.Recv()
		if err != nil || len(r.GetResources()) != 1 || r.GetResources()[0].GetName() != "b" {
			t.Fatalf("next response is %v, %v; want just b", r, err)
		}
	})
	t.Run("foreign type gets an empty answer", func(t *testing.T) {
		b := newBed(t)
		s := raw(t, b)
		_ = s.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: "type.googleapis.com/some.Other"})
		if r, err := s.Recv(); err != nil || len(r.GetResources()) != 0 {
			t.Fatalf("got %v, %v", r, err)
		}
	})
}

func TestEveryResponseAnsweredOnce(t *testing.T) {
	b := newBed(t)
	tb := newTable()
	run(t, client(b, &xds.Type{URL: xds.AddressType, Handle: tb.handle}))
	tb.want(t, "")
	for i := range 20 {
		b.put(xds.AddressType, fmt.Sprintf("a=%d", i))
		tb.want(t, fmt.Sprintf("a=%d", i))
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		cs := b.srv.Clients()
		if len(cs) == 1 {
			if ty := cs[0].Types[xds.AddressType]; ty.Sent == ty.Acked && ty.Nack == "" {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the last response was not acknowledged: %+v", cs)
		}
	}
}
