package testmesh_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/testkit/fakeca"
	"github.com/marrowmesh/marrow/internal/testkit/memnet"
	"github.com/marrowmesh/marrow/ztunnel/internal/capture"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/flow"
	"github.com/marrowmesh/marrow/ztunnel/internal/inbound"
	"github.com/marrowmesh/marrow/ztunnel/internal/outbound"
	"github.com/marrowmesh/marrow/ztunnel/internal/view"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a mesh with both drivers in one process.
type world struct {
	t     *testing.T
	net   *memnet.Net
	ca    *fakeca.CA
	log   *lines
	views *view.Store
	conns *conns.Table
	out   *outbound.Driver
	in    *inbound.Driver
	reg   *prometheus.Registry
	group *run.Group
	drain *run.Drain
	pods  []*pod
	// certs replaces the authority's for some identities.
	certs map[identity.ID]mtls.Source
	// oneNode lets connections between pods stay on the node.
	oneNode bool
	crossed atomic.Int64 // connections that did
}

// source is where both drivers get certificates from.
func (w *world) source(id identity.ID) mtls.Source {
	if s := w.certs[id]; s != nil {
		return s
	}
	return w.ca.Source(id)
}

// lines is a log to look into.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// with returns the lines that contain all words.
func (l *lines) with(words ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
next:
	for line := range strings.Lines(l.buf.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		out = append(out, strings.TrimSpace(line))
	}
	return out
}

// bubble runs a test in a synctest bubble with a world that is taken down at its end.
func bubble(t *testing.T, opts func(*memnet.Net) *memnet.Net, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(0)
		if opts != nil {
			n = opts(n)
		}
		w := newWorld(t, n)
		defer w.stop()
		test(t, w)
	})
}

// topologies runs a test with all pods behind tunnels, and once more with all pods on one node.
func topologies(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	t.Run("two nodes", func(t *testing.T) { bubble(t, nil, test) })
	t.Run("one node", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, w *world) {
			w.oneNode = true
			test(t, w)
		})
	})
}

// near is the pods manager and the capture of one node.
func (w *world) near(dst *mesh.Workload, ip netip.Addr) *capture.Pod {
	if !w.oneNode {
		return nil
	}
	for _, p := range w.pods {
		if p.Pod != nil && p.ip == ip && p.Namespace == dst.Namespace && p.Name == dst.Name && p.ServiceAccount == dst.ID.ServiceAccount() && !p.Drain.Draining() {
			w.crossed.Add(1)
			return p.Pod
		}
	}
	return nil
}

func newWorld(t *testing.T, n *memnet.Net) *world {
	t.Helper()
	ca, err := fakeca.New()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{certs: map[identity.ID]mtls.Source{}, t: t, net: n, ca: ca, log: &lines{}, reg: prometheus.NewRegistry(), group: run.NewGroup(context.Background()), drain: run.NewDrain()}
	log, _, err := obs.NewLogger(w.log, "plain", "debug")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := flow.NewMetrics(w.reg)
	if err != nil {
		t.Fatal(err)
	}
	record := flow.NewRecorder(metrics, log)
	w.views = view.New(log)
	w.conns = conns.NewTable(w.views, log, false)
	certs := func(id identity.ID) mtls.Source { return w.source(id) }
	// Pings would keep time moving for ever.
	quiet := hbone.Config{PingInterval: -1}
	w.in = inbound.New(inbound.Config{Views: w.views, Conns: w.conns, Record: record, Log: log, Certs: certs, HBONE: quiet})
	w.out = outbound.New(outbound.Config{
		Near: w.near, Arrive: w.in.Arrive, Views: w.views, Conns: w.conns, Record: record, Log: log, Certs: certs, HBONE: quiet,
		Random: func(uint64) uint64 { return 0 },
		Lookup: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") },
	})
	w.group.Go("judge", w.conns.Run)
	return w
}

func (w *world) stop() {
	w.drain.Cut()
	w.out.Close()
	for _, p := range w.pods {
		for _, l := range p.listeners {
			_ = l.Close()
		}
	}
	w.group.Stop()
	if err := w.group.Wait(); err != nil {
		w.t.Error(err)
	}
	if n := w.conns.Count(); n != 0 {
		w.t.Errorf("%d connections are left in the table", n)
	}
}

// apply changes the mesh's state.
func (w *world) apply(b mesh.Batch) {
	w.t.Helper()
	if rejects := w.views.Apply(b); len(rejects) > 0 {
		w.t.Fatalf("rejects %v", rejects)
	}
}

// pod is one pod, its proxy included.
type pod struct {
	*capture.Pod
	w         *world
	ip        netip.Addr
	work      *mesh.Workload
	listeners []*memnet.Listener
}

