package testmesh_test

import (
	"bytes"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/testkit/memnet"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
)

func service(host, vip string, service, target uint16) *mesh.Service {
	return &mesh.Service{
		Name: host, Namespace: "shop", Hostname: host + ".shop.svc", Ports: []mesh.PortMapping{{Service: service, Target: target}},
		VIPs: []mesh.VIP{{Prefix: netip.PrefixFrom(netip.MustParseAddr(vip), 32)}},
	}
}

func member(host string) func(*mesh.Workload) {
	return func(w *mesh.Workload) {
		w.Services = []mesh.Membership{{Service: mesh.NamespacedHostname{Namespace: "shop", Hostname: host + ".shop.svc"}}}
	}
}

// TestWalk follows one connection from application to application.
func TestWalk(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		a, b := w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2", member("web"))
		w.apply(mesh.Batch{Services: []*mesh.Service{service("web", "10.96.0.1", 80, 8080)}})
		callers := b.echo(8080)
		c := a.connect("10.96.0.1:80")
		say(t, c, "hello")
		if from := <-callers; from.Addr() != a.ip {
			t.Errorf("the application sees %s, want the client's own address", from)
		}
		if in, out := w.conns.List(b.UID, conns.Inbound), w.conns.List(a.UID, conns.Outbound); len(in) != 1 || len(out) != 1 ||
			in[0].Original != "web.shop.svc" || out[0].Original != "10.96.0.1:80" || out[0].Protocol != "HBONE" {
			t.Errorf("table: inbound %+v, outbound %+v", in, out)
		}
		_ = c.CloseWrite()
		if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
			t.Errorf("after the end: %q, %v", rest, err)
		}
		settle()
		const ids = `src.identity="spiffe://cluster.local/ns/shop/sa/a"`
		if got := w.log.with("connection complete", `direction="outbound"`, ids, `dst.addr=10.0.0.2:15008`, `dst.hbone_addr=10.0.0.2:8080`,
			`dst.service="web.shop.svc"`, `dst.workload="b"`, `dst.identity="spiffe://cluster.local/ns/shop/sa/b"`, "bytes_sent=5 bytes_recv=5", "\tinfo\t"); len(got) != 1 {
			t.Errorf("outbound log: %q", w.log.with("connection complete", `direction="outbound"`))
		}
		if got := w.log.with("connection complete", `direction="inbound"`, ids, `dst.addr=10.0.0.2:15008`, `dst.service="web.shop.svc"`, "bytes_sent=5"); len(got) != 1 {
			t.Errorf("inbound log: %q", w.log.with("connection complete", `direction="inbound"`))
		}
		for _, reporter := range []string{"source", "destination"} {
			for _, name := range []string{"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"} {
				if got := w.total(name, "reporter", reporter); got != 1 {
					t.Errorf("%s{reporter=%s} = %v", name, reporter, got)
				}
			}
			if got := w.total("istio_tcp_received_bytes_total", "reporter", reporter); got != 5 {
				t.Errorf("received by %s: %v", reporter, got)
			}
		}
		if got := w.total("istio_tcp_sent_bytes_total", "connection_security_policy", "mutual_tls"); got != 10 {
			t.Errorf("sent with mutual_tls: %v", got)
		}
	})
}

// TestRoundTrips: a first byte costs TCP, TLS and CONNECT between the proxies, then its own way; over
// an open tunnel only CONNECT.
func TestRoundTrips(t *testing.T) {
	const rtt = 100 * time.Millisecond
	bubble(t, func(*memnet.Net) *memnet.Net { return memnet.New(rtt) }, func(t *testing.T, w *world) {
		a, b := w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2")
		b.echo(80)
		timed := func() time.Duration {
			start := time.Now()
			c := a.connect("10.0.0.2:80")
			say(t, c, "x")
			took := time.Since(start)
			_ = c.Close()
			return took
		}
		// The echo: application to proxy, proxy to proxy, proxy to application and back is 3 round trips;
		// the dial of the application is one more.
		if got, want := timed(), (3+1+3-1)*rtt; got > want+rtt {
			t.Errorf("first byte after %v, want at most %v", got, want+rtt)
		}
		first := w.net.Dials(netip.MustParseAddrPort("10.0.0.2:15008"))
		again := timed()
		if w.net.Dials(netip.MustParseAddrPort("10.0.0.2:15008")) != first {
			t.Error("the second connection dialled again")
		}
		if want := 5 * rtt; again > want {
			t.Errorf("second connection: first byte after %v, want at most %v", again, want)
		}
	})
}

func TestPlaintextBothWays(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		a := w.pod("a", "10.0.0.1")
		old := w.bare(workload("old", "10.0.0.9"))
		callers := old.echo(80)
		c := a.connect("10.0.0.9:80")
		say(t, c, "out")
		_ = c.Close()
		if from := <-callers; from.Addr() != a.ip {
			t.Errorf("passthrough comes from %s", from)
		}
		into := a.echo(8080)
		c = a.plain("10.0.0.9:1234", 8080)
		say(t, c, "in")
		_ = c.Close()
		if from := <-into; from.Addr() != old.ip {
			t.Errorf("the application sees %s", from)
		}
		closed(t, a.plain("10.0.0.9:1234", 15006))
		settle()
		if got := w.log.with("connection failed", "attempted recursive call to ourselves", "\twarn\t"); len(got) != 1 {
			t.Errorf("recursive call: %q", got)
		}
		if got := w.total("istio_tcp_connections_opened_total", "connection_security_policy", "unknown"); got != 2 {
			t.Errorf("plaintext connections: %v", got)
		}
	})
}

// TestHalfClose: the client ends its direction, the server still answers.
func TestHalfClose(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		a, b := w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2")
		b.listen(80, func(c *memnet.Conn) {
			asked, _ := io.ReadAll(c)
			_, _ = c.Write(bytes.Repeat(asked, 1000))
			_ = c.Close()
		})
		c := a.connect("10.0.0.2:80")
		_, _ = c.Write([]byte("question"))
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || len(got) != 8000 {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}

// TestHairpin: a pod that calls itself by a service goes through its own proxy and keeps its address.
func TestHairpin(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		a := w.pod("a", "10.0.0.1", member("web"))
		w.apply(mesh.Batch{Services: []*mesh.Service{service("web", "10.96.0.1", 80, 8080)}})
		callers := a.echo(8080)
		c := a.connect("10.96.0.1:80")
		say(t, c, "me")
		if from := <-callers; from.Addr() != a.ip {
			t.Errorf("caller %s", from)
		}
		_ = c.Close()
	})
}

// TestWaitsForItsWorkload: a pod that is captured before the control plane told about it.
func TestWaitsForItsWorkload(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		b := w.pod("b", "10.0.0.2")
		b.echo(80)
		late := workload("late", "10.0.0.3")
		p := w.bare(late)
		c := p.connect("10.0.0.2:80")
		go func() {
			<-time.After(3 * time.Second)
			w.views.Apply(mesh.Batch{Workloads: []*mesh.Workload{late}})
		}()
		start := time.Now()
		say(t, c, "x")
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("after %v", took)
		}
		_ = c.Close()
	})
}
