package netsys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/marrowmesh/marrow/internal/netsys/ruleset"
)

// Apply brings a set into force inside the namespace. Its tables replace those
// of the same names in one transaction; rules and routes that exist stay.
func (n *Netns) Apply(s ruleset.Set) error {
	if err := n.applyRouting(s); err != nil {
		return err
	}
	if len(s.Tables) == 0 {
		return nil
	}
	c, err := n.nft()
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	for _, t := range s.Tables {
		if err := addTable(c, t); err != nil {
			return fmt.Errorf("table %s in %v: %w", t.Name, n, err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("apply nftables in %v (needs CAP_NET_ADMIN and a kernel with nf_tables, inet nat and redirect): %w", n, err)
	}
	return nil
}

// Undo removes what Apply brought, as far as it is there: tables first, so
// that no packet is redirected to nowhere on the way.
func (n *Netns) Undo(s ruleset.Set) error {
	var errs []error
	if len(s.Tables) > 0 {
		c, err := n.nft()
		if err != nil {
			return err
		}
		defer func() { _ = c.CloseLasting() }()
		for _, t := range s.Tables {
			table := &nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet}
			c.AddTable(table) // makes the removal succeed where there is none
			c.DelTable(table)
		}
		if err := c.Flush(); err != nil {
			errs = append(errs, fmt.Errorf("remove nftables in %v: %w", n, err))
		}
	}
	return errors.Join(append(errs, n.undoRouting(s))...)
}

// Tables lists the names of the inet tables in the namespace.
func (n *Netns) Tables() ([]string, error) {
	c, err := n.nft()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.CloseLasting() }()
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables in %v: %w", n, err)
	}
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.Name
	}
	return names, nil
}

// Addrs lists the addresses of the namespace's interfaces.
func (n *Netns) Addrs() ([]netip.Addr, error) {
	var out []netip.Addr
	err := n.Do(func() error {
		list, err := net.InterfaceAddrs()
		for _, a := range list {
			if p, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(p.IP); ok {
					out = append(out, ip.Unmap())
				}
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("addresses in %v: %w", n, err)
	}
	return out, nil
}

func (n *Netns) nft() (*nftables.Conn, error) {
	var c *nftables.Conn
	// The library's own way into a namespace looks the thread up in /proc by
	// number, which fails where /proc shows another process namespace.
	err := n.Do(func() (err error) {
		c, err = nftables.New(nftables.AsLasting())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nftables in %v: %w", n, err)
	}
	return c, nil
}

func (n *Netns) route() (*netlink.Handle, error) {
	var h *netlink.Handle
	// For the same reason as in nft.
	err := n.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink in %v: %w", n, err)
	}
	return h, nil
}

func (n *Netns) applyRouting(s ruleset.Set) error {
	if len(s.Rules)+len(s.Locals) == 0 {
		return nil
	}
	h, err := n.route()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, r := range s.Rules {
		if err := h.RuleAdd(policyRule(r)); err != nil && !errors.Is(err, unix.EEXIST) && (!r.V6 || !errors.Is(err, unix.EAFNOSUPPORT)) {
			return fmt.Errorf("ip rule pref %d in %v: %w", r.Priority, n, err)
		}
	}
	for _, r := range s.Locals {
		route, err := localRoute(h, r)
		if err == nil {
			err = h.RouteReplace(route)
		}
		if err != nil {
			return fmt.Errorf("local route of table %d in %v: %w", r.Table, n, err)
		}
	}
	return nil
}

func (n *Netns) undoRouting(s ruleset.Set) error {
	if len(s.Rules)+len(s.Locals) == 0 {
		return nil
	}
	h, err := n.route()
	if err != nil {
		return err
	}
	defer h.Close()
	var errs []error
	for _, r := range s.Rules {
		if err := h.RuleDel(policyRule(r)); err != nil && !missing(err) {
			errs = append(errs, fmt.Errorf("remove ip rule pref %d in %v: %w", r.Priority, n, err))
		}
	}
	for _, r := range s.Locals {
		route, err := localRoute(h, r)
		if err == nil {
			err = h.RouteDel(route)
		}
		if err != nil && !missing(err) {
			errs = append(errs, fmt.Errorf("remove local route of table %d in %v: %w", r.Table, n, err))
		}
	}
	return errors.Join(errs...)
}

func missing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EAFNOSUPPORT)
}

