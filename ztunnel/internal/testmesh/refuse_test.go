package testmesh_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/testkit/fakeca"
	"github.com/marrowmesh/marrow/internal/testkit/memnet"
)

// stranger speaks to a pod's HBONE port by itself, as an attacker or another implementation would.
func (w *world) stranger(from string, to *pod, ca *fakeca.CA, id string) (*hbone.Client, error) {
	w.t.Helper()
	raw, err := w.net.Dial(w.t.Context(), netip.MustParseAddr(from), netip.AddrPortFrom(to.ip, 15008))
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := ca.Issue(identity.MustParse(id))
	if err != nil {
		w.t.Fatal(err)
	}
	secured, _, err := mtls.Client(w.t.Context(), raw, cert, []identity.ID{to.work.ID})
	if err != nil {
		return nil, err
	}
	// With TLS 1.3 a server's refusal reaches the client after its own handshake.
	return hbone.NewClient(secured, hbone.Config{PingInterval: -1})
}

const webID = "spiffe://cluster.local/ns/shop/sa/a"

// status asks for a tunnel and returns the answer's status; 0 if there was no answer.
func status(t *testing.T, c *hbone.Client, authority string, hdr ...hbone.Header) int {
	t.Helper()
	s, _, err := c.Connect(t.Context(), authority, hdr)
	if err == nil {
		_ = s.Close()
		return 200
	}
	if st, ok := errors.AsType[*hbone.StatusError](err); ok {
		return st.Status
	}
	t.Logf("no answer: %v", err)
	return 0
}

// TestRequests sends what nobody should send, all on one connection: each is refused by itself.
func TestRequests(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "10.0.0.2", member("web"))
		w.pod("c", "10.0.0.3")
		svc := service("web", "10.96.0.1", 80, 8080)
		svc.Ports = append(svc.Ports, mesh.PortMapping{Service: 81, Target: 0}, mesh.PortMapping{Service: 82, Target: 15001})
		w.apply(mesh.Batch{Services: []*mesh.Service{svc}})
		b.echo(8080)
		c, err := w.stranger("10.0.0.1", b, w.ca, webID)
		if err != nil {
			t.Fatal(err)
		}
		good, _, err := c.Connect(t.Context(), "10.0.0.2:8080", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			authority string
			want      int
			log       string
		}{
			{"10.0.0.2:8080", 200, ""},
			{"web.shop.svc:80", 200, ""},
			{"10.0.0.3:8080", 400, "ip mismatch: 10.0.0.2 != 10.0.0.3"},
			{"10.96.0.1:80", 400, "ip mismatch: 10.0.0.2 != 10.96.0.1"},
			{"10.0.0.2", 400, "missing port"},
			{"10.0.0.2:0", 400, "not a number from 1"},
			{"b\u0000d:80", 400, ""},
			{"10.0.0.2:15008", 503, "recursive"},
			{"10.0.0.2:15006", 503, "recursive"},
			{"web.shop.svc:82", 503, "recursive"},
			{"web.shop.svc:81", 503, "no target port"},
			{"nowhere.svc:80", 503, "unknown service"},
			{"10.0.0.2:1", 503, "connection refused"},
		} {
			got := status(t, c, tc.authority)
			if got != tc.want && (tc.want != 400 || got != 0) {
				t.Errorf("CONNECT %q: %d, want %d", tc.authority, got, tc.want)
			}
			settle()
			if tc.log != "" && len(w.log.with("access", tc.log)) == 0 {
				t.Errorf("CONNECT %q: no line says %q", tc.authority, tc.log)
			}
		}
		// The neighbours of all these streams noticed nothing.
		if _, err := good.Write([]byte("still here")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if _, err := io.ReadFull(good, buf); err != nil || string(buf) != "still here" {
			t.Fatalf("%q, %v", buf, err)
		}
		_ = good.Close()
		_ = c.Close()
		c.Wait()
	})
}

