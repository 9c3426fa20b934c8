package testmesh_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/testkit/fakeca"
	"github.com/marrowmesh/marrow/internal/testkit/memnet"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
)

// stage is what a scenario plays on: pods a and b, and what was seen at both ends.
type stage struct {
	*world
	a, b *pod

	mu   sync.Mutex
	seen []string
}

func (s *stage) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, fmt.Sprintf(format, args...))
}

// end notes how a connection ends.
func (s *stage) end(c *memnet.Conn) {
	got, err := io.ReadAll(c)
	s.note("client hears %d bytes, %v", len(got), err)
	_ = c.Close()
}

// server is an application at b that does one thing with each connection, whose end it notes.
func (s *stage) server(port uint16, do func(c *memnet.Conn)) <-chan struct{} {
	done := make(chan struct{}, 64)
	s.b.listen(port, func(c *memnet.Conn) {
		s.note("caller %s", c.Remote().Addr())
		do(c)
		_ = c.Close()
		done <- struct{}{}
	})
	return done
}

// certified is a certificate source with one answer.
type certified struct {
	cert *mtls.Certificate
	err  error
}

func (c certified) Certificate(context.Context) (*mtls.Certificate, error) { return c.cert, c.err }

// give makes the drivers get another certificate for a pod than its own.
func (s *stage) give(to *pod, ca *fakeca.CA, id string) {
	cert, err := ca.Issue(identity.MustParse(id))
	if err != nil {
		s.t.Fatal(err)
	}
	s.certs[to.work.ID] = certified{cert: cert}
}

// age lets a certificate expire that is issued now; those asked for afterwards are fresh.
func (s *stage) age(p *pod) {
	if _, err := s.ca.Issue(p.work.ID); err != nil {
		s.t.Fatal(err)
	}
	time.Sleep(25 * time.Hour)
}

type scenario struct {
	name string
	play func(s *stage)
	// loose compares only that there is an error; else its words as well.
	loose bool
	// races: the tunnel's end and the answer in it are told at once, and either may be heard.
	races bool
	// far: even pods of one node meet through a tunnel.
	far bool
	// refused: the application is not reached.
	refused bool
}

const fromA = "cluster.local/ns/shop/sa/a"

