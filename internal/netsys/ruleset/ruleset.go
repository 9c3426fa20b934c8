package ruleset

import (
	"fmt"
	"net/netip"
	"strings"
)

// Set is everything that one network namespace gets.
type Set struct {
	Tables []Table
	Rules  []PolicyRule
	Locals []LocalRoute
}

// Table is an nftables table of family inet.
type Table struct {
	Name   string
	Sets   []AddrSet
	Chains []Chain
}

// AddrSet is a named set of addresses of one family.
type AddrSet struct {
	Name     string
	V6       bool
	Elements []Element
}

// Element is one address and what it stands for.
type Element struct {
	Addr    netip.Addr
	Comment string
}

// Hook is where a base chain is called; "" makes a regular chain.
type Hook string

// The hooks in use.
const (
	Prerouting  Hook = "prerouting"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
)

// Kind is the type of a base chain.
type Kind string

// The types of base chains.
const (
	Filter Kind = "filter"
	NAT    Kind = "nat"
	Route  Kind = "route"
)

// Chain is a list of rules, called by a hook or by a jump.
type Chain struct {
	Name     string
	Hook     Hook
	Kind     Kind
	Priority int
	Rules    []Rule
}

// Rule does Then to packets that all of If match; each has a counter.
type Rule struct {
	If   []Match
	Then []Action
}

// PolicyRule sends marked packets to another route table.
type PolicyRule struct {
	V6         bool
	Mark, Mask uint32
	Priority   int
	Table      int
}

// LocalRoute delivers every destination locally, in one route table.
type LocalRoute struct {
	V6    bool
	Table int
}

// Match is one condition of a rule: a closed set.
type Match interface {
	fmt.Stringer
	match()
}

type (
	// Family matches IPv4 or IPv6 packets.
	Family struct{ V6 bool }
	// Proto matches "tcp" or "udp".
	Proto struct{ Name string }
	// Addr matches one end's address with a prefix.
	Addr struct {
		Dst    bool
		Not    bool
		Prefix netip.Prefix
	}
	// Port matches one end's port; it must follow a Proto.
	Port struct {
		Dst  bool
		Not  bool
		Port uint16
	}
	// Interface matches the name of the interface.
	Interface struct {
		Out  bool
		Not  bool
		Name string
	}
	// Mark matches the packet's mark or, with Conn, its connection's.
	Mark struct {
		Conn        bool
		Not         bool
		Value, Mask uint32
	}
	// MidStream matches TCP segments that do not open a connection: without the
	// flag SYN. It must follow Proto "tcp".
	MidStream struct{}
	// Owner matches packets of the sockets of a user.
	Owner struct{ UID uint32 }
	// InSet matches a destination address in a set of the table.
	InSet struct {
		Set string
		V6  bool
	}
)

func (Family) match()    {}
func (Proto) match()     {}
func (Addr) match()      {}
func (Port) match()      {}
func (Interface) match() {}
func (Mark) match()      {}
func (MidStream) match() {}
func (Owner) match()     {}
func (InSet) match()     {}

func op(not bool) string {
	if not {
		return "!= "
	}
	return ""
}

func pick(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}

func (m Family) String() string { return "meta nfproto " + pick(m.V6, "ipv6", "ipv4") }
func (m Proto) String() string  { return "meta l4proto " + m.Name }
func (m Addr) String() string {
	text := m.Prefix.String()
	if m.Prefix.IsSingleIP() {
		text = m.Prefix.Addr().String()
	}
	return pick(m.Prefix.Addr().Is6(), "ip6 ", "ip ") + pick(m.Dst, "daddr ", "saddr ") + op(m.Not) + text
}

func (m Port) String() string {
	return fmt.Sprintf("th %s %s%d", pick(m.Dst, "dport", "sport"), op(m.Not), m.Port)
}

func (m Interface) String() string {
	return fmt.Sprintf("%s %s%q", pick(m.Out, "oifname", "iifname"), op(m.Not), m.Name)
}

