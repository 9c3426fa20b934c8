package app

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/netsys/ruleset"
	"github.com/marrowmesh/marrow/internal/testkit/fakecp"
	"github.com/marrowmesh/marrow/internal/testkit/nstest"
	"github.com/marrowmesh/marrow/internal/zds"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// logs is what ztunnel wrote.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }

func (l *logs) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// world is a node with pods, a control plane, a node agent and one ztunnel in the
// test's own process and namespace.
type world struct {
	t      *testing.T
	fab    *fabric.Fabric
	cp     *fakecp.Plane
	agent  *zds.Server
	socket string
	env    map[string]string
	logs   logs
	stop   context.CancelFunc
	ended  chan error

	mu       sync.Mutex
	enrolled []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	nstest.Need(t)
	w := &world{t: t, socket: filepath.Join(t.TempDir(), "z.sock"), ended: make(chan error, 1)}
	var err error
	if w.fab, err = fabric.New(t.Context(), fabric.Config{Nodes: []string{"n1"}, IPv6: fabric.HostHasIPv6()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.fab.Close(); err != nil {
			t.Error(err)
		}
	})
	if w.cp, err = fakecp.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.cp.Stop)
	w.env = map[string]string{
		"NODE_NAME": "n1", "XDS_ADDRESS": w.cp.Address, "CA_ADDRESS": w.cp.Address, "XDS_ROOT_CA": w.cp.RootPEM, "CA_ROOT_CA": w.cp.RootPEM,
		"INPOD_UDS": w.socket, "CONNECTION_TERMINATION_DEADLINE": "5s", "AUTH_TOKEN": "literal-token", "RUST_LOG": "info",
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("ztunnel's log:\n%s", w.logs.String())
		}
	})
	return w
}

// sameNode runs a test of pods of one node in both ways in which they can reach each other.
func sameNode(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	for _, way := range []string{"splice", "tunnel"} {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t)
			w.env["MARROW_SAME_NODE"] = way
			test(t, w)
		})
	}
}

// startAgent serves the pod protocol until stop, or the end of the test.
func (w *world) startAgent() (stop func()) {
	w.t.Helper()
	w.agent = zds.NewServer(zds.ServerConfig{Snapshot: w.snapshot})
	if err := w.agent.Listen(w.socket); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.agent.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *world) snapshot(context.Context) []zds.Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []zds.Entry
	for _, name := range w.enrolled {
		fd, err := syscall.Open(w.pod(name).Path(), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			w.t.Error(err)
			continue
		}
		out = append(out, zds.Entry{UID: "uid-" + name, Info: info(name), FD: fd})
	}
	return out
}

func info(name string) zds.Info { return zds.Info{Name: name, Namespace: "shop", ServiceAccount: name} }

// startZtunnel runs it until the end of the test.
func (w *world) startZtunnel() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() {
		w.ended <- Run(ctx, System{Conf: conf.FromMap(w.env), Files: func(string) ([]byte, bool) { return nil, false }, Log: &w.logs})
	}()
	w.t.Cleanup(func() {
		cancel()
		select {
		case err := <-w.ended:
			if err != nil {
				w.t.Error(err)
			}
		case <-time.After(10 * time.Second):
			w.t.Error("ztunnel did not end")
		}
	})
}

func (w *world) pod(name string) *fabric.PodNet {
	w.t.Helper()
	p, ok := w.fab.Pod(name)
	if !ok {
		w.t.Fatalf("no pod %s", name)
	}
	return p
}

func (w *world) ip(name string) netip.Addr { return w.pod(name).Addrs()[0] }

// addPod makes a pod; an enrolled one gets the redirection and a place in the
// snapshot, a known one is told to the control plane.
func (w *world) addPod(name string, enrolled, known bool) {
	w.t.Helper()
	p, err := w.fab.AddPod("n1", name)
	if err != nil {
		w.t.Fatal(err)
	}
	if known {
		body := &workload.Workload{Name: name, Namespace: "shop", ServiceAccount: name, Node: "n1", CanonicalName: name, WorkloadName: name}
		for _, a := range p.Addrs() {
			body.Addresses = append(body.Addresses, a.AsSlice())
		}
		if enrolled {
			body.TunnelProtocol = workload.TunnelProtocol_HBONE
		}
		if err := w.cp.Workload("Kubernetes//Pod/shop/"+name, body); err != nil {
			w.t.Fatal(err)
		}
	}
	if !enrolled {
		return
	}
	ns, err := netsys.OpenNetns(p.Path())
	if err != nil {
		w.t.Fatal(err)
	}
	defer ns.Close()
	if err := ns.Apply(redirection()); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.enrolled = append(w.enrolled, name)
	w.mu.Unlock()
}