// TestPeers tries to speak with the wrong certificate, or none at all.
func TestPeers(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "10.0.0.2")
		reached := b.echo(8080)
		otherCA, err := fakeca.New()
		if err != nil {
			t.Fatal(err)
		}
		raw := func(first string) {
			c, err := w.net.Dial(t.Context(), netip.MustParseAddr("10.0.0.1"), netip.AddrPortFrom(b.ip, 15008))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte(first))
			_ = c.CloseWrite()
			_, _ = io.ReadAll(c)
			_ = c.Close()
		}
		raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") // HTTP/2 without TLS
		raw("GET / HTTP/1.1\r\n\r\n")
		raw("")
		for _, tc := range []struct {
			ca *fakeca.CA
			id string
		}{
			{w.ca, "spiffe://evil.example/ns/shop/sa/a"}, // our root, another trust domain
			{otherCA, webID}, // another root
		} {
			c, err := w.stranger("10.0.0.1", b, tc.ca, tc.id)
			if err != nil {
				continue // the client's own check of the server failed: no common root
			}
			if got := status(t, c, "10.0.0.2:8080"); got != 0 {
				t.Errorf("%s was answered %d", tc.id, got)
			}
			_ = c.Close()
			c.Wait()
		}
		settle()
		select {
		case from := <-reached:
			t.Errorf("%s reached the application", from)
		default:
		}
		if got := w.log.with("connection failed", `direction="inbound"`); len(got) != 5 {
			t.Errorf("refusals in the log: %q", got)
		}
		if w.total("istio_tcp_connections_opened_total", "reporter", "destination") != 0 {
			t.Error("a refused handshake was counted as a connection")
		}
	})
}

// TestUnknownFailsClosed: without a known pod nothing is carried, in either direction.
func TestUnknownFailsClosed(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		b := w.pod("b", "10.0.0.2")
		b.echo(80)
		ghost := w.bare(workload("ghost", "10.0.0.66"))
		ghost.echo(80)
		start := time.Now()
		closed(t, ghost.connect("10.0.0.2:80"))
		closed(t, ghost.plain("192.0.2.1:1", 80))
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("gave up after %v, want twice 5 s", took)
		}
		settle()
		if got := w.log.with("connection failed", "failed to fetch information about local workload: ghost.shop (ghost)"); len(got) != 2 {
			t.Errorf("log: %q", got)
		}
		// A tunnel to it is not even negotiated.
		if c, err := w.stranger("10.0.0.2", ghost, w.ca, webID); err == nil {
			if got := status(t, c, "10.0.0.66:80"); got != 0 {
				t.Errorf("a ghost answered %d", got)
			}
			_ = c.Close()
			c.Wait()
		}
		// Gone from the mesh while a tunnel is open: new streams are refused.
		c, err := w.stranger("10.0.0.1", b, w.ca, webID)
		if err != nil {
			t.Fatal(err)
		}
		if got := status(t, c, "10.0.0.2:80"); got != 200 {
			t.Errorf("before: %d", got)
		}
		w.apply(mesh.Batch{Removed: []string{b.work.UID}})
		if got := status(t, c, "10.0.0.2:80"); got != 503 {
			t.Errorf("a pod that left the mesh answers %d", got)
		}
		_ = c.Close()
		c.Wait()
	})
}

// TestNo200BeforeUpstream: the answer waits for the application's socket.
func TestNo200BeforeUpstream(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "10.0.0.2")
		w.net.Lose(netip.MustParseAddrPort("10.0.0.2:7"))
		c, err := w.stranger("10.0.0.1", b, w.ca, webID)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if got := status(t, c, "10.0.0.2:7"); got != 503 || time.Since(start) != 10*time.Second {
			t.Errorf("lost application: %d after %v, want 503 after 10 s", got, time.Since(start))
		}
		if got := status(t, c, "10.0.0.2:8"); got != 503 {
			t.Errorf("refusing application: %d, want 503", got)
		}
		settle()
		if got := w.log.with("connection complete", "\terror\t", "connection failed: "); len(got) != 2 {
			t.Errorf("log: %q", got)
		}
		if got := w.total("istio_tcp_connections_failed_total", "response_flags", "CONNECT"); got != 2 {
			t.Errorf("failed with CONNECT: %v", got)
		}
		_ = c.Close()
		c.Wait()
	})
}

