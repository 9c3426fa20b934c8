package testmesh_test

import (
	"encoding/binary"
	"io"
	"net/netip"
	"testing"

	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/testkit/memnet"
)

// TestApplicationTunnel: a gateway behind its proxy gets connections for other addresses, with a
// PROXY header that names the client, the destination that it meant, and who it proved to be.
func TestApplicationTunnel(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		a := w.pod("a", "10.0.0.1")
		w.pod("gw", "10.0.1.1", member("wp"), func(p *mesh.Workload) {
			p.Tunnel = &mesh.ApplicationTunnel{Protocol: mesh.TunnelProxy, Port: 15088}
		})
		web := service("web", "10.96.0.1", 80, 8080)
		web.Waypoint = &mesh.GatewayAddress{Host: mesh.NamespacedHostname{Namespace: "shop", Hostname: "wp.shop.svc"}, Port: 15008}
		w.apply(mesh.Batch{Services: []*mesh.Service{web, {Name: "wp", Namespace: "shop", Hostname: "wp.shop.svc"}}})
		headers := make(chan []byte, 1)
		loop := &pod{w: w, ip: netip.MustParseAddr("127.0.0.1")}
		defer func() { _ = loop.listeners[0].Close() }()
		loop.listen(15088, func(c *memnet.Conn) {
			head := make([]byte, 16)
			if _, err := io.ReadFull(c, head); err != nil {
				t.Error(err)
				return
			}
			rest := make([]byte, binary.BigEndian.Uint16(head[14:]))
			if _, err := io.ReadFull(c, rest); err != nil {
				t.Error(err)
				return
			}
			headers <- append(head, rest...)
			_, _ = io.Copy(c, c)
			_ = c.Close()
		})
		c := a.connect("10.96.0.1:80")
		say(t, c, "through the gateway")
		_ = c.Close()
		h := <-headers
		const id = "spiffe://cluster.local/ns/shop/sa/a"
		if string(h[:12]) != "\r\n\r\n\x00\r\nQUIT\n" || h[12] != 0x21 || h[13] != 0x11 {
			t.Errorf("header starts %x", h[:14])
		}
		src, dst := netip.AddrFrom4([4]byte(h[16:20])), netip.AddrFrom4([4]byte(h[20:24]))
		if src != a.ip || dst != netip.MustParseAddr("10.96.0.1") || binary.BigEndian.Uint16(h[26:28]) != 80 {
			t.Errorf("header says %s to %s:%d", src, dst, binary.BigEndian.Uint16(h[26:28]))
		}
		if tlv := h[28:]; tlv[0] != 0xD0 || int(binary.BigEndian.Uint16(tlv[1:3])) != len(id) || string(tlv[3:]) != id {
			t.Errorf("peer field %q", tlv)
		}
	})
}
