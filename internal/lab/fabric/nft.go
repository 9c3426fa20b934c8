package fabric

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	tableName = "marrow-lab"

	// chunk bounds the elements of one message: netlink counts an attribute's
	// length in 16 bits.
	chunk = 256

	icmpxPortUnreachable = 1 // NFT_REJECT_ICMPX_PORT_UNREACH
)

// ipFamily holds what differs between the families in a rule.
type ipFamily struct {
	tag         string // in set and chain names
	proto       byte   // meta nfproto
	size        uint32 // of an address
	saddr       uint32 // offset of the source address in the header
	daddr       uint32
	addrType    nftables.SetDatatype
	serviceCIDR netip.Prefix
	dns         netip.Addr
}

func families(ipv6 bool) []ipFamily {
	list := []ipFamily{{
		tag: "4", proto: unix.NFPROTO_IPV4, size: 4, saddr: 12, daddr: 16,
		addrType: nftables.TypeIPAddr, serviceCIDR: ServiceCIDR4(), dns: DNS4(),
	}}
	if ipv6 {
		list = append(list, ipFamily{
			tag: "6", proto: unix.NFPROTO_IPV6, size: 16, saddr: 8, daddr: 24,
			addrType: nftables.TypeIP6Addr, serviceCIDR: ServiceCIDR6(), dns: DNS6(),
		})
	}
	return list
}

func (fam ipFamily) has(a netip.Addr) bool { return a.Is4() == (fam.proto == unix.NFPROTO_IPV4) }

// batch collects one namespace's transaction.
type batch struct {
	c     *nftables.Conn
	table *nftables.Table
	sets  uint32 // set ids given out; the library's own counter is not safe for concurrent use
}

// program replaces the namespace's table in one transaction.
//
// The rules, per family:
//
//	nat prerouting, output:  address . protocol . port vmap @services4 { goto spread4-N }
//	spread4-N:               dnat to address . protocol . port . random mod N map @endpoints4
//	nat postrouting:         source . destination @hairpin4: masquerade
//	filter forward, output:  to a Service range: reject
//
// A packet still addressed to a Service range when the filter sees it has no
// endpoint.
func program(ns *Netns, set ruleset, ipv6 bool) error {
	var c *nftables.Conn
	// The library's own way into a namespace looks the thread up in /proc,
	// which fails where /proc still shows the host's processes.
	err := ns.Do(func() error {
		var err error
		c, err = nftables.New(nftables.AsLasting())
		return err
	})
	if err != nil {
		return fmt.Errorf("fabric: nftables in %s: %w", ns.Name(), err)
	}
	defer func() { _ = c.CloseLasting() }()
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	// Adding first makes the deletion succeed the first time too.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	b := &batch{c: c, table: table}
	if err := b.rules(set, families(ipv6)); err != nil {
		return fmt.Errorf("fabric: rules for %s: %w", ns.Name(), err)
	}
	if err := c.Flush(); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
			err = fmt.Errorf("%w; the lab needs a kernel with nf_tables (inet, nat, masq, reject, numgen): modprobe nf_tables nft_chain_nat nft_masq nft_reject_inet nft_numgen", err)
		}
		return fmt.Errorf("fabric: program Services in %s: %w", ns.Name(), err)
	}
	return nil
}

func (b *batch) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Name: name, Table: b.table, Type: kind, Hooknum: hook, Priority: prio})
}

func (b *batch) rule(chain *nftables.Chain, exprs ...[]expr.Any) {
	b.c.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: slices.Concat(exprs...)})
}

func (b *batch) rules(set ruleset, fams []ipFamily) error {
	pre := b.base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := b.base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	post := b.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	refuse := []*nftables.Chain{
		b.base("refuse-forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter),
		b.base("refuse-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter),
	}
	for _, fam := range fams {
		services, err := b.spreads(set, fam)
		if err != nil {
			return err
		}
		for _, chain := range []*nftables.Chain{pre, out} {
			b.rule(chain, fam.only(), fam.loadService(), verdictMap(services))
		}
		hairpin, err := b.hairpins(set, fam)
		if err != nil {
			return err
		}
		b.rule(post, fam.only(), fam.loadPair(), member(hairpin), []expr.Any{&expr.Masq{}})
		for _, chain := range refuse {
			b.rule(chain, fam.only(), fam.unserved(), protocolIs(TCP),
				[]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
			b.rule(chain, fam.only(), fam.unserved(),
				[]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: icmpxPortUnreachable}})
		}
	}
	return nil
}

// spreads adds the maps and chains that rewrite destinations; it answers with
// the verdict map.
func (b *batch) spreads(set ruleset, fam ipFamily) (*nftables.Set, error) {
	endpoints := b.set("endpoints"+fam.tag, fam.addrType, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeInteger)
	endpoints.IsMap = true
	endpoints.DataType = nftables.MustConcatSetType(fam.addrType, nftables.TypeInetService)
	services := b.set("services"+fam.tag, fam.addrType, nftables.TypeInetProto, nftables.TypeInetService)
	services.IsMap = true
	services.DataType = nftables.TypeVerdict

	var choices, entries []nftables.SetElement
	made := map[int]bool{}
	for _, s := range set.spreads {
		if !fam.has(s.vip.Addr()) {
			continue
		}
		n := len(s.endpoints)
		for i, e := range s.endpoints {
			choices = append(choices, nftables.SetElement{
				Key: append(serviceKey(s), binaryutil.NativeEndian.PutUint32(uint32(i))...),
				Val: append(e.Addr().AsSlice(), padPort(e.Port())...),
			})
		}
		entries = append(entries, nftables.SetElement{
			Key:         serviceKey(s),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: spreadChain(fam, n)},
		})
		made[n] = true
	}
	// The chains come after the map they look up and before the verdicts that
	// name them.
	if err := b.addSet(endpoints, choices); err != nil {
		return nil, err
	}
	for n := range made {
		chain := b.c.AddChain(&nftables.Chain{Name: spreadChain(fam, n), Table: b.table})
		b.rule(chain, fam.loadService(), fam.spread(n, endpoints))
	}
	return services, b.addSet(services, entries)
}