// redirection is the node agent's work, IPv4 only, as small as it can be.
func redirection() ruleset.Set {
	tcp := ruleset.Proto{Name: "tcp"}
	v4 := ruleset.Family{}
	mark := func(not bool) ruleset.Match { return ruleset.Mark{Value: 0x539, Mask: 0xfff, Not: not} }
	away := ruleset.Addr{Dst: true, Not: true, Prefix: netip.MustParsePrefix("127.0.0.1/32")}
	rule := func(then ruleset.Action, m ...ruleset.Match) ruleset.Rule {
		return ruleset.Rule{If: m, Then: []ruleset.Action{then}}
	}
	base := func(name string, h ruleset.Hook, k ruleset.Kind, prio int, r ...ruleset.Rule) ruleset.Chain {
		return ruleset.Chain{Name: name, Hook: h, Kind: k, Priority: prio, Rules: r}
	}
	return ruleset.Set{
		Tables: []ruleset.Table{
			{Name: "test-nat", Chains: []ruleset.Chain{
				base("prerouting", ruleset.Prerouting, ruleset.NAT, -100,
					rule(ruleset.Redirect{Port: 15006}, v4, away, tcp, ruleset.Port{Dst: true, Not: true, Port: 15008}, mark(true))),
				base("output", ruleset.Output, ruleset.NAT, -100,
					rule(ruleset.Accept{}, tcp, ruleset.Mark{Value: 0x111, Mask: 0xfff}),
					rule(ruleset.Accept{}, v4, away, ruleset.Interface{Out: true, Name: "lo"}),
					rule(ruleset.Redirect{Port: 15001}, v4, away, tcp, mark(true))),
			}},
			{Name: "test-mangle", Chains: []ruleset.Chain{
				base("prerouting", ruleset.Prerouting, ruleset.Filter, -150, rule(ruleset.SetConnMark{Value: 0x111, Mask: 0xfff}, mark(false))),
				base("output", ruleset.Output, ruleset.Route, -150, rule(ruleset.RestoreMark{}, ruleset.Mark{Conn: true, Value: 0x111, Mask: 0xfff})),
			}},
		},
		Rules:  []ruleset.PolicyRule{{Mark: 0x111, Mask: 0xfff, Priority: 32764, Table: 100}},
		Locals: []ruleset.LocalRoute{{Table: 100}},
	}
}

// echo serves "<client address>: <line>" for each line in a pod.
func (w *world) echo(name string) {
	w.t.Helper()
	l, err := w.pod(name).Netns().Listen(w.t.Context(), "tcp4", "0.0.0.0:8080")
	if err != nil {
		w.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				buf := make([]byte, 1024)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
					_, _ = fmt.Fprintf(c, "%s: %s", host, buf[:n])
				}
			})
		}
	})
	w.t.Cleanup(func() { _ = l.Close() })
}

// dial connects as a process of a pod would.
func (w *world) dial(from, to string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	return w.pod(from).Netns().DialContext(ctx, "tcp4", netip.AddrPortFrom(w.ip(to), 8080).String())
}

// say sends a word over a connection and returns the answer.
func say(c net.Conn, word string) (string, error) {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, word); err != nil {
		return "", err
	}
	buf := make([]byte, 1024)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func (w *world) try(from, to string) (string, error) {
	c, err := w.dial(from, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return say(c, "hello")
}

// get asks ztunnel's own pages.
func (w *world) get(url string) (int, string) {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get("http://127.0.0.1:" + url)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

func (w *world) settle(what string, f func() bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatal("did not happen: " + what)
		}
	}
}

func (w *world) awaitReady() {
	w.t.Helper()
	w.settle("ready", func() bool { code, _ := w.get("15021/healthz/ready"); return code == 200 })
}

func (w *world) logged(parts ...string) bool {
	for line := range strings.Lines(w.logs.String()) {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return true
		}
	}
	return false
}
