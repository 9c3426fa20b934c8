package redirect

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/testkit/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// world is a node and a pod, joined by a veth.
type world struct {
	node, pod *netsys.Netns
}

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{node: nstest.NewNetns(t), pod: nstest.NewNetns(t)}
	err := w.node.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "p0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(w.pod.FD()),
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	address(t, w.node, "p0", "10.9.0.1/24", "fd09::1/64")
	address(t, w.pod, "eth0", "10.9.0.2/24", "fd09::2/64")
	h, err := netlink.NewHandleAt(netns.NsHandle(w.pod.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, _ := h.LinkByName("eth0")
	for _, gw := range []string{"10.9.0.1", "fd09::1"} {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func address(t *testing.T, ns *netsys.Netns, name string, addrs ...string) {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, n := range []string{"lo", name} {
		link, err := h.LinkByName(n)
		if err == nil {
			err = h.LinkSetUp(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	link, _ := h.LinkByName(name)
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := h.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
}

// arrival is one accepted connection as its server sees it.
type arrival struct {
	where string
	orig  netip.AddrPort
	peer  netip.Addr
}

// serve accepts on a port of the pod and answers "hi".
func serve(t *testing.T, ns *netsys.Netns, where string, port uint16, o netsys.ListenOptions, got chan<- arrival) {
	t.Helper()
	l, err := ns.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), port), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.AcceptConn()
			if err != nil {
				return
			}
			a := arrival{where: where}
			a.orig, _ = netsys.OriginalDst(c)
			peer, _ := netsys.Unmap(c.RemoteAddr())
			a.peer = peer.Addr()
			got <- a
			_, _ = c.Write([]byte("hi"))
			_ = c.Close()
		}
	}()
}

func dial(t *testing.T, ns *netsys.Netns, to string, o netsys.DialOptions) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := ns.Dial(ctx, netip.MustParseAddrPort(to), o)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	said, err := io.ReadAll(c)
	if err == nil && string(said) != "hi" {
		err = errors.New("answer " + string(said))
	}
	return err
}

func TestRulesInAPod(t *testing.T) {
	nstest.Need(t)
	w := newWorld(t)
	o := defaults()
	got := make(chan arrival, 10)
	proxy := netsys.ListenOptions{Mark: ProxyMark, ReusePort: true, Transparent: true}
	serve(t, w.pod, "outbound", OutboundPort, proxy, got)
	serve(t, w.pod, "inbound", InboundPort, proxy, got)
	serve(t, w.pod, "hbone", HBONEPort, proxy, got)
	serve(t, w.pod, "app", 8080, netsys.ListenOptions{}, got)
	serve(t, w.node, "node", 7000, netsys.ListenOptions{}, got)
	if err := w.pod.Apply(Pod(o)); err != nil {
		t.Fatal(err)
	}
	if err := w.pod.Apply(Pod(o)); err != nil {
		t.Fatalf("a second time: %v", err)
	}
	expect := func(from *netsys.Netns, to string, opt netsys.DialOptions, where, orig, peer string) {
		t.Helper()
		if err := dial(t, from, to, opt); err != nil {
			t.Errorf("%s: %v", to, err)
			return
		}
		a := <-got
		if a.where != where || a.orig.String() != orig || a.peer.String() != peer {
			t.Errorf("to %s: arrived %+v; want at %s, meant for %s, from %s", to, a, where, orig, peer)
		}
	}
	none := netsys.DialOptions{}
	mine := netsys.DialOptions{Mark: ProxyMark}
	// The application's connections go to the proxy, its own to where they say.
	expect(w.pod, "10.9.0.1:7000", none, "outbound", "10.9.0.1:7000", "10.9.0.2")
	expect(w.pod, "[fd09::1]:7000", none, "outbound", "[fd09::1]:7000", "fd09::2")
	expect(w.pod, "10.9.0.1:7000", mine, "node", "10.9.0.1:7000", "10.9.0.2")
	expect(w.pod, "127.0.0.1:8080", none, "app", "127.0.0.1:8080", "127.0.0.1")
	expect(w.pod, "[::1]:8080", none, "app", "[::1]:8080", "::1")
	expect(w.pod, "10.9.0.2:8080", none, "app", "10.9.0.2:8080", "10.9.0.2")
	// What comes in goes to the proxy, 15008 straight to it.
	expect(w.node, "10.9.0.2:8080", none, "inbound", "10.9.0.2:8080", "10.9.0.1")
	expect(w.node, "[fd09::2]:8080", none, "inbound", "[fd09::2]:8080", "fd09::1")
	expect(w.node, "10.9.0.2:15008", none, "hbone", "10.9.0.2:15008", "10.9.0.1")
	expect(w.node, "10.9.0.2:15001", none, "inbound", "10.9.0.2:15001", "10.9.0.1")
	// The proxy reaches the application in the client's name, both ways.
	expect(w.pod, "10.9.0.2:8080", netsys.DialOptions{Mark: ProxyMark, Source: netip.MustParseAddr("10.9.0.1")}, "app", "10.9.0.2:8080", "10.9.0.1")
	expect(w.pod, "[fd09::2]:8080", netsys.DialOptions{Mark: ProxyMark, Source: netip.MustParseAddr("fd09::1")}, "app", "[fd09::2]:8080", "fd09::1")
	expect(w.pod, "10.9.0.2:8080", netsys.DialOptions{Mark: ProxyMark, Source: netip.MustParseAddr("203.0.113.7")}, "app", "10.9.0.2:8080", "203.0.113.7")
	// Probes of the node's user reach the application from the probe address.
	node := Node(o, []uint32{uint32(os.Getuid())}, []Enrolled{{netip.MustParseAddr("10.9.0.2"), "u"}, {netip.MustParseAddr("fd09::2"), "u"}})
	if err := w.node.Apply(node); err != nil {
		t.Fatal(err)
	}
	expect(w.node, "10.9.0.2:8080", none, "app", "10.9.0.2:8080", o.Probe4.String())
	expect(w.node, "[fd09::2]:8080", none, "app", "[fd09::2]:8080", o.Probe6.String())
	if err := w.node.Apply(Node(o, []uint32{uint32(os.Getuid())}, nil)); err != nil {
		t.Fatal(err)
	}
	expect(w.node, "10.9.0.2:8080", none, "inbound", "10.9.0.2:8080", "10.9.0.1")
	if err := w.node.Undo(node); err != nil {
		t.Fatal(err)
	}
	// Undone, nothing is left and everything is direct.
	for range 2 {
		if err := w.pod.Undo(Everything()); err != nil {
			t.Fatal(err)
		}
	}
	expect(w.node, "10.9.0.2:8080", none, "app", "10.9.0.2:8080", "10.9.0.1")
	expect(w.pod, "10.9.0.1:7000", none, "node", "10.9.0.1:7000", "10.9.0.2")
	for _, ns := range []*netsys.Netns{w.node, w.pod} {
		if names, err := ns.Tables(); err != nil || len(names) > 0 {
			t.Errorf("tables left in %v: %v, %v", ns, names, err)
		}
	}
	leftovers(t, w.pod)
}

func leftovers(t *testing.T, ns *netsys.Netns) {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, _ := h.RuleList(family)
		for _, r := range rules {
			if r.Priority == RulePriority {
				t.Errorf("ip rule left: %v", r)
			}
		}
		routes, _ := h.RouteListFiltered(family, &netlink.Route{Table: RouteTable}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			t.Errorf("route left: %v", r)
		}
	}
}

// TestProxyDownFailsClosed: with the rules in force and nobody listening, the
// application gets a refusal, never a direct connection.
func TestProxyDownFailsClosed(t *testing.T) {
	nstest.Need(t)
	w := newWorld(t)
	got := make(chan arrival, 10)
	serve(t, w.pod, "app", 8080, netsys.ListenOptions{}, got)
	serve(t, w.node, "node", 7000, netsys.ListenOptions{}, got)
	if err := w.pod.Apply(Pod(defaults())); err != nil {
		t.Fatal(err)
	}
	if err := dial(t, w.pod, "10.9.0.1:7000", netsys.DialOptions{}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("out: %v", err)
	}
	if err := dial(t, w.node, "10.9.0.2:8080", netsys.DialOptions{}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("in: %v", err)
	}
	if len(got) > 0 {
		t.Errorf("somebody was reached: %+v", <-got)
	}
}
