package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// datagrams are the UDP endpoints of a ruleset by virtual address.
type datagrams map[netip.AddrPort]map[netip.AddrPort]bool

func datagramsOf(set ruleset) datagrams {
	d := datagrams{}
	for _, s := range set.spreads {
		if s.protocol != UDP {
			continue
		}
		d[s.vip] = map[netip.AddrPort]bool{}
		for _, e := range s.endpoints {
			d[s.vip][e] = true
		}
	}
	return d
}

// lost reports whether an endpoint of before is missing now.
func (d datagrams) lost(before datagrams) bool {
	for vip, endpoints := range before {
		for e := range endpoints {
			if !d[vip][e] {
				return true
			}
		}
	}
	return false
}

// stale picks the remembered UDP conversations with endpoints that are gone.
// A client that keeps sending from one port would otherwise never leave them.
type stale struct{ before, now datagrams }

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s stale) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != uint8(UDP) {
		return false
	}
	vip := addrPort(flow.Forward.DstIP, flow.Forward.DstPort)
	endpoint := addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort)
	return s.before[vip][endpoint] && !s.now[vip][endpoint]
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// forget drops what the namespace remembers of gone endpoints.
func (s stale) forget(ns *Netns, ipv6 bool) error {
	families := []netlink.InetFamily{unix.AF_INET}
	if ipv6 {
		families = append(families, unix.AF_INET6)
	}
	err := ns.withHandle(func(h *netlink.Handle) error {
		var errs []error
		for _, family := range families {
			_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, s)
			// A busy table is read as far as it stands still.
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("fabric: forget UDP conversations with gone endpoints in %s: %w", ns.Name(), err)
	}
	return nil
}
