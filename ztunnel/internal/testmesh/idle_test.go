package testmesh_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/burst"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/testkit/fakeca"
	"github.com/marrowmesh/marrow/ztunnel/internal/capture"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/flow"
	"github.com/marrowmesh/marrow/ztunnel/internal/inbound"
	"github.com/marrowmesh/marrow/ztunnel/internal/outbound"
	"github.com/marrowmesh/marrow/ztunnel/internal/view"
)

// quietMesh is two pods on loopback, with real sockets and the drivers of both in this process.
type quietMesh struct {
	t       *testing.T
	group   *run.Group
	drain   *run.Drain
	out     *outbound.Driver
	in      *inbound.Driver
	conns   *conns.Table
	lot     *burst.Lot
	a, b    *capture.Pod
	life    context.Context
	release context.CancelFunc
	outside string // where a's connections are captured
	mu      sync.Mutex
	served  []*net.TCPConn // the application's side at b
	all     []net.Listener
}

const quietClient, quietServer = "127.0.11.1", "127.0.11.2"

func newQuietMesh(t *testing.T, oneNode bool) *quietMesh {
	t.Helper()
	ca, err := fakeca.New()
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := flow.NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	log := obs.Discard()
	record, views := flow.NewRecorder(metrics, log), view.New(log)
	m := &quietMesh{t: t, group: run.NewGroup(context.Background()), drain: run.NewDrain(), conns: conns.NewTable(views, log, false)}
	certs := func(id identity.ID) mtls.Source { return ca.Source(id) }
	m.lot = burst.NewLot(func(fn func()) {
		m.group.Go("woken", func(context.Context) error { fn(); return nil })
	})
	m.in = inbound.New(inbound.Config{Views: views, Conns: m.conns, Record: record, Log: log, Certs: certs, Lot: m.lot})
	m.out = outbound.New(outbound.Config{
		Views: views, Conns: m.conns, Record: record, Log: log, Certs: certs, Arrive: m.in.Arrive, Lot: m.lot,
		Near: func(w *mesh.Workload, _ netip.Addr) *capture.Pod {
			if oneNode && w.Name == "b" {
				return m.b
			}
			return nil
		},
	})
	a, b := workload("a", quietClient), workload("b", quietServer)
	views.Apply(mesh.Batch{Workloads: []*mesh.Workload{a, b}})
	m.a, m.b = m.pod(a), m.pod(b)
	m.life, m.release = m.drain.Context(context.Background())
	m.group.Go("judge", m.conns.Run)
	m.outside = m.listen(quietClient+":0", func(c *net.TCPConn) {
		m.handle(m.a, m.out.Handle, c, netip.MustParseAddrPort(quietServer+":8080"))
	})
	m.listen(quietServer+":15008", func(c *net.TCPConn) {
		m.handle(m.b, m.in.HandleHBONE, c, netip.MustParseAddrPort(c.LocalAddr().String()))
	})
	m.listen(quietServer+":8080", func(c *net.TCPConn) {
		m.mu.Lock()
		m.served = append(m.served, c)
		m.mu.Unlock()
	})
	return m
}

func (m *quietMesh) pod(w *mesh.Workload) *capture.Pod {
	own := w.Addresses[0]
	return &capture.Pod{
		UID: w.UID, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ID.ServiceAccount(), Drain: m.drain.Child(),
		Dial: func(ctx context.Context, dst netip.AddrPort, source netip.Addr) (capture.Conn, error) {
			if !source.IsValid() {
				source = own
			}
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
			c, err := d.DialContext(ctx, "tcp", dst.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
	}
}

// handle is what capture does with an accepted connection.
func (m *quietMesh) handle(pod *capture.Pod, h capture.Handler, c *net.TCPConn, original netip.AddrPort) {
	ctx := m.life // as in capture, all connections of a pod share one
	m.group.Go("connection", func(context.Context) error {
		h(ctx, pod, &capture.Accepted{
			Conn: c, Peer: netip.MustParseAddrPort(c.RemoteAddr().String()), Local: netip.MustParseAddrPort(c.LocalAddr().String()), Original: original,
		})
		return nil
	})
}

func (m *quietMesh) listen(addr string, serve func(c *net.TCPConn)) string {
	m.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		m.t.Fatal(err)
	}
	m.all = append(m.all, l)
	m.group.Go("listener", func(context.Context) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return nil //nolint:nilerr // the test has closed the listener
			}
			serve(c.(*net.TCPConn))
		}
	})
	return l.Addr().String()
}

func (m *quietMesh) stop() {
	for _, l := range m.all {
		_ = l.Close()
	}
	m.drain.Cut()
	m.out.Close()
	m.release()
	m.lot.Close()
	m.group.Stop()
	if err := m.group.Wait(); err != nil {
		m.t.Error(err)
	}
	for _, c := range m.served {
		_ = c.Close()
	}
}

