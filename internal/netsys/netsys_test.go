package netsys_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/netsys/ruleset"
	"github.com/marrowmesh/marrow/internal/testkit/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func up(t *testing.T, ns *netsys.Netns) {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestDoRestoresThread(t *testing.T) {
	nstest.Need(t)
	home, err := netsys.CurrentNetns()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = home.Close() }()
	ns := nstest.NewNetns(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := ns.Do(func() error {
				in, err := netsys.CurrentNetns()
				if err != nil {
					return err
				}
				defer func() { _ = in.Close() }()
				if !in.Equal(ns) {
					return fmt.Errorf("inside %v, want %v", in, ns)
				}
				return io.ErrNoProgress
			})
			if !errors.Is(err, io.ErrNoProgress) {
				t.Errorf("error of the function is lost: %v", err)
			}
		})
		wg.Go(func() {
			now, err := netsys.CurrentNetns()
			if err != nil || !now.Equal(home) {
				t.Errorf("a thread stayed behind in %v (%v)", now, err)
				return
			}
			_ = now.Close()
		})
	}
	wg.Wait()
	if main, err := netsys.OpenNetns(fmt.Sprintf("/proc/%d/ns/net", os.Getpid())); err != nil || !main.Equal(home) {
		t.Errorf("the process shows itself in %v (%v)", main, err)
	}
}

func TestNotANamespace(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netsys.OpenNetns("/proc/self/ns/mnt"); !errors.Is(err, netsys.ErrNotNetns) {
		t.Errorf("mount namespace: %v", err)
	}
	if _, err := netsys.OpenNetns(f.Name()); !errors.Is(err, netsys.ErrNotNetns) {
		t.Errorf("%s: %v", f.Name(), err)
	}
	if _, err := netsys.NetnsFromFD(-1); !errors.Is(err, netsys.ErrNotNetns) {
		t.Errorf("descriptor -1: %v", err)
	}
	_ = f.Close()
}

func TestDialInsideNamespace(t *testing.T) {
	nstest.Need(t)
	ns := nstest.NewNetns(t)
	up(t, ns)
	for _, listen := range []string{"[::]:0", "127.0.0.1:0"} {
		l, err := ns.Listen(netip.MustParseAddrPort(listen), netsys.ListenOptions{Mark: 7, ReusePort: true, Transparent: true})
		if err != nil {
			t.Fatal(err)
		}
		local, _ := netsys.Unmap(l.Addr())
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), local.Port())
		if _, err := net.DialTimeout("tcp", to.String(), time.Second); err == nil {
			t.Error("the listener is in our own namespace")
		}
		c, err := ns.Dial(t.Context(), to, netsys.DialOptions{Mark: 9, KeepAlive: net.KeepAliveConfig{Enable: true, Idle: time.Minute}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		peer, err := netsys.Unmap(s.RemoteAddr())
		if err != nil || !peer.Addr().Is4() {
			t.Errorf("peer %v, %v", peer, err)
		}
		if dst, err := netsys.OriginalDst(s); err != nil || dst != to {
			t.Errorf("without a redirect the destination is the local address: %v, %v; want %v", dst, err, to)
		}
		_, _ = c.Write([]byte("x"))
		_ = s.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		_, _, _ = c.Close(), s.Close(), l.Close()
		if _, err := ns.Dial(t.Context(), to, netsys.DialOptions{}); err == nil {
			t.Error("connected to a closed port")
		}
	}
}

// TestSpareSockets: connections in quick succession use sockets that were made together, in the right namespace, and none of
// them stays.
func TestSpareSockets(t *testing.T) {
	nstest.Need(t)
	ns := nstest.NewNetns(t)
	up(t, ns)
	l, err := ns.Listen(netip.MustParseAddrPort("127.0.0.1:0"), netsys.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	to, _ := netsys.Unmap(l.Addr())
	before := sockets(t)
	for i := range 40 {
		c, err := ns.Dial(t.Context(), to, netsys.DialOptions{Mark: 9})
		if err != nil {
			t.Fatal(i, err) // outside of the namespace nobody listens
		}
		s, err := l.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Close(), s.Close()
	}
	spare := sockets(t) - before
	if spare < 1 || spare > 16 {
		t.Errorf("%d sockets are kept after 40 connections, want 1 to 16", spare)
	}
	for end := time.Now().Add(20 * time.Second); sockets(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d unused sockets are never closed", sockets(t)-before)
		}
	}
	for range 5 {
		if c, err := ns.Dial(t.Context(), to, netsys.DialOptions{}); err == nil {
			_ = c.Close()
		}
	}
	_ = ns.Close()
	if left := sockets(t) - before; left > 0 {
		t.Errorf("%d sockets outlive their namespace's holder", left)
	}
}