func scenarios() []scenario {
	open := func(s *stage) *memnet.Conn {
		s.b.echo(80)
		c := s.a.connect("10.0.0.2:80")
		say(s.t, c, "before")
		return c
	}
	refusal := func(s *stage) {
		s.server(80, func(*memnet.Conn) {})
		s.end(s.a.connect("10.0.0.2:80"))
	}
	other := func(s *stage) *fakeca.CA {
		ca, err := fakeca.New()
		if err != nil {
			s.t.Fatal(err)
		}
		return ca
	}
	return []scenario{
		{name: "allowed", play: func(s *stage) {
			c := open(s)
			say(s.t, c, "more")
			_ = c.CloseWrite()
			s.end(c)
		}},
		{name: "by a service", play: func(s *stage) {
			s.apply(mesh.Batch{Services: []*mesh.Service{service("web", "10.96.0.1", 80, 8080)}})
			web := *s.b.work
			member("web")(&web)
			s.apply(mesh.Batch{Workloads: []*mesh.Workload{&web}})
			s.b.echo(8080)
			c := s.a.connect("10.96.0.1:80")
			say(s.t, c, "hello")
			_ = c.CloseWrite()
			s.end(c)
		}},
		{name: "much both ways", play: func(s *stage) {
			done := s.server(80, func(c *memnet.Conn) {
				asked, err := io.ReadAll(c)
				s.note("server hears %d bytes, %v", len(asked), err)
				_, _ = c.Write(bytes.Repeat([]byte("y"), 700_000))
			})
			c := s.a.connect("10.0.0.2:80")
			_, _ = c.Write(bytes.Repeat([]byte("x"), 500_000))
			_ = c.CloseWrite()
			s.end(c)
			<-done
		}},
		{name: "nothing is said", play: func(s *stage) {
			s.b.echo(80)
			c := s.a.connect("10.0.0.2:80")
			_ = c.CloseWrite()
			s.end(c)
		}},
		{name: "denied", refused: true, play: func(s *stage) {
			s.apply(mesh.Batch{Policies: []*mesh.Policy{policy("not-a", mesh.Deny, mesh.PolicyNamespace, fromA)}})
			refusal(s)
		}},
		{name: "allowed to somebody else", refused: true, play: func(s *stage) {
			s.apply(mesh.Batch{Policies: []*mesh.Policy{policy("only-c", mesh.Allow, mesh.PolicyNamespace, "cluster.local/ns/shop/sa/c")}})
			refusal(s)
		}},
		{name: "allowed to the client", play: func(s *stage) {
			s.apply(mesh.Batch{Policies: []*mesh.Policy{policy("only-a", mesh.Allow, mesh.PolicyNamespace, fromA)}})
			_ = open(s).Close()
		}},
		{name: "only mutual TLS is allowed", play: func(s *stage) {
			s.apply(mesh.Batch{Policies: []*mesh.Policy{policy("strict", mesh.Deny, mesh.PolicyNamespace, "none")}})
			_ = open(s).Close()
		}},
		{name: "policy changes", play: func(s *stage) {
			c := open(s)
			s.apply(mesh.Batch{Policies: []*mesh.Policy{policy("late", mesh.Deny, mesh.PolicyNamespace, fromA)}})
			s.end(c)
		}},
		{name: "the workload's list of policies changes", play: func(s *stage) {
			s.apply(mesh.Batch{Policies: []*mesh.Policy{policy("named", mesh.Deny, mesh.PolicySelector, fromA)}})
			c := open(s)
			changed := *s.b.work
			changed.Policies = []string{"shop/named"}
			s.apply(mesh.Batch{Workloads: []*mesh.Workload{&changed}})
			s.end(c)
		}},
		{name: "the source's pod drains", play: func(s *stage) {
			c := open(s)
			s.a.Drain.Start()
			settle()
			say(s.t, c, "during")
			_ = c.Close()
		}},
		{name: "the destination's pod drains", play: func(s *stage) {
			c := open(s)
			s.b.Drain.Start()
			settle()
			say(s.t, c, "during")
			_ = c.Close()
		}},
		{name: "the source's pod is cut", play: func(s *stage) {
			done := s.server(80, func(c *memnet.Conn) {
				asked, _ := io.ReadAll(c)
				s.note("server hears %d bytes", len(asked))
			})
			c := s.a.connect("10.0.0.2:80")
			_, _ = c.Write([]byte("last words"))
			settle()
			s.a.Drain.Cut()
			s.end(c)
			<-done
		}},
		{name: "the destination's pod is cut", play: func(s *stage) {
			c := open(s)
			s.b.Drain.Cut()
			s.end(c)
		}},
		{name: "the application refuses", refused: true, play: func(s *stage) { s.end(s.a.connect("10.0.0.2:81")) }},
		{name: "the application does not answer", refused: true, play: func(s *stage) {
			s.net.Lose(netip.MustParseAddrPort("10.0.0.2:7"))
			start := time.Now()
			s.end(s.a.connect("10.0.0.2:7"))
			s.note("after %v", time.Since(start))
		}},
		{name: "the destination's pod is cut while its application is dialled", refused: true, play: func(s *stage) {
			s.net.Lose(netip.MustParseAddrPort("10.0.0.2:7"))
			c := s.a.connect("10.0.0.2:7")
			settle()
			s.b.Drain.Cut()
			s.end(c)
		}, loose: true, races: true},
		{name: "the source's pod is cut while the application is dialled", refused: true, play: func(s *stage) {
			s.net.Lose(netip.MustParseAddrPort("10.0.0.2:7"))
			c := s.a.connect("10.0.0.2:7")
			settle()
			s.a.Drain.Cut()
			s.end(c)
		}, loose: true},
		{name: "the proxy's own port is asked for", refused: true, play: func(s *stage) { s.end(s.a.connect("10.0.0.2:15006")) }},
		{name: "the client resets", play: func(s *stage) {
			done := s.server(80, func(c *memnet.Conn) {
				_, _ = c.Write([]byte("unread"))
				_, err := io.ReadAll(c)
				s.note("server ends, error %v", err != nil)
			})
			c := s.a.connect("10.0.0.2:80")
			settle()
			_ = c.Close()
			<-done
		}},
		{name: "the server resets", play: func(s *stage) {
			s.server(80, func(c *memnet.Conn) { settleHere(c) })
			c := s.a.connect("10.0.0.2:80")
			_, _ = c.Write([]byte("unread"))
			s.end(c)
		}},
		{name: "the server ends first", play: func(s *stage) {
			done := s.server(80, func(c *memnet.Conn) {
				_, _ = c.Write([]byte("greeting"))
				_ = c.CloseWrite()
				asked, err := io.ReadAll(c)
				s.note("server hears %d bytes, %v", len(asked), err)
			})
			c := s.a.connect("10.0.0.2:80")
			got, err := io.ReadAll(c)
			s.note("client hears %q, %v", got, err)
			_, _ = c.Write([]byte("and more"))
			_ = c.CloseWrite()
			<-done
			_ = c.Close()
		}},
		{name: "a pod that the node does not know", play: func(s *stage) {
			ghost := s.bare(workload("ghost", "10.0.0.66"))
			ghost.echo(80)
			c := s.a.connect("10.0.0.66:80")
			say(s.t, c, "plain")
			_ = c.Close()
		}, far: true},
		{name: "a pod that another one is taken for", refused: true, far: true, play: func(s *stage) {
			impostor := s.bare(workload("impostor", "10.0.0.5"))
			impostor.Name, impostor.ServiceAccount = "impostor", "impostor"
			s.apply(mesh.Batch{Workloads: []*mesh.Workload{workload("impostor", "10.9.9.9"), workload("victim", "10.0.0.5")}})
			s.end(s.a.connect("10.0.0.5:80"))
		}},
		{name: "a client with an address that is not its pod's", far: true, play: func(s *stage) {
			s.b.echo(80)
			s.a.ip = netip.MustParseAddr("10.0.7.7")
			c := s.a.connect("10.0.0.2:80")
			say(s.t, c, "who am I")
			_ = c.Close()
		}},
		{name: "the service that the client named", play: func(s *stage) {
			both := *s.b.work
			member("first")(&both)
			named := workload("b", "10.0.0.2", member("second"))
			both.Services = append(both.Services, named.Services...)
			s.apply(mesh.Batch{
				Workloads: []*mesh.Workload{&both},
				Services:  []*mesh.Service{service("first", "10.96.0.1", 80, 8080), service("second", "10.96.0.2", 80, 8080)},
			})
			s.b.echo(8080)
			c := s.a.connect("10.96.0.2:80")
			say(s.t, c, "hello")
			_ = c.Close()
			settle()
			s.note("destinations of second: %d lines", len(s.log.with("connection complete", `dst.service="second.shop.svc"`)))
		}},
		{name: "a waypoint answers for the service", far: true, play: func(s *stage) {
			web := service("web", "10.96.0.1", 80, 8080)
			web.Waypoint = &mesh.GatewayAddress{Host: mesh.NamespacedHostname{Namespace: "shop", Hostname: "wp.shop.svc"}, Port: 15008}
			wp := s.pod("wp", "10.0.1.1", member("wp"))
			s.apply(mesh.Batch{Services: []*mesh.Service{web, service("wp", "10.96.0.9", 15008, 15008)}})
			wp.echo(80)
			c := s.a.connect("10.96.0.1:80")
			say(s.t, c, "by the waypoint")
			_ = c.Close()
		}},
		{name: "the destination has another identity", refused: true, loose: true, play: func(s *stage) {
			s.give(s.b, s.ca, "spiffe://cluster.local/ns/shop/sa/other")
			refusal(s)
		}},
		{name: "the destination is of another root", refused: true, loose: true, play: func(s *stage) {
			s.give(s.b, other(s), s.b.work.ID.String())
			refusal(s)
		}},
		{name: "the destination has expired", refused: true, loose: true, play: func(s *stage) { s.age(s.b); refusal(s) }},
		{name: "the client has expired", refused: true, loose: true, play: func(s *stage) { s.age(s.a); refusal(s) }},
		{name: "the client is of another trust domain", refused: true, loose: true, play: func(s *stage) {
			s.give(s.a, s.ca, "spiffe://evil.example/ns/shop/sa/a")
			refusal(s)
		}},
		{name: "the client has no certificate", refused: true, play: func(s *stage) {
			s.certs[s.a.work.ID] = certified{err: errors.New("the authority is away")}
			refusal(s)
		}},
		{name: "the destination has no certificate", refused: true, loose: true, play: func(s *stage) {
			s.certs[s.b.work.ID] = certified{err: errors.New("the authority is away")}
			refusal(s)
		}},
		{name: "the service names another identity too", play: func(s *stage) {
			web := service("web", "10.96.0.1", 80, 8080)
			web.SANs = []identity.ID{identity.MustParse("spiffe://cluster.local/ns/shop/sa/other")}
			moved := *s.b.work
			member("web")(&moved)
			s.apply(mesh.Batch{Services: []*mesh.Service{web}, Workloads: []*mesh.Workload{&moved}})
			s.give(s.b, s.ca, "spiffe://cluster.local/ns/shop/sa/other")
			s.b.echo(8080)
			c := s.a.connect("10.96.0.1:80")
			say(s.t, c, "hello")
			_ = c.Close()
		}},
	}
}