func spreadChain(fam ipFamily, n int) string { return fmt.Sprintf("spread%s-%d", fam.tag, n) }

func (b *batch) hairpins(set ruleset, fam ipFamily) (*nftables.Set, error) {
	pairs := b.set("hairpin"+fam.tag, fam.addrType, fam.addrType)
	var elements []nftables.SetElement
	for _, a := range set.hairpin {
		if fam.has(a) {
			elements = append(elements, nftables.SetElement{Key: append(a.AsSlice(), a.AsSlice()...)})
		}
	}
	return pairs, b.addSet(pairs, elements)
}

func (b *batch) set(name string, key ...nftables.SetDatatype) *nftables.Set {
	b.sets++
	return &nftables.Set{
		Table: b.table, Name: name, ID: b.sets,
		KeyType: nftables.MustConcatSetType(key...), Concatenation: true,
	}
}

func (b *batch) addSet(set *nftables.Set, elements []nftables.SetElement) error {
	if err := b.c.AddSet(set, nil); err != nil {
		return fmt.Errorf("set %s: %w", set.Name, err)
	}
	for part := range slices.Chunk(elements, chunk) {
		if err := b.c.SetAddElements(set, part); err != nil {
			return fmt.Errorf("elements of set %s: %w", set.Name, err)
		}
	}
	return nil
}

// serviceKey is address, protocol and port, each padded to whole registers.
func serviceKey(s spread) []byte {
	return slices.Concat(s.vip.Addr().AsSlice(), []byte{byte(s.protocol), 0, 0, 0}, padPort(s.vip.Port()))
}

func padPort(port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, port), 0, 0)
}

// The registers of a concatenation are four bytes each and follow each other.
const firstReg = unix.NFT_REG32_00

func (fam ipFamily) regs() uint32 { return fam.size / 4 }

// only matches the family's packets.
func (fam ipFamily) only() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: firstReg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstReg, Data: []byte{fam.proto}},
	}
}

func (fam ipFamily) load(offset, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: fam.size}
}

// loadService loads destination address, protocol and destination port.
func (fam ipFamily) loadService() []expr.Any {
	return []expr.Any{
		fam.load(fam.daddr, firstReg),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstReg + fam.regs()},
		&expr.Payload{DestRegister: firstReg + fam.regs() + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// loadPair loads source and destination address.
func (fam ipFamily) loadPair() []expr.Any {
	return []expr.Any{fam.load(fam.saddr, firstReg), fam.load(fam.daddr, firstReg+fam.regs())}
}

// spread picks one of n endpoints for the loaded service and rewrites the
// destination.
func (fam ipFamily) spread(n int, endpoints *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Numgen{Register: firstReg + fam.regs() + 2, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: firstReg, DestRegister: firstReg, IsDestRegSet: true, SetName: endpoints.Name, SetID: endpoints.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(fam.proto), RegAddrMin: firstReg, RegProtoMin: firstReg + fam.regs()},
	}
}

func verdictMap(services *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: firstReg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: services.Name, SetID: services.ID}}
}

func member(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: firstReg, SetName: set.Name, SetID: set.ID}}
}

// unserved matches destinations in the Service range that only an endpoint
// could have answered.
func (fam ipFamily) unserved() []expr.Any {
	mask := make([]byte, fam.size)
	for i := range fam.serviceCIDR.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		fam.load(fam.daddr, firstReg),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: firstReg, Data: fam.dns.AsSlice()},
		&expr.Bitwise{SourceRegister: firstReg, DestRegister: firstReg, Len: fam.size, Mask: mask, Xor: make([]byte, fam.size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstReg, Data: fam.serviceCIDR.Masked().Addr().AsSlice()},
	}
}

func protocolIs(p Protocol) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstReg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstReg, Data: []byte{byte(p)}},
	}
}