// workload describes a pod of the mesh.
func workload(name, ip string, edit ...func(*mesh.Workload)) *mesh.Workload {
	out := &mesh.Workload{
		UID: "c//Pod/shop/" + name, Name: name, Namespace: "shop", Capacity: 1, Protocol: mesh.HBONE,
		Addresses: []netip.Addr{netip.MustParseAddr(ip)},
		ID:        identity.MustParse("spiffe://cluster.local/ns/shop/sa/" + name),
		Runtime:   mesh.Runtime{ClusterID: "Kubernetes", WorkloadName: name + "-app", WorkloadType: "deployment", CanonicalName: name, CanonicalRevision: "v1"},
	}
	for _, e := range edit {
		e(out)
	}
	return out
}

// pod adds a pod to the mesh's state and starts its proxy's HBONE listener.
func (w *world) pod(name, ip string, edit ...func(*mesh.Workload)) *pod {
	w.t.Helper()
	work := workload(name, ip, edit...)
	w.apply(mesh.Batch{Workloads: []*mesh.Workload{work}})
	return w.bare(work)
}

// bare starts a pod that the mesh's state need not know.
func (w *world) bare(work *mesh.Workload) *pod {
	w.t.Helper()
	p := &pod{w: w, ip: work.Addresses[0], work: work}
	p.Pod = &capture.Pod{
		UID: work.UID, Name: work.Name, Namespace: work.Namespace, ServiceAccount: work.ID.ServiceAccount(), Drain: w.drain.Child(),
		Dial: func(ctx context.Context, dst netip.AddrPort, source netip.Addr) (capture.Conn, error) {
			if !source.IsValid() {
				source = p.ip
			}
			c, err := w.net.Dial(ctx, source, dst)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
	}
	w.pods = append(w.pods, p)
	p.listen(capture.PortHBONE, func(c *memnet.Conn) {
		p.handle(w.in.HandleHBONE, &capture.Accepted{Conn: c, Peer: c.Remote(), Local: c.Local(), Original: c.Local()})
	})
	return p
}

// handle runs a driver as capture does: with a context that the drain's end cuts.
func (p *pod) handle(h capture.Handler, a *capture.Accepted) {
	ctx, cancel := p.Drain.Context(context.Background())
	defer cancel()
	h(ctx, p.Pod, a)
}

// listen serves connections to one of the pod's ports.
func (p *pod) listen(port uint16, serve func(c *memnet.Conn)) {
	p.w.t.Helper()
	l, err := p.w.net.Listen(netip.AddrPortFrom(p.ip, port))
	if err != nil {
		p.w.t.Fatal(err)
	}
	p.listeners = append(p.listeners, l)
	p.w.group.Go("listener", func(context.Context) error {
		for {
			c, err := l.AcceptConn()
			if err != nil {
				return nil //nolint:nilerr // the test has closed the listener
			}
			p.w.group.Go("connection", func(context.Context) error {
				serve(c)
				return nil
			})
		}
	})
}

// echo is an application that answers what it hears, and tells who called.
func (p *pod) echo(port uint16) <-chan netip.AddrPort {
	callers := make(chan netip.AddrPort, 64)
	p.listen(port, func(c *memnet.Conn) {
		callers <- c.Remote()
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
		_ = c.Close()
	})
	return callers
}

// connect is the pod's application opening a connection, which is captured.
func (p *pod) connect(dst string) *memnet.Conn {
	to := netip.MustParseAddrPort(dst)
	app, proxy := p.w.net.Pair(netip.AddrPortFrom(p.ip, 33333), to)
	p.w.group.Go("captured", func(context.Context) error {
		p.handle(p.w.out.Handle, &capture.Accepted{
			Conn: proxy, Peer: app.Local(), Local: netip.AddrPortFrom(p.ip, capture.PortOutbound), Original: to,
		})
		return nil
	})
	return app
}

// plain is somebody outside the mesh opening a connection to one of the pod's ports.
func (p *pod) plain(from string, port uint16) *memnet.Conn {
	to := netip.AddrPortFrom(p.ip, port)
	app, proxy := p.w.net.Pair(netip.MustParseAddrPort(from), to)
	p.w.group.Go("plain", func(context.Context) error {
		p.handle(p.w.in.HandlePlain, &capture.Accepted{
			Conn: proxy, Peer: app.Local(), Local: netip.AddrPortFrom(p.ip, capture.PortPlain), Original: to,
		})
		return nil
	})
	return app
}

// say sends a line and reads as much back.
func say(t *testing.T, c *memnet.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("said %q, heard %q, %v", text, got, err)
	}
}

// closed checks that the connection ends without a byte.
func closed(t *testing.T, c *memnet.Conn) {
	t.Helper()
	if got, _ := io.ReadAll(c); len(got) > 0 {
		t.Fatalf("heard %q, want nothing", got)
	}
	_ = c.Close()
}

// settle waits until everything that can happen without time passing has happened.
func settle() { synctest.Wait() }

// total sums a counter over all its series with the given label.
func (w *world) total(name, label, value string) float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label && l.GetValue() == value {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}