func (m Mark) String() string {
	return fmt.Sprintf("%s mark & %#x %s %#x", pick(m.Conn, "ct", "meta"), m.Mask, pick(m.Not, "!=", "=="), m.Value)
}
func (MidStream) String() string { return "tcp flags & syn == 0" }
func (m Owner) String() string   { return fmt.Sprintf("meta skuid %d", m.UID) }
func (m InSet) String() string   { return pick(m.V6, "ip6", "ip") + " daddr @" + m.Set }

// Action is what a rule does: a closed set.
type Action interface {
	fmt.Stringer
	action()
}

type (
	// Accept ends the hook for the packet.
	Accept struct{}
	// Return leaves the chain.
	Return struct{}
	// Jump calls another chain of the table.
	Jump struct{ Chain string }
	// Redirect sends the packet to a local port.
	Redirect struct{ Port uint16 }
	// SourceNAT gives the packet another source address.
	SourceNAT struct{ Addr netip.Addr }
	// SetConnMark writes bits of the connection's mark.
	SetConnMark struct{ Value, Mask uint32 }
	// RestoreMark copies the connection's mark to the packet.
	RestoreMark struct{}
	// Zone puts the packet into a connection tracking zone.
	Zone struct{ ID uint16 }
)

func (Accept) action()      {}
func (Return) action()      {}
func (Jump) action()        {}
func (Redirect) action()    {}
func (SourceNAT) action()   {}
func (SetConnMark) action() {}
func (RestoreMark) action() {}
func (Zone) action()        {}

func (Accept) String() string     { return "accept" }
func (Return) String() string     { return "return" }
func (a Jump) String() string     { return "jump " + a.Chain }
func (a Redirect) String() string { return fmt.Sprintf("redirect to :%d", a.Port) }
func (a SourceNAT) String() string {
	return fmt.Sprintf("snat %s to %s", pick(a.Addr.Is6(), "ip6", "ip"), a.Addr)
}

func (a SetConnMark) String() string {
	return fmt.Sprintf("ct mark set ct mark & %#x | %#x", ^a.Mask, a.Value)
}
func (RestoreMark) String() string { return "meta mark set ct mark" }
func (a Zone) String() string      { return fmt.Sprintf("ct zone set %d", a.ID) }

// String is one line as nft writes it.
func (r Rule) String() string {
	var parts []string
	for _, m := range r.If {
		parts = append(parts, m.String())
	}
	parts = append(parts, "counter")
	for _, a := range r.Then {
		parts = append(parts, a.String())
	}
	return strings.Join(parts, " ")
}

// String is the set in nft's and ip's languages.
func (s Set) String() string {
	var b strings.Builder
	for _, t := range s.Tables {
		t.write(&b)
	}
	for _, r := range s.Rules {
		fmt.Fprintf(&b, "ip %srule add fwmark %#x/%#x pref %d lookup %d\n", pick(r.V6, "-6 ", ""), r.Mark, r.Mask, r.Priority, r.Table)
	}
	for _, r := range s.Locals {
		fmt.Fprintf(&b, "ip %sroute add local %s dev lo table %d\n", pick(r.V6, "-6 ", ""), pick(r.V6, "::/0", "0.0.0.0/0"), r.Table)
	}
	return b.String()
}

func (t Table) write(b *strings.Builder) {
	fmt.Fprintf(b, "table inet %s {\n", t.Name)
	for _, s := range t.Sets {
		fmt.Fprintf(b, "\tset %s {\n\t\ttype %s\n", s.Name, pick(s.V6, "ipv6_addr", "ipv4_addr"))
		if len(s.Elements) > 0 {
			var el []string
			for _, e := range s.Elements {
				el = append(el, fmt.Sprintf("%s comment %q", e.Addr, e.Comment))
			}
			fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(el, ", "))
		}
		b.WriteString("\t}\n")
	}
	for _, c := range t.Chains {
		fmt.Fprintf(b, "\tchain %s {\n", c.Name)
		if c.Hook != "" {
			fmt.Fprintf(b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Kind, c.Hook, c.Priority)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
}