func ipFamily(v6 bool) int {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func policyRule(r ruleset.PolicyRule) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family = ipFamily(r.V6)
	rule.Mark = r.Mark
	rule.Mask = &r.Mask
	rule.Priority = r.Priority
	rule.Table = r.Table
	return rule
}

func localRoute(h *netlink.Handle, r ruleset.LocalRoute) (*netlink.Route, error) {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("loopback: %w", err)
	}
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if r.V6 {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: all, Table: r.Table, Type: unix.RTN_LOCAL,
		Scope: netlink.SCOPE_HOST, Family: ipFamily(r.V6),
	}, nil
}

func addTable(c *nftables.Conn, t ruleset.Table) error {
	table := &nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	for i, s := range t.Sets {
		set := &nftables.Set{Table: table, ID: uint32(i + 1), Name: s.Name, KeyType: nftables.TypeIPAddr}
		if s.V6 {
			set.KeyType = nftables.TypeIP6Addr
		}
		var elements []nftables.SetElement
		for _, e := range s.Elements {
			elements = append(elements, nftables.SetElement{Key: e.Addr.AsSlice(), Comment: e.Comment})
		}
		if err := c.AddSet(set, elements); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	// A jump needs its target: chains first, then their rules.
	chains := make([]*nftables.Chain, len(t.Chains))
	for i, ch := range t.Chains {
		chain := &nftables.Chain{Table: table, Name: ch.Name}
		if ch.Hook != "" {
			chain.Type = nftables.ChainType(ch.Kind)
			chain.Hooknum = hooknum(ch.Hook)
			chain.Priority = new(nftables.ChainPriority(ch.Priority))
		}
		chains[i] = c.AddChain(chain)
	}
	for i, ch := range t.Chains {
		for _, r := range ch.Rules {
			exprs, err := expressions(r)
			if err != nil {
				return fmt.Errorf("chain %s: rule %q: %w", ch.Name, r, err)
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: chains[i], Exprs: exprs})
		}
	}
	return nil
}

func hooknum(h ruleset.Hook) *nftables.ChainHook {
	switch h {
	case ruleset.Prerouting:
		return nftables.ChainHookPrerouting
	case ruleset.Output:
		return nftables.ChainHookOutput
	case ruleset.Postrouting:
		return nftables.ChainHookPostrouting
	}
	return nil
}

func expressions(r ruleset.Rule) ([]expr.Any, error) {
	var out []expr.Any
	for _, m := range r.If {
		e, err := matchExpr(m)
		if err != nil {
			return nil, err
		}
		out = append(out, e...)
	}
	out = append(out, &expr.Counter{})
	for _, a := range r.Then {
		e, err := actionExpr(a)
		if err != nil {
			return nil, err
		}
		out = append(out, e...)
	}
	return out, nil
}

func cmpOp(not bool) expr.CmpOp {
	if not {
		return expr.CmpOpNeq
	}
	return expr.CmpOpEq
}