// settleHere waits until the peer's bytes have arrived, without reading them.
func settleHere(*memnet.Conn) { time.Sleep(time.Second) }

// account is what is left of a scenario, without what may differ: times and the client's port towards the destination.
type account struct {
	Seen, Log, Metrics []string
	Crossed            int64
}

func perform(t *testing.T, sc scenario, oneNode bool) (out account) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.New(0))
		w.oneNode = oneNode
		s := &stage{world: w, a: w.pod("a", "10.0.0.1"), b: w.pod("b", "10.0.0.2")}
		sc.play(s)
		settle()
		out.Metrics = w.metrics()
		if sc.races {
			for i, m := range out.Metrics {
				out.Metrics[i] = strings.Replace(m, "response_flags=H2_HANDSHAKE_FAILURE", "response_flags=CONNECT", 1)
			}
		}
		w.stop()
		out.Seen, out.Crossed = s.seen, w.crossed.Load()
		slices.Sort(out.Seen)
		out.Log = w.access(sc.loose)
	})
	return out
}

var (
	duration   = regexp.MustCompile(`duration="[^"]*"`)
	clientPort = regexp.MustCompile(`(src\.addr=[0-9.]+):\d+`)
	errorText  = regexp.MustCompile(`error=".*"`)
)

// access is the access log in comparable form, sorted: the two ends write independently.
func (w *world) access(loose bool) []string {
	var out []string
	for _, line := range w.log.with("access") {
		_, line, _ = strings.Cut(line, "\t")
		line = clientPort.ReplaceAllString(duration.ReplaceAllString(line, "duration=*"), "$1:*")
		if loose {
			line = errorText.ReplaceAllString(line, "error=*")
		}
		out = append(out, line)
	}
	slices.Sort(out)
	if loose { // a handshake that failed may be tried once more
		out = slices.Compact(out)
	}
	return out
}

