package capture

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
	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/testkit/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// here is the test's own namespace with loopback up.
func here(t *testing.T) *netsys.Netns {
	t.Helper()
	nstest.Need(t)
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netsys.CurrentNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func config(h Handler) *Config {
	return &Config{
		Options:  Options{ReusePort: true, IPv6: true, Mark: 1337},
		Handlers: Handlers{Outbound: h, Plain: h, HBONE: h}, Log: obs.Discard(),
	}
}

func dial(t *testing.T, port uint16) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestConnectionsReachTheirDriver(t *testing.T) {
	ns := here(t)
	defer goleak.VerifyNone(t)
	h := func(name string) Handler {
		return func(_ context.Context, pod *Pod, a *Accepted) {
			defer a.Close()
			_, _ = io.WriteString(a, name+" "+pod.Name+" "+a.Original.String())
		}
	}
	cfg := config(nil)
	cfg.Handlers = Handlers{Outbound: h("out"), Plain: h("plain"), HBONE: h("hbone")}
	pod := &Pod{Name: "web", Drain: run.NewDrain()}
	p, err := Open(cfg, ns, pod)
	if err != nil {
		t.Fatal(err)
	}
	for port, want := range map[uint16]string{
		PortOutbound: "out web 127.0.0.1:15001", PortPlain: "plain web 127.0.0.1:15006", PortHBONE: "hbone web 127.0.0.1:15008",
	} {
		if b, err := io.ReadAll(dial(t, port)); err != nil || string(b) != want {
			t.Errorf("port %d: %q, %v", port, b, err)
		}
	}
	pod.Drain.Cut()
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

func TestAllOrNothing(t *testing.T) {
	ns := here(t)
	defer goleak.VerifyNone(t)
	taken, err := net.Listen("tcp", "127.0.0.1:15001") // without SO_REUSEPORT
	if err != nil {
		t.Fatal(err)
	}
	pod := &Pod{Name: "web", Drain: run.NewDrain()}
	if _, err := Open(config(nil), ns, pod); err == nil {
		t.Fatal("opened on a taken port")
	}
	if c, err := net.Dial("tcp", "127.0.0.1:15008"); err == nil {
		_ = c.Close()
		t.Error("15008 was left open")
	}
	_ = taken.Close()
	p, err := Open(config(nil), ns, pod)
	if err != nil {
		t.Fatal(err)
	}
	// During an update a second process listens beside the first.
	pod2 := &Pod{Name: "web", Drain: run.NewDrain()}
	p2, err := Open(config(nil), ns, pod2)
	if err != nil {
		t.Fatal(err)
	}
	pod.Drain.Cut()
	pod2.Drain.Cut()
	if err := errors.Join(p.Wait(), p2.Wait()); err != nil {
		t.Error(err)
	}
}

func TestCutEndsConnections(t *testing.T) {
	ns := here(t)
	defer goleak.VerifyNone(t)
	cause := make(chan error, 1)
	pod := &Pod{Name: "web", Drain: run.NewDrain()}
	p, err := Open(config(func(ctx context.Context, _ *Pod, a *Accepted) {
		defer a.Close()
		<-ctx.Done()
		cause <- context.Cause(ctx)
	}), ns, pod)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, PortHBONE)
	_, _ = c.Write([]byte("x"))
	pod.Drain.Start()
	time.Sleep(20 * time.Millisecond)
	select {
	case err := <-cause:
		t.Fatalf("the polite phase cut a connection: %v", err)
	default:
	}
	pod.Drain.Cut()
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	if err := <-cause; !errors.Is(err, run.ErrDrained) {
		t.Error(err)
	}
}

func TestDrainStopsAccepting(t *testing.T) {
	ns := here(t)
	defer goleak.VerifyNone(t)
	release := make(chan struct{})
	pod := &Pod{Name: "web", Drain: run.NewDrain()}
	p, err := Open(config(func(_ context.Context, _ *Pod, a *Accepted) {
		defer a.Close()
		<-release
		_, _ = io.WriteString(a, "whole")
	}), ns, pod)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, PortPlain)
	time.Sleep(20 * time.Millisecond)
	pod.Drain.Start()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		late, err := net.Dial("tcp", "127.0.0.1:15006")
		if err != nil {
			break
		}
		_ = late.Close()
		if time.Now().After(end) {
			t.Fatal("still accepting")
		}
	}
	close(release)
	if b, err := io.ReadAll(c); err != nil || string(b) != "whole" {
		t.Errorf("%q, %v", b, err)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

func TestDialKeepsSource(t *testing.T) {
	ns := here(t)
	if err := ns.TransparentWorks(); err != nil {
		t.Skip(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dst := netip.MustParseAddrPort(l.Addr().String())
	for source, want := range map[string]string{"127.0.0.9": "127.0.0.9", "127.0.0.1": "127.0.0.1", "::1": "127.0.0.1"} {
		c, err := dialer(ns, Options{KeepSource: true, Mark: 1337})(t.Context(), dst, netip.MustParseAddr(source))
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if from := netip.MustParseAddrPort(s.RemoteAddr().String()).Addr().String(); from != want {
			t.Errorf("source %s: the application sees %s, want %s", source, from, want)
		}
		_, _ = c.Close(), s.Close()
	}
}

// TestOwns: only what is an address of the pod's namespace now.
func TestOwns(t *testing.T) {
	ns := here(t)
	pod := &Pod{Drain: run.NewDrain()}
	p, err := Open(config(func(context.Context, *Pod, *Accepted) {}), ns, pod)
	if err != nil {
		t.Fatal(err)
	}
	for ip, want := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false, "192.0.2.7": false} {
		for range 2 {
			if got := p.Owns(netip.MustParseAddr(ip)); got != want {
				t.Errorf("%s: %v, want %v", ip, got, want)
			}
		}
	}
	pod.Drain.Cut()
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}
