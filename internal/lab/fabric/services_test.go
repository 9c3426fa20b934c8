package fabric

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	gocmp "github.com/google/go-cmp/cmp/cmpopts"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestCompile(t *testing.T) {
	web := Service{
		Name: "shop/web", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd00:10:96::20")},
		Ports: []ServicePort{{Protocol: TCP, Port: 80, Endpoints: []netip.AddrPort{
			ap("10.244.2.5:8080"), ap("10.244.1.5:8080"), ap("[fd00:10:244:1::5]:8080"), ap("10.244.1.5:8080"),
		}}},
	}
	none := Service{Name: "shop/none", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.21")}, Ports: []ServicePort{{Protocol: TCP, Port: 80}}}
	dns := Service{Name: "kube-system/kube-dns", VIPs: []netip.Addr{DNS4()}, Ports: []ServicePort{{Protocol: UDP, Port: 53}}}
	got, err := compile([]Service{dns, web, none}, true)
	if err != nil {
		t.Fatal(err)
	}
	want := ruleset{
		spreads: []spread{
			{vip: ap("10.96.0.20:80"), protocol: TCP, endpoints: []netip.AddrPort{ap("10.244.1.5:8080"), ap("10.244.2.5:8080")}},
			{vip: ap("[fd00:10:96::20]:80"), protocol: TCP, endpoints: []netip.AddrPort{ap("[fd00:10:244:1::5]:8080")}},
		},
		hairpin: []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.244.2.5"), netip.MustParseAddr("fd00:10:244:1::5")},
	}
	opts := []cmp.Option{cmp.AllowUnexported(ruleset{}, spread{}), gocmp.EquateComparable(netip.Addr{}, netip.AddrPort{})}
	if diff := cmp.Diff(want, got, opts...); diff != "" {
		t.Error(diff)
	}
	got4, err := compile([]Service{web}, false)
	if err != nil || len(got4.spreads) != 1 {
		t.Errorf("without IPv6: %v, %v", got4, err)
	}
}

func TestCompileRefuses(t *testing.T) {
	a := Service{Name: "shop/a", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}, Ports: []ServicePort{{Protocol: TCP, Port: 80, Endpoints: []netip.AddrPort{ap("10.244.1.5:80")}}}}
	b := a
	b.Name = "shop/b"
	c := a
	c.Name, c.VIPs = "shop/c", []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	got, err := compile([]Service{a, b, c}, true)
	if len(got.spreads) != 1 {
		t.Errorf("the good service must stay: %v", got)
	}
	for _, want := range []string{"shop/b: 10.96.0.20:80 TCP belongs to service shop/a", "shop/c: address 192.0.2.1 is outside"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

// serviceLab has pods a and c as endpoints of one Service, and b as client.
type serviceLab struct {
	*Fabric
	a, b, c  *PodNet
	vips     []netip.Addr
	services []Service
}

func newServiceLab(t *testing.T) *serviceLab {
	t.Helper()
	f := lab(t)
	l := &serviceLab{Fabric: f, a: addPod(t, f, "node-1", "a"), b: addPod(t, f, "node-1", "b"), c: addPod(t, f, "node-2", "c")}
	l.vips = []netip.Addr{netip.MustParseAddr("10.96.0.20")}
	if f.IPv6() {
		l.vips = append(l.vips, netip.MustParseAddr("fd00:10:96::20"))
	}
	var endpoints []netip.AddrPort
	for _, p := range []*PodNet{l.a, l.c} {
		serve(t, p.Netns(), ":8080", p.Key)
		for _, ip := range p.Addrs() {
			endpoints = append(endpoints, netip.AddrPortFrom(ip, 8080))
		}
	}
	l.services = []Service{
		{Name: "shop/web", VIPs: l.vips, Ports: []ServicePort{{Protocol: TCP, Port: 80, Endpoints: endpoints}, {Protocol: UDP, Port: 80, Endpoints: endpoints}}},
		{Name: "shop/none", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.21"), netip.MustParseAddr("fd00:10:96::21")}, Ports: []ServicePort{{Protocol: TCP, Port: 80}, {Protocol: UDP, Port: 80}}},
	}
	if err := f.SetServices(l.services); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestServices(t *testing.T) {
	l := newServiceLab(t)
	n1, _ := l.Node("node-1")
	for _, ns := range []*Netns{l.b.Netns(), l.a.Netns(), n1.Netns(), l.Netns()} {
		for _, vip := range l.vips {
			seen := map[string]int{}
			for range 40 {
				got, err := ask(t, ns, netip.AddrPortFrom(vip, 80).String())
				if err != nil {
					t.Fatalf("%s to %v: %v", ns.Name(), vip, err)
				}
				name, _, _ := strings.Cut(got, " ")
				seen[name]++
			}
			// 40 fair draws all on one side: 1 in 5e11.
			if seen["a"] == 0 || seen["c"] == 0 {
				t.Errorf("%s to %v: spread %v", ns.Name(), vip, seen)
			}
		}
	}
}

func TestServiceRefused(t *testing.T) {
	l := newServiceLab(t)
	n1, _ := l.Node("node-1")
	for _, ns := range []*Netns{l.b.Netns(), n1.Netns(), l.Netns()} {
		targets := []string{"10.96.0.21:80", "10.96.0.20:81", "10.96.77.77:1"}
		if l.IPv6() {
			targets = append(targets, "[fd00:10:96::21]:80")
		}
		for _, target := range targets {
			start := time.Now()
			_, err := ask(t, ns, target)
			if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(start) > time.Second {
				t.Errorf("%s to %s: %v after %v, want a refusal at once", ns.Name(), target, err, time.Since(start))
			}
			u, err := ns.DialContext(t.Context(), "udp", target)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if err := u.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
				t.Fatal(err)
			}
			_, werr := u.Write([]byte("x"))
			_, rerr := u.Read(make([]byte, 1))
			if !errors.Is(errors.Join(werr, rerr), syscall.ECONNREFUSED) {
				t.Errorf("%s to %s by UDP: write %v, read %v, want a refusal", ns.Name(), target, werr, rerr)
			}
		}
	}
}

func TestServiceUDP(t *testing.T) {
	l := newServiceLab(t)
	p, err := l.a.Netns().ListenPacket(t.Context(), "udp", ":9000")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo([]byte("re:"+string(buf[:n])), from)
		}
	}()
	var endpoints []netip.AddrPort
	for _, ip := range l.a.Addrs() {
		endpoints = append(endpoints, netip.AddrPortFrom(ip, 9000))
	}
	err = l.SetServices(append(l.services, Service{Name: "shop/u", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.30"), netip.MustParseAddr("fd00:10:96::30")}, Ports: []ServicePort{{Protocol: UDP, Port: 53, Endpoints: endpoints}}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"10.96.0.30:53", "[fd00:10:96::30]:53"}[:len(l.vips)] {
		for _, ns := range []*Netns{l.a.Netns(), l.b.Netns(), l.c.Netns()} {
			c, err := ns.DialContext(t.Context(), "udp", target)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			n, err := c.Read(buf)
			if err != nil || string(buf[:n]) != "re:x" {
				t.Errorf("%s to %s: %q, %v", ns.Name(), target, buf[:n], err)
			}
			c.Close()
		}
	}
}

// TestUDPLeavesGoneEndpoint: a client that keeps its port is led elsewhere.
func TestUDPLeavesGoneEndpoint(t *testing.T) {
	l := newServiceLab(t)
	for _, p := range []*PodNet{l.a, l.c} {
		conn, err := p.Netns().ListenPacket(t.Context(), "udp", ":9000")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		go func() {
			for {
				_, from, err := conn.ReadFrom(make([]byte, 64))
				if err != nil {
					return
				}
				_, _ = conn.WriteTo([]byte(p.Key), from)
			}
		}()
	}
	lead := func(p *PodNet) {
		t.Helper()
		s := Service{Name: "shop/u", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.30"), netip.MustParseAddr("fd00:10:96::30")}, Ports: []ServicePort{{Protocol: UDP, Port: 53}}}
		for _, ip := range p.Addrs() {
			s.Ports[0].Endpoints = append(s.Ports[0].Endpoints, netip.AddrPortFrom(ip, 9000))
		}
		if err := l.SetServices([]Service{s}); err != nil {
			t.Fatal(err)
		}
	}
	for _, target := range []string{"10.96.0.30:53", "[fd00:10:96::30]:53"}[:len(l.vips)] {
		lead(l.a)
		c, err := l.b.Netns().DialContext(t.Context(), "udp", target)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, p := range []*PodNet{l.a, l.c, l.a} {
			lead(p)
			if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(buf)
			if err != nil || string(buf[:n]) != p.Key {
				t.Errorf("%s: answered by %q, %v; want %s", target, buf[:n], err, p.Key)
			}
		}
	}
}

func TestReplaceKeepsConnections(t *testing.T) {
	l := newServiceLab(t)
	ln, err := l.a.Netns().Listen(t.Context(), "tcp", ":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 1)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	with := func(noise int) []Service {
		list := append([]Service{}, l.services...)
		list = append(list, Service{Name: "shop/echo", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.40")}, Ports: []ServicePort{{Protocol: TCP, Port: 7, Endpoints: []netip.AddrPort{netip.AddrPortFrom(l.a.IP4, 7000)}}}})
		for i := range noise {
			vip := netip.AddrFrom4([4]byte{10, 96, 1, byte(i)})
			list = append(list, Service{Name: fmt.Sprintf("shop/n%d", i), VIPs: []netip.Addr{vip}, Ports: []ServicePort{{Protocol: TCP, Port: 80, Endpoints: []netip.AddrPort{ap("10.244.2.9:80"), ap("10.244.2.10:80"), ap("10.244.2.11:80")}}}})
		}
		return list
	}
	if err := l.SetServices(with(0)); err != nil {
		t.Fatal(err)
	}
	c, err := l.b.Netns().DialContext(t.Context(), "tcp", "10.96.0.40:7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 20 {
		if err := l.SetServices(with(rand.IntN(250))); err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatalf("write after change %d: %v", i, err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatalf("read after change %d: %v", i, err)
		}
		// New connections never miss the rules, whatever is being replaced.
		fresh, err := l.b.Netns().DialContext(t.Context(), "tcp", netip.AddrPortFrom(l.vips[0], 80).String())
		if err != nil {
			t.Fatalf("new connection after change %d: %v", i, err)
		}
		fresh.Close()
	}
}