// sockets counts this process' own.
func sockets(t *testing.T) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

func TestDialLimits(t *testing.T) {
	nstest.Need(t)
	ns := nstest.NewNetns(t)
	up(t, ns)
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	// A link that swallows everything.
	if err := h.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "d0"}}); err != nil {
		t.Skip("no dummy links here:", err)
	}
	d, _ := h.LinkByName("d0")
	addr, _ := netlink.ParseAddr("10.5.0.1/24")
	neigh := &netlink.Neigh{LinkIndex: d.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP("10.5.0.2"), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	if err := errors.Join(h.LinkSetUp(d), h.AddrAdd(d, addr), h.NeighAdd(neigh)); err != nil {
		t.Fatal(err)
	}
	to := netip.MustParseAddrPort("10.5.0.2:80")
	start := time.Now()
	if _, err := ns.Dial(t.Context(), to, netsys.DialOptions{Timeout: 50 * time.Millisecond}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("limit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := ns.Dial(ctx, to, netsys.DialOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	if _, err := ns.Dial(t.Context(), to, netsys.DialOptions{Source: netip.MustParseAddr("fd00::1")}); err == nil {
		t.Error("an IPv6 source for an IPv4 destination")
	}
}

func TestUnmap(t *testing.T) {
	got, err := netsys.Unmap(&net.TCPAddr{IP: net.ParseIP("::ffff:1.2.3.4"), Port: 5})
	if err != nil || got.String() != "1.2.3.4:5" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := netsys.Unmap(&net.UnixAddr{Name: "x"}); !errors.Is(err, netsys.ErrNoAddress) {
		t.Errorf("%v", err)
	}
}

func TestApplyTableReplaces(t *testing.T) {
	nstest.Need(t)
	ns := nstest.NewNetns(t)
	up(t, ns)
	refuse := func(port uint16) ruleset.Set {
		return ruleset.Set{Tables: []ruleset.Table{{Name: "x", Chains: []ruleset.Chain{{
			Name: "out", Hook: ruleset.Output, Kind: ruleset.NAT, Priority: -100,
			Rules: []ruleset.Rule{{If: []ruleset.Match{ruleset.Proto{Name: "tcp"}, ruleset.Port{Dst: true, Port: 99}}, Then: []ruleset.Action{ruleset.Redirect{Port: port}}}},
		}}}}}
	}
	for _, port := range []uint16{7001, 7002} {
		l, err := ns.Listen(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), netsys.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := ns.Apply(refuse(port)); err != nil {
			t.Fatal(err)
		}
		c, err := ns.Dial(t.Context(), netip.MustParseAddrPort("127.0.0.1:99"), netsys.DialOptions{})
		if err != nil {
			t.Fatalf("port %d: %v", port, err)
		}
		_, _ = c.Close(), l.Close()
	}
	if names, err := ns.Tables(); err != nil || len(names) != 1 {
		t.Errorf("tables %v, %v", names, err)
	}
	bad := refuse(1)
	bad.Tables[0].Chains[0].Rules[0].Then = []ruleset.Action{ruleset.Jump{Chain: "nowhere"}}
	if err := ns.Apply(bad); err == nil {
		t.Error("a jump to nowhere was taken")
	}
	if names, _ := ns.Tables(); len(names) != 1 {
		t.Errorf("a refused set changed the tables: %v", names)
	}
	if err := ns.Undo(bad); err != nil {
		t.Error(err)
	}
	if names, _ := ns.Tables(); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

func BenchmarkDial(b *testing.B) {
	nstest.Need(b)
	ns := nstest.NewNetns(b)
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.FD()))
	if err != nil {
		b.Fatal(err)
	}
	lo, _ := h.LinkByName("lo")
	_ = h.LinkSetUp(lo)
	h.Close()
	l, err := ns.Listen(netip.MustParseAddrPort("127.0.0.1:7000"), netsys.ListenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	for b.Loop() {
		c, err := ns.Dial(b.Context(), netip.MustParseAddrPort("127.0.0.1:7000"), netsys.DialOptions{Mark: 1})
		if err != nil {
			b.Fatal(err)
		}
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}
