package fabric

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/testkit/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// lab is a fabric with two nodes that is taken down with the test.
func lab(t *testing.T) *Fabric {
	t.Helper()
	nstest.Need(t)
	f, err := New(t.Context(), Config{Nodes: []string{"node-1", "node-2"}, IPv6: HostHasIPv6()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func addPod(t *testing.T, f *Fabric, node, key string) *PodNet {
	t.Helper()
	p, err := f.AddPod(node, key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serve answers every TCP connection in the namespace with the text and the
// client's address.
func serve(t *testing.T, ns *Netns, address, text string) {
	t.Helper()
	l, err := ns.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			peer := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			fmt.Fprintf(c, "%s %v", text, peer)
			c.Close()
		}
	}()
}

// ask connects and reads everything.
func ask(t *testing.T, ns *Netns, address string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	c, err := ns.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	text, err := io.ReadAll(c)
	return string(text), err
}

func TestPodToPod(t *testing.T) {
	f := lab(t)
	a, b, c := addPod(t, f, "node-1", "a"), addPod(t, f, "node-1", "b"), addPod(t, f, "node-2", "c")
	n1, _ := f.Node("node-1")
	for _, p := range []*PodNet{a, b, c} {
		serve(t, p.Netns(), ":8080", p.Key)
	}
	for _, from := range []*PodNet{a, b, c} {
		for _, to := range []*PodNet{a, b, c} {
			for i, ip := range to.Addrs() {
				got, err := ask(t, from.Netns(), netip.AddrPortFrom(ip, 8080).String())
				want := fmt.Sprintf("%s %v", to.Key, from.Addrs()[i])
				if err != nil || got != want {
					t.Errorf("%s to %s at %v: got %q, %v; want %q", from.Key, to.Key, ip, got, err, want)
				}
			}
		}
	}
	for _, ns := range []*Netns{f.Netns(), n1.Netns()} {
		for _, ip := range append(a.Addrs(), c.Addrs()...) {
			if _, err := ask(t, ns, netip.AddrPortFrom(ip, 8080).String()); err != nil {
				t.Errorf("%s to pod at %v: %v", ns.Name(), ip, err)
			}
		}
	}
}