// open makes connections of a's application, and one word goes each way over each.
func (m *quietMesh) open(n int, addr string) []net.Conn {
	m.t.Helper()
	word := make([]byte, 4)
	out := make([]net.Conn, n)
	for i := range out {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			m.t.Fatal(err)
		}
		out[i] = c
		_, _ = io.WriteString(c, "ping")
		var s *net.TCPConn
		for end := time.Now().Add(10 * time.Second); s == nil; {
			m.mu.Lock()
			if k := len(m.served); k > 0 && m.served[k-1] != nil && k > i {
				s = m.served[k-1]
			}
			m.mu.Unlock()
			if s == nil {
				if time.Now().After(end) {
					m.t.Fatalf("connection %d does not arrive", i)
				}
				time.Sleep(100 * time.Microsecond)
			}
		}
		if _, err := io.ReadFull(s, word); err != nil {
			m.t.Fatal(err)
		}
		_, _ = s.Write(word)
		if _, err := io.ReadFull(c, word); err != nil {
			m.t.Fatal(err)
		}
	}
	return out
}

// talk has a word go each way over each.
func (m *quietMesh) talk(open []net.Conn) {
	m.t.Helper()
	word := make([]byte, 4)
	for i, c := range open {
		s := m.served[len(m.served)-len(open)+i]
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_ = s.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(c, "ping"); err != nil {
			m.t.Fatal(err)
		}
		if _, err := io.ReadFull(s, word); err != nil {
			m.t.Fatalf("connection %d: %v", i, err)
		}
		_, _ = io.WriteString(s, "pong")
		if _, err := io.ReadFull(c, word); err != nil || string(word) != "pong" {
			m.t.Fatalf("connection %d: %q, %v", i, word, err)
		}
	}
}

// cost is memory and goroutines.
type cost struct{ heap, stack, goroutines int64 }

func costs() cost {
	for range 4 { // finalizers, pools, and stacks that shrink by half at a time
		runtime.GC()
		time.Sleep(20 * time.Millisecond)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return cost{int64(m.HeapAlloc), int64(m.StackInuse), int64(runtime.NumGoroutine())}
}

func (c cost) minus(o cost) cost {
	return cost{c.heap - o.heap, c.stack - o.stack, c.goroutines - o.goroutines}
}

// TestIdleConnectionCost is the budget of a connection that is open and silent: at most 4.5 KiB of Go's memory, stacks
// included, and no goroutine on each proxy; without a tunnel 8 KiB on the one that there is. Both proxies, and the applications' ends, are in this process; what the
// latter cost is measured without proxies and taken off.
func TestIdleConnectionCost(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes frames larger")
	}
	n := 1000
	if testing.Short() {
		n = 200
	}
	for _, tc := range []struct {
		name    string
		oneNode bool
		proxies int64
		most    int64
	}{
		{"two nodes", false, 2, 4608},
		// Without a tunnel one proxy is both, and reads two applications' sockets.
		{"one node", true, 1, 8 << 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newQuietMesh(t, tc.oneNode)
			before := costs()
			ends := m.direct(n)
			applications := costs().minus(before)
			before = costs()
			open := m.open(n, m.outside)
			for end := time.Now().Add(10 * time.Second); m.lot.Parked() < 2*n; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d of %d ends are parked", m.lot.Parked(), 2*n)
				}
			}
			all := costs().minus(before)
			each := all.minus(applications)
			k := int64(n)
			heap, stack, goroutines := each.heap/k/tc.proxies, each.stack/k/tc.proxies, (each.goroutines+k/2)/k
			t.Logf("per connection and proxy: %d bytes of heap, %d of stack; %d goroutines in all; applications' ends: %d bytes",
				heap, stack, goroutines, applications.heap/k)
			if sum := heap + stack; sum > tc.most {
				t.Errorf("%d bytes per connection and proxy, at most %d", sum, tc.most)
			}
			if goroutines > 0 {
				t.Errorf("%d goroutines per connection", goroutines)
			}
			m.talk(open) // they wake up, and go quiet again
			if n := m.lot.Parked(); n != 0 {
				t.Logf("%d ends are parked again already", n)
			}
			for _, c := range append(open, ends...) {
				_ = c.Close()
			}
			m.stop()
			if left := m.conns.Count(); left != 0 {
				t.Errorf("%d connections are left in the table", left)
			}
		})
	}
}

// direct opens connections between the applications, without a proxy.
func (m *quietMesh) direct(n int) []net.Conn {
	out := m.open(n, quietServer+":8080")
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.served {
		out = append(out, c)
	}
	m.served = nil
	return out
}