// TestNoPlaintextFallback: when the tunnel cannot be had the connection ends; nothing is tried in plaintext.
func TestNoPlaintextFallback(t *testing.T) {
	for _, tc := range []struct {
		name, log, flag string
		setup           func(w *world)
	}{
		{"refused", "connection failed: ", "CONNECT", func(*world) {}},
		{"lost", "maybe a NetworkPolicy is blocking HBONE port 15008", "NETWORK_POLICY", func(w *world) {
			w.net.Lose(netip.MustParseAddrPort("10.0.0.2:15008"))
		}},
		{"impostor", "identity", "CONNECT", func(w *world) {
			impostor := w.bare(workload("impostor", "10.0.0.2"))
			impostor.Name, impostor.ServiceAccount = "impostor", "impostor"
			w.apply(mesh.Batch{Workloads: []*mesh.Workload{workload("impostor", "10.9.9.9")}})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				a := w.pod("a", "10.0.0.1")
				w.apply(mesh.Batch{Workloads: []*mesh.Workload{workload("b", "10.0.0.2")}})
				tc.setup(w)
				app := &pod{w: w, ip: netip.MustParseAddr("10.0.0.2")}
				reached := app.echo(80)
				defer func() { _ = app.listeners[0].Close() }()
				c := a.connect("10.0.0.2:80")
				_, _ = c.Write([]byte("secret"))
				_ = c.CloseWrite()
				if got, _ := io.ReadAll(c); len(got) > 0 {
					t.Errorf("heard %q", got)
				}
				_ = c.Close()
				settle()
				select {
				case <-reached:
					t.Error("the application was reached in plaintext")
				default:
				}
				if got := w.log.with("connection complete", "\terror\t", tc.log); len(got) != 1 {
					t.Errorf("log: %q", w.log.with("access"))
				}
				if got := w.total("istio_tcp_connections_failed_total", "response_flags", tc.flag); got != 1 {
					t.Errorf("failed with %s: %v", tc.flag, got)
				}
			})
		})
	}
}

// policy denies, or allows, a principal.
func policy(name string, action mesh.PolicyAction, scope mesh.PolicyScope, principals ...string) *mesh.Policy {
	m := mesh.Match{}
	for _, p := range principals {
		if p == "none" {
			m.NotPrincipals = append(m.NotPrincipals, mesh.StringMatch{Kind: mesh.Presence})
			continue
		}
		m.Principals = append(m.Principals, mesh.StringMatch{Kind: mesh.Exact, Value: p})
	}
	return &mesh.Policy{
		Resource: "shop/" + name, Namespace: "shop", Name: name, Scope: scope, Action: action, Rules: []mesh.Rule{{mesh.Clause{m}}},
	}
}

// TestPolicy: refusals on both ports, with the policy's name, and nobody dials the application for them.
func TestPolicy(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		a, b := w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2")
		reached := b.echo(80)
		w.apply(mesh.Batch{Policies: []*mesh.Policy{
			policy("not-a", mesh.Deny, mesh.PolicyNamespace, "cluster.local/ns/shop/sa/a"),
			policy("strict", mesh.Deny, mesh.PolicyNamespace, "none"),
		}})
		closed(t, a.connect("10.0.0.2:80"))
		closed(t, b.plain("192.0.2.1:1000", 80))
		settle()
		for _, want := range [][]string{
			{"connection complete", "\terror\t", `direction="inbound"`, `error="connection closed due to policy rejection: explicitly denied by: shop/not-a"`},
			{"connection complete", "\terror\t", `direction="inbound"`, `error="connection closed due to policy rejection: explicitly denied by: shop/strict"`},
			{"connection complete", "\terror\t", `direction="outbound"`, `error="http status: 401"`},
		} {
			if got := w.log.with(want...); len(got) != 1 {
				t.Errorf("no line with %q", want)
			}
		}
		if got := w.total("istio_tcp_connections_failed_total", "response_flags", "DENY"); got != 2 {
			t.Errorf("DENY: %v", got)
		}
		if len(reached) != 0 {
			t.Error("the application was dialled for a refused connection")
		}
		opened := w.total("istio_tcp_connections_opened_total", "request_protocol", "tcp")
		if ended := w.total("istio_tcp_connections_closed_total", "request_protocol", "tcp"); ended != opened || opened != 3 {
			t.Errorf("opened %v, closed %v, want 3 each", opened, ended)
		}
	})
}