func native32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func matchExpr(m ruleset.Match) ([]expr.Any, error) {
	eq := func(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	switch m := m.(type) {
	case ruleset.Family:
		if m.V6 {
			return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, eq(unix.NFPROTO_IPV6)}, nil
		}
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, eq(unix.NFPROTO_IPV4)}, nil
	case ruleset.Proto:
		proto := map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[m.Name]
		if proto == 0 {
			return nil, fmt.Errorf("protocol %q", m.Name)
		}
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, eq(proto)}, nil
	case ruleset.Addr:
		return addrExpr(m), nil
	case ruleset.Port:
		offset := uint32(0)
		if m.Dst {
			offset = 2
		}
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
			&expr.Cmp{Op: cmpOp(m.Not), Register: 1, Data: binary.BigEndian.AppendUint16(nil, m.Port)},
		}, nil
	case ruleset.Interface:
		key := expr.MetaKeyIIFNAME
		if m.Out {
			key = expr.MetaKeyOIFNAME
		}
		name := make([]byte, unix.IFNAMSIZ)
		if copy(name[:len(name)-1], m.Name) != len(m.Name) {
			return nil, fmt.Errorf("interface name %q is longer than %d bytes", m.Name, unix.IFNAMSIZ-1)
		}
		return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: cmpOp(m.Not), Register: 1, Data: name}}, nil
	case ruleset.Mark:
		var load expr.Any = &expr.Meta{Key: expr.MetaKeyMARK, Register: 1}
		if m.Conn {
			load = &expr.Ct{Key: expr.CtKeyMARK, Register: 1}
		}
		return []expr.Any{
			load,
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(m.Mask), Xor: native32(0)},
			&expr.Cmp{Op: cmpOp(m.Not), Register: 1, Data: native32(m.Value)},
		}, nil
	case ruleset.MidStream:
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsOffset, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpSYN}, Xor: []byte{0}},
			eq(0),
		}, nil
	case ruleset.Owner:
		return []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: 1}, eq(native32(m.UID)...)}, nil
	case ruleset.InSet:
		return []expr.Any{loadAddr(true, m.V6), &expr.Lookup{SourceRegister: 1, SetName: m.Set}}, nil
	}
	return nil, fmt.Errorf("match %T is not known", m)
}

// Where the TCP header has its flags, and which is SYN (RFC 9293, section 3.1).
const (
	tcpFlagsOffset = 13
	tcpSYN         = 0x02
)

func loadAddr(dst, v6 bool) *expr.Payload {
	p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	if v6 {
		p.Offset, p.Len = 8, 16
	}
	if dst {
		p.Offset += p.Len
	}
	return p
}

func addrExpr(m ruleset.Addr) []expr.Any {
	a := m.Prefix.Addr()
	out := []expr.Any{loadAddr(m.Dst, a.Is6())}
	if !m.Prefix.IsSingleIP() {
		size := uint32(a.BitLen() / 8)
		out = append(out, &expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: size,
			Mask: net.CIDRMask(m.Prefix.Bits(), a.BitLen()), Xor: make([]byte, size),
		})
	}
	return append(out, &expr.Cmp{Op: cmpOp(m.Not), Register: 1, Data: m.Prefix.Masked().Addr().AsSlice()})
}

func actionExpr(a ruleset.Action) ([]expr.Any, error) {
	switch a := a.(type) {
	case ruleset.Accept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}, nil
	case ruleset.Return:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}, nil
	case ruleset.Jump:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: a.Chain}}, nil
	case ruleset.Redirect:
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, a.Port)},
			&expr.Redir{RegisterProtoMin: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
		}, nil
	case ruleset.SourceNAT:
		family := uint32(unix.NFPROTO_IPV4)
		if a.Addr.Is6() {
			family = unix.NFPROTO_IPV6
		}
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: a.Addr.AsSlice()},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: 1},
		}, nil
	case ruleset.SetConnMark:
		return []expr.Any{
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(^a.Mask), Xor: native32(a.Value)},
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
		}, nil
	case ruleset.RestoreMark:
		return []expr.Any{
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
		}, nil
	case ruleset.Zone:
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint16(a.ID)},
			&expr.Ct{Key: expr.CtKeyZONE, Register: 1, SourceRegister: true},
		}, nil
	}
	return nil, fmt.Errorf("action %T is not known", a)
}
