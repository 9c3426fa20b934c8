package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addr is an address ready to use: no duplicate address detection.
func addr(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipnet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// alone is the prefix that holds just this address.
func alone(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// side is one end of a veth pair: what it gets, in order.
type side struct {
	h      *netlink.Handle
	name   string
	addrs  []netip.Prefix
	routes []netlink.Route // LinkIndex is filled in
}

func (s side) setUp() error {
	link, err := s.h.LinkByName(s.name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", s.name, err)
	}
	for _, a := range s.addrs {
		if err := s.h.AddrAdd(link, addr(a)); err != nil {
			return fmt.Errorf("add address %v to %s: %w", a, s.name, err)
		}
	}
	if err := s.h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", s.name, err)
	}
	for _, r := range s.routes {
		if r.Type != unix.RTN_UNREACHABLE {
			r.LinkIndex = link.Attrs().Index
		}
		if err := s.h.RouteReplace(&r); err != nil {
			return fmt.Errorf("add route %v: %w", r, err)
		}
	}
	return own(s.h, s.addrs)
}

// own waits until the kernel delivers packets for the addresses locally. A
// work queue does that for IPv6, some time after the address was added: a
// connection which the namespace opens to itself before leaves by the default
// route, and keeps trying that way for all its life.
func own(h *netlink.Handle, addrs []netip.Prefix) error {
	look := time.NewTicker(time.Millisecond) // nothing tells of it
	defer look.Stop()
	deadline := time.Now().Add(10 * time.Second)
	for _, a := range addrs {
		for a.Addr().Is6() {
			routes, err := h.RouteGet(a.Addr().AsSlice())
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				return errors.Join(fmt.Errorf("address %v is not in use 10 s after it was added (last route %v)", a.Addr(), routes), err)
			}
			<-look.C
		}
	}
	return nil
}

// onLink is a route to an address that is directly at the other end.
func onLink(to netip.Prefix) netlink.Route {
	return netlink.Route{Dst: ipnet(to), Scope: netlink.SCOPE_LINK}
}

// via is a route through a gateway; src, if valid, is the source for packets
// that the host itself sends.
func via(to netip.Prefix, gateway, src netip.Addr) netlink.Route {
	r := netlink.Route{Dst: ipnet(to), Gw: gateway.AsSlice()}
	if src.IsValid() {
		r.Src = src.AsSlice()
	}
	return r
}