// TestPolicyReachesOpenConnections: by a policy of the namespace, and by the workload's own list.
func TestPolicyReachesOpenConnections(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(w *world, b *pod)
	}{
		{"namespace policy", func(w *world, _ *pod) {
			w.apply(mesh.Batch{Policies: []*mesh.Policy{policy("late", mesh.Deny, mesh.PolicyNamespace, "cluster.local/ns/shop/sa/a")}})
		}},
		{"workload's list", func(w *world, b *pod) {
			changed := *b.work
			changed.Policies = []string{"shop/named"}
			w.apply(mesh.Batch{Workloads: []*mesh.Workload{&changed}})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			topologies(t, func(t *testing.T, w *world) {
				a, b, other := w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2"), w.pod("c", "10.0.0.3")
				b.echo(80)
				w.apply(mesh.Batch{Policies: []*mesh.Policy{policy("named", mesh.Deny, mesh.PolicySelector, "cluster.local/ns/shop/sa/a")}})
				c, stays := a.connect("10.0.0.2:80"), other.connect("10.0.0.2:80")
				say(t, c, "before")
				say(t, stays, "before")
				tc.change(w, b)
				if got, err := io.ReadAll(c); len(got) > 0 {
					t.Errorf("heard %q, %v", got, err)
				}
				say(t, stays, "after")
				settle()
				if got := w.log.with("connection complete", "\terror\t", `direction="inbound"`, `error="connection closed due to policy change"`); len(got) != 1 {
					t.Errorf("log: %q", w.log.with("connection complete"))
				}
				if got := w.total("istio_tcp_connections_closed_total", "response_flags", "DENY"); got != 1 {
					t.Errorf("closed with DENY: %v", got)
				}
				_, _ = c.Close(), stays.Close()
			})
		})
	}
}

// TestDrainLosesNothing: what was accepted before the drain arrives whole, both ways, while new tunnels are refused.
func TestDrainLosesNothing(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		a, b := w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2")
		b.echo(80)
		c := a.connect("10.0.0.2:80")
		say(t, c, "before")
		b.Drain.Start()
		settle()
		text := strings.Repeat("during the drain ", 20_000)
		w.group.Go("writer", func(context.Context) error {
			_, err := c.Write([]byte(text))
			return errors.Join(err, c.CloseWrite())
		})
		if got, err := io.ReadAll(c); err != nil || string(got) != text {
			t.Fatalf("%d of %d bytes, %v", len(got), len(text), err)
		}
		settle()
		if got := w.log.with("connection complete", "error="); len(got) != 0 {
			t.Errorf("the drain was felt: %q", got)
		}
		_ = c.Close()
	})
}

// TestDrainCut: after the deadline what is left ends, and says why.
func TestDrainCut(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		a, b := w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2")
		b.echo(80)
		c := a.connect("10.0.0.2:80")
		say(t, c, "before")
		b.Drain.Cut()
		closed(t, c)
		settle()
		if got := w.log.with("connection complete", `direction="inbound"`, `error="connection closed due to connection drain"`); len(got) != 1 {
			t.Errorf("log: %q", w.log.with("connection complete"))
		}
		if got := w.total("istio_tcp_connections_failed_total", "reporter", "destination"); got != 0 {
			t.Errorf("a drained connection counts as failed: %v", got)
		}
	})
}

// TestPeerGivesUp: a client that goes while its application is dialled leaves nothing behind.
func TestPeerGivesUp(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "10.0.0.2")
		w.net.Lose(netip.MustParseAddrPort("10.0.0.2:7"))
		c, err := w.stranger("10.0.0.1", b, w.ca, webID)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := c.Connect(ctx, "10.0.0.2:7", nil); err == nil {
			t.Fatal("connected")
		}
		settle()
		if n := w.conns.Count(); n != 0 {
			t.Errorf("%d connections in the table after the client left", n)
		}
		_ = c.Close()
		c.Wait()
	})
}

// TestManyStreams: concurrent connections share few tunnels and do not mix.
func TestManyStreams(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		a, b := w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2")
		b.listen(80, func(c *memnet.Conn) {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		})
		done := make(chan struct{})
		const n = 150
		for range n {
			w.group.Go("client", func(context.Context) error {
				defer func() { done <- struct{}{} }()
				c := a.connect("10.0.0.2:80")
				say(t, c, strings.Repeat("x", 2000))
				return c.Close()
			})
		}
		for range n {
			<-done
		}
		if got := w.net.Dials(netip.MustParseAddrPort("10.0.0.2:15008")); got > 2 {
			t.Errorf("%d tunnels for %d connections, want at most 2", got, n)
		}
	})
}