// metrics are all counters of connections, sorted. Open sockets are those that were accepted: tunnels are shared.
func (w *world) metrics() []string {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		if f.GetName() == "istio_tcp_sockets_open" {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			out = append(out, fmt.Sprintf("%s{%s} %v", f.GetName(), strings.Join(labels, ","), m.GetCounter().GetValue()))
		}
	}
	slices.Sort(out)
	return out
}

// TestTopologies plays every scenario between two nodes and on one, and compares what both applications saw, the access
// logs of both sides and all counters.
func TestTopologies(t *testing.T) {
	for _, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			tunnel, splice := perform(t, sc, false), perform(t, sc, true)
			if want := min(1, splice.Crossed); sc.far == (want == 1) || tunnel.Crossed != 0 {
				t.Errorf("connections that stayed on the node: %d with one node, %d with two", splice.Crossed, tunnel.Crossed)
			}
			reached := slices.ContainsFunc(splice.Seen, func(s string) bool { return strings.HasPrefix(s, "caller") })
			if sc.refused && reached {
				t.Error("the application was reached")
			}
			tunnel.Crossed, splice.Crossed = 0, 0
			if diff := cmp.Diff(tunnel, splice); diff != "" {
				t.Errorf("two nodes -, one node +:\n%s", diff)
			}
			if len(tunnel.Log) == 0 {
				t.Error("nothing was logged")
			}
		})
	}
}

// TestTableOfOneNode: both directions are in the table, as through a tunnel, before the bytes flow.
func TestTableOfOneNode(t *testing.T) {
	topologies(t, func(t *testing.T, w *world) {
		a, b := w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2")
		b.echo(80)
		c := a.connect("10.0.0.2:80")
		say(t, c, "x")
		out, in := w.conns.List(a.UID, conns.Outbound), w.conns.List(b.UID, conns.Inbound)
		if len(out) != 1 || len(in) != 1 || w.conns.Count() != 2 {
			t.Fatalf("outbound %+v, inbound %+v", out, in)
		}
		if out[0].Protocol != "HBONE" || out[0].Actual.String() != "10.0.0.2:15008" || out[0].Original != "10.0.0.2:80" {
			t.Errorf("outbound %+v", out[0])
		}
		if in[0].Protocol != "HBONE" || in[0].Actual.String() != "10.0.0.2:80" || in[0].Src.Addr() != a.ip || in[0].Facts.Peer != a.work.ID || in[0].Facts.Dst != in[0].Actual {
			t.Errorf("inbound %+v", in[0])
		}
		_ = c.Close()
	})
}