func anywhere(like netip.Addr) netip.Prefix {
	if like.Is6() {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// loopback brings lo up and gives it the addresses.
func loopback(h *netlink.Handle, addrs ...netip.Prefix) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	for _, a := range addrs {
		if err := h.AddrReplace(lo, addr(a)); err != nil {
			return fmt.Errorf("add address %v to lo: %w", a, err)
		}
	}
	return own(h, addrs)
}

// withHandle runs fn with a netlink socket inside the namespace.
func (n *Netns) withHandle(fn func(*netlink.Handle) error) error {
	h, err := n.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

func (n *Netns) handle() (*netlink.Handle, error) {
	var h *netlink.Handle
	err := n.Do(func() error {
		var err error
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fabric: netlink in %s: %w", n.name, err)
	}
	return h, nil
}

// families drops IPv6 values where the fabric has none.
func (f *Fabric) families(list ...netip.Prefix) []netip.Prefix {
	out := list[:0]
	for _, p := range list {
		if f.ipv6 || p.Addr().Is4() {
			out = append(out, p)
		}
	}
	return out
}

func (f *Fabric) routes(list ...netlink.Route) []netlink.Route {
	out := list[:0]
	for _, r := range list {
		if f.ipv6 || r.Dst.IP.To4() != nil {
			out = append(out, r)
		}
	}
	return out
}

// prepareFabric gives the fabric's loopback the DNS addresses.
func (f *Fabric) prepareFabric() error {
	err := f.ns.withHandle(func(h *netlink.Handle) error {
		return loopback(h, f.families(alone(DNS4()), alone(DNS6()))...)
	})
	if err != nil {
		return fmt.Errorf("fabric: %w", err)
	}
	return nil
}

// serviceRoutes lets programs in the fabric itself use Services: a packet must
// have a route before the rules that rewrite its destination see it. The
// source must be an address to which pods can answer.
func (f *Fabric) serviceRoutes() error {
	first := f.nodes[0]
	err := f.ns.withHandle(func(h *netlink.Handle) error {
		return side{h: h, name: first.Link, routes: f.routes(
			via(ServiceCIDR4(), first.Node4.Addr(), first.Fabric4.Addr()),
			via(ServiceCIDR6(), first.Node6.Addr(), first.Fabric6.Addr()),
		)}.setUp()
	})
	if err != nil {
		return fmt.Errorf("fabric: routes to Services: %w", err)
	}
	return nil
}

func (f *Fabric) addNode(index int, name string) error {
	plan, err := PlanNode(index, name)
	if err != nil {
		return err
	}
	ns, err := NewNetns("node " + name)
	if err != nil {
		return err
	}
	if err := ns.apply(settings(f.ipv6, true)); err != nil {
		return errors.Join(err, ns.Close())
	}
	h, err := ns.handle()
	if err != nil {
		return errors.Join(err, ns.Close())
	}
	// From here on Close takes the node down.
	f.nodes = append(f.nodes, &Node{Plan: plan, ns: ns, h: h})
	if err := f.joinNode(plan, ns, h); err != nil {
		return fmt.Errorf("fabric: join node %s: %w", name, err)
	}
	return nil
}

func (f *Fabric) joinNode(p Plan, ns *Netns, h *netlink.Handle) error {
	return f.ns.withHandle(func(fh *netlink.Handle) error {
		if err := fh.LinkAdd(veth(p.Link, "eth0", ns)); err != nil {
			return fmt.Errorf("add link %s: %w", p.Link, err)
		}
		if err := loopback(h); err != nil {
			return err
		}
		fabricSide := side{
			h: fh, name: p.Link,
			addrs: f.families(p.Fabric4, p.Fabric6),
			routes: f.routes(
				via(p.Pods4, p.Node4.Addr(), netip.Addr{}),
				via(p.Pods6, p.Node6.Addr(), netip.Addr{}),
			),
		}
		nodeSide := side{
			h: h, name: "eth0",
			addrs: f.families(p.Node4, p.Node6),
			routes: f.routes(
				via(anywhere(p.Fabric4.Addr()), p.Fabric4.Addr(), netip.Addr{}),
				via(anywhere(p.Fabric6.Addr()), p.Fabric6.Addr(), netip.Addr{}),
				// An address of this node that no pod has is refused here;
				// the default route would send it round and round.
				netlink.Route{Dst: ipnet(p.Pods4), Type: unix.RTN_UNREACHABLE},
				netlink.Route{Dst: ipnet(p.Pods6), Type: unix.RTN_UNREACHABLE},
			),
		}
		return errors.Join(nodeSide.setUp(), fabricSide.setUp())
	})
}

func veth(name, peer string, peerNS *Netns) *netlink.Veth {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = MTU
	return &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerMTU: MTU, PeerNamespace: netlink.NsFd(peerNS.FD())}
}

func (f *Fabric) connectPod(n *Node, key string, number int) (*PodNet, error) {
	ns, err := NewNetns("pod " + key)
	if err != nil {
		return nil, err
	}
	p := &PodNet{Key: key, Node: n.Name, IP4: n.Pod4(number), Iface: fmt.Sprintf("p%d", number), ns: ns, number: number}
	if f.ipv6 {
		p.IP6 = n.Pod6(number)
	}
	if err := ns.apply(settings(f.ipv6, false)); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	if err := ns.withHandle(func(h *netlink.Handle) error { return f.joinPod(n, p, h, number) }); err != nil {
		// Without its namespace the link ends by itself.
		return nil, errors.Join(fmt.Errorf("fabric: connect pod %s to node %s: %w", key, n.Name, err), ns.Close())
	}
	return p, nil
}

func (f *Fabric) joinPod(n *Node, p *PodNet, h *netlink.Handle, number int) error {
	if err := n.h.LinkAdd(veth(p.Iface, "eth0", p.ns)); err != nil {
		return fmt.Errorf("add link %s: %w", p.Iface, err)
	}
	if err := loopback(h); err != nil {
		return err
	}
	gw4, gw6 := n.Gateway4(), n.Gateway6()
	ip6 := n.Pod6(number)
	nodeSide := side{
		h: n.h, name: p.Iface,
		addrs:  f.families(alone(gw4), alone(gw6)),
		routes: f.routes(onLink(alone(p.IP4)), onLink(alone(ip6))),
	}
	podSide := side{
		h: h, name: "eth0",
		addrs: f.families(alone(p.IP4), alone(ip6)),
		routes: f.routes(
			onLink(alone(gw4)), via(anywhere(gw4), gw4, netip.Addr{}),
			onLink(alone(gw6)), via(anywhere(gw6), gw6, netip.Addr{}),
		),
	}
	return errors.Join(nodeSide.setUp(), podSide.setUp())
}

func (f *Fabric) disconnectPod(n *Node, p *PodNet) error {
	link, err := n.h.LinkByName(p.Iface)
	if err != nil {
		return fmt.Errorf("fabric: pod %s: find link %s on %s: %w", p.Key, p.Iface, n.Name, err)
	}
	if err := n.h.LinkDel(link); err != nil {
		return fmt.Errorf("fabric: pod %s: remove link %s on %s: %w", p.Key, p.Iface, n.Name, err)
	}
	return nil
}

// clearFabric removes the fabric's links; the nodes' own end with them.
func (f *Fabric) clearFabric() error {
	return f.ns.withHandle(func(h *netlink.Handle) error {
		var errs []error
		for _, n := range f.nodes {
			link, err := h.LinkByName(n.Link)
			if err != nil {
				if _, gone := errors.AsType[netlink.LinkNotFoundError](err); !gone {
					errs = append(errs, err)
				}
				continue
			}
			errs = append(errs, h.LinkDel(link))
		}
		return errors.Join(errs...)
	})
}
