package fabric

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	proxyMark   = 0x539
	spoofedMark = 0x111
	markMask    = 0xfff
)

// TestSpoofedDeliveryOverLo does in a fresh pod what a mesh proxy does to hand
// a connection to the application with the client's own address: a socket
// bound to the foreign address, its packets over lo, and the answers brought
// back over lo by a connection mark, a rule and a local route. The namespace
// keeps the kernel's defaults but for those of package doc.
func TestSpoofedDeliveryOverLo(t *testing.T) {
	f := lab(t)
	a, client := addPod(t, f, "node-1", "a"), addPod(t, f, "node-2", "client")
	for name, want := range map[string]string{"all/rp_filter": "0", "eth0/rp_filter": "0", "lo/accept_local": "0", "eth0/route_localnet": "0"} {
		err := a.Netns().Do(func() error {
			raw, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name)
			if got := strings.TrimSpace(string(raw)); err == nil && got != want {
				return fmt.Errorf("%s is %s, want %s", name, got, want)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	redirectAnswers(t, a.Netns(), f.IPv6())
	serve(t, a.Netns(), ":8080", "app")
	for i, ip := range a.Addrs() {
		from := client.Addrs()[i]
		d := net.Dialer{
			LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
			Control: func(_, _ string, c syscall.RawConn) error {
				var err error
				cerr := c.Control(func(fd uintptr) { err = transparent(int(fd), from.Is6()) })
				if cerr != nil {
					return cerr
				}
				return err
			},
		}
		var got string
		err := a.Netns().Do(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(ip, 8080).String())
			if err != nil {
				return err
			}
			defer c.Close()
			buf := make([]byte, 100)
			if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
				return err
			}
			n, err := c.Read(buf)
			got = string(buf[:n])
			return err
		})
		if want := fmt.Sprintf("app %v", from); err != nil || got != want {
			t.Errorf("delivery to %v as %v: %q, %v", ip, from, got, err)
		}
	}
}

func transparent(fd int, v6 bool) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, proxyMark); err != nil {
		return err
	}
	if v6 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
}

// redirectAnswers installs the marks, the rule and the route.
func redirectAnswers(t *testing.T, ns *Netns, ipv6 bool) {
	t.Helper()
	var c *nftables.Conn
	err := ns.Do(func() error {
		var err error
		c, err = nftables.New(nftables.AsLasting())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseLasting() }()
	table := c.AddTable(&nftables.Table{Name: "spoof", Family: nftables.TableFamilyINet})
	pre := c.AddChain(&nftables.Chain{Name: "pre", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle})
	out := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeRoute, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityMangle})
	native := binaryutil.NativeEndian.PutUint32
	masked := func(want uint32) []expr.Any {
		return []expr.Any{
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(markMask), Xor: native(0)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(want)},
		}
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: append(append([]expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}}, masked(proxyMark)...),
		&expr.Immediate{Register: 1, Data: native(spoofedMark)}, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})})
	c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: append(append([]expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}}, masked(spoofedMark)...),
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true})})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	families := map[int]netip.Addr{netlink.FAMILY_V4: netip.IPv4Unspecified()}
	if ipv6 {
		families[netlink.FAMILY_V6] = netip.IPv6Unspecified()
	}
	err = ns.withHandle(func(h *netlink.Handle) error {
		for family, zero := range families {
			mask := uint32(markMask)
			rule := netlink.NewRule()
			rule.Family, rule.Mark, rule.Mask, rule.Table, rule.Priority = family, spoofedMark, &mask, 100, 32764
			if err := h.RuleAdd(rule); err != nil {
				return err
			}
			route := &netlink.Route{Dst: ipnet(netip.PrefixFrom(zero, 0)), LinkIndex: 1, Table: 100, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}
			if err := h.RouteAdd(route); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
