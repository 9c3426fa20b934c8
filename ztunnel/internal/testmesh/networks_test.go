package testmesh_test

import (
	"context"
	"io"
	"net/netip"
	"testing"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/relay"
	"github.com/marrowmesh/marrow/internal/testkit/memnet"
)

// gateway ends the outer tunnel and passes what is inside on to a pod's HBONE port.
func (w *world) gateway(ip string, to *pod, asked chan<- string) {
	w.t.Helper()
	id := identity.MustParse("spiffe://cluster.local/ns/istio-system/sa/gateway")
	g := &pod{w: w, ip: netip.MustParseAddr(ip)}
	w.pods = append(w.pods, g)
	g.Pod = nil
	g.listen(15009, func(c *memnet.Conn) {
		cert, err := w.ca.Issue(id)
		if err != nil {
			w.t.Error(err)
			return
		}
		secured, _, err := mtls.Server(context.Background(), c, cert)
		if err != nil {
			return
		}
		_ = hbone.NewServer(hbone.Config{PingInterval: -1}).Serve(context.Background(), secured, func(ctx context.Context, in *hbone.Incoming) {
			asked <- in.Authority() + " network=" + in.Header("x-forwarded-network")
			up, err := w.net.Dial(ctx, g.ip, netip.AddrPortFrom(to.ip, 15008))
			if err != nil {
				_ = in.Reject(503, nil)
				return
			}
			s, err := in.Accept(nil)
			if err != nil {
				_ = up.Close()
				return
			}
			_ = relay.Both(context.Background(), s, up, nil)
		})
	})
	gw := workload("gw", ip)
	gw.ID, gw.Network = id, "far"
	w.apply(mesh.Batch{Workloads: []*mesh.Workload{gw}})
}

// TestDoubleTunnel reaches a pod of another network through its gateway, which sees nothing of what is said.
func TestDoubleTunnel(t *testing.T) {
	for _, tc := range []struct {
		name string
		sans []identity.ID
		ok   bool
	}{
		{"the service names the far identity", []identity.ID{identity.MustParse("spiffe://cluster.local/ns/shop/sa/b")}, true},
		{"it names somebody else", []identity.ID{identity.MustParse("spiffe://cluster.local/ns/shop/sa/other")}, false},
		{"it names nobody", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				a, b := w.pod("a", "10.0.0.1"), w.pod("b", "10.9.0.2", member("web"))
				callers := b.echo(8080)
				asked := make(chan string, 8)
				w.gateway("172.16.0.1", b, asked)
				svc := service("web", "10.96.0.1", 80, 8080)
				svc.SANs = tc.sans
				// The client's side knows the far pod only as a share of the service behind the gateway. The
				// far pod's own proxy has no network either, so one View serves both sides here.
				split := workload("split", "10.9.9.9", member("web"))
				split.UID, split.Network, split.Addresses = "far/SplitHorizonWorkload/gw/shop/web", "far", nil
				split.NetworkGateway = &mesh.GatewayAddress{Addr: mesh.NetworkAddress{Network: "far", Addr: netip.MustParseAddr("172.16.0.1")}, Port: 15009}
				own := *b.work
				own.Capacity = 0 // never chosen from here
				w.apply(mesh.Batch{Services: []*mesh.Service{svc}, Workloads: []*mesh.Workload{split, &own}})
				c := a.connect("10.96.0.1:80")
				if !tc.ok {
					if got, _ := io.ReadAll(c); len(got) != 0 || len(callers) != 0 {
						t.Errorf("heard %q, %d callers", got, len(callers))
					}
					_ = c.Close()
					return
				}
				say(t, c, "far away")
				if got := <-asked; got != "web.shop.svc:80 network=" {
					t.Errorf("the gateway was asked for %q", got)
				}
				if from := <-callers; from.Addr() != netip.MustParseAddr("172.16.0.1") {
					t.Errorf("the application sees %s", from)
				}
				_ = c.CloseWrite()
				if _, err := io.ReadAll(c); err != nil {
					t.Error(err)
				}
				settle()
				if got := w.log.with("connection complete", `direction="outbound"`, `dst.addr=172.16.0.1:15009`, `dst.hbone_addr="web.shop.svc:80"`,
					`dst.identity="spiffe://cluster.local/ns/shop/sa/b"`, `dst.workload="b-app"`); len(got) != 1 {
					t.Errorf("log: %q", w.log.with("connection complete", "outbound"))
				}
				if got := w.log.with("connection complete", `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/a"`); len(got) != 1 {
					t.Errorf("log: %q", w.log.with("connection complete", "inbound"))
				}
			})
		})
	}
}
