package redirect

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/marrowmesh/marrow/internal/netsys/ruleset"
)

// The numbers that the agent and the node proxy share.
const (
	OutboundPort = 15001
	InboundPort  = 15006
	HBONEPort    = 15008
	DNSPort      = 15053
	ProxyMark    = 0x539 // on every socket of the proxy
	ReplyMark    = 0x111 // on connections that the proxy opened with the client's address
	MarkMask     = 0xfff // the rest of the mark belongs to others
	RouteTable   = 100
	RulePriority = 32764
)

// The tables and sets that this package owns.
const (
	NATTable    = "istio-ambient-nat"
	MangleTable = "istio-ambient-mangle"
	RawTable    = "istio-ambient-raw"
	ProbeSet4   = "istio-inpod-probes-v4"
	ProbeSet6   = "istio-inpod-probes-v6"
)

// Annotations of a pod that change its rules.
const (
	AnnotationBypassInbound = "ambient.istio.io/bypass-inbound-capture"
	AnnotationDNS           = "ambient.istio.io/dns-capture"
	AnnotationInterfaces    = "istio.io/reroute-virtual-interfaces"
)

const (
	zoneDNS    = 1
	dnsService = 53
)

// Options says how one pod is redirected.
type Options struct {
	Probe4        netip.Addr // source of the node's probes, IPv4
	Probe6        netip.Addr // source of the node's probes, IPv6
	IPv6          bool       // install IPv6 rules as well
	Loopback6     bool       // lo of the pod has IPv6: install its local route
	DNS           bool       // capture DNS
	BypassInbound bool       // leave inbound traffic alone
	Interfaces    []string   // virtual interfaces whose traffic counts as outbound
}

// For is the options with what the pod's annotations say. A value that is
// not understood changes nothing.
func (o Options) For(annotations map[string]string) Options {
	if v, err := strconv.ParseBool(annotations[AnnotationBypassInbound]); err == nil {
		o.BypassInbound = v
	}
	if v, err := strconv.ParseBool(annotations[AnnotationDNS]); err == nil {
		o.DNS = v
	}
	o.Interfaces = nil
	for name := range strings.SplitSeq(annotations[AnnotationInterfaces], ",") {
		if name = strings.TrimSpace(name); name != "" && len(name) < 16 {
			o.Interfaces = append(o.Interfaces, name)
		}
	}
	return o
}

// rules is a list with the conditions that its rules share.
type rules []ruleset.Rule

func (r *rules) add(then ruleset.Action, match ...ruleset.Match) {
	*r = append(*r, ruleset.Rule{If: match, Then: []ruleset.Action{then}})
}

// family is what differs between IPv4 and IPv6.
type family struct {
	v6       bool
	probe    netip.Addr
	loopback netip.Prefix
}

func (o Options) families() []family {
	out := []family{{probe: o.Probe4, loopback: netip.MustParsePrefix("127.0.0.1/32")}}
	if o.IPv6 {
		out = append(out, family{v6: true, probe: o.Probe6, loopback: netip.MustParsePrefix("::1/128")})
	}
	return out
}

func (f family) from(a netip.Addr) ruleset.Match {
	return ruleset.Addr{Prefix: netip.PrefixFrom(a, a.BitLen())}
}

func (f family) to(a netip.Addr) ruleset.Match {
	return ruleset.Addr{Dst: true, Prefix: netip.PrefixFrom(a, a.BitLen())}
}

func (f family) notLoopback() ruleset.Match {
	return ruleset.Addr{Dst: true, Not: true, Prefix: f.loopback}
}

// Pod is the rules inside a pod's namespace.
func Pod(o Options) ruleset.Set {
	set := ruleset.Set{
		Tables: []ruleset.Table{
			table(NATTable, ruleset.NAT, ruleset.NAT, -100, o.natPrerouting(), o.natOutput()),
			table(MangleTable, ruleset.Filter, ruleset.Route, -150, manglePrerouting(), mangleOutput()),
		},
		Rules:  []ruleset.PolicyRule{{Mark: ReplyMark, Mask: MarkMask, Priority: RulePriority, Table: RouteTable}},
		Locals: []ruleset.LocalRoute{{Table: RouteTable}},
	}
	if o.DNS {
		set.Tables = append(set.Tables, table(RawTable, ruleset.Filter, ruleset.Filter, -300, rawPrerouting(), rawOutput()))
	}
	if o.IPv6 {
		set.Rules = append(set.Rules, ruleset.PolicyRule{V6: true, Mark: ReplyMark, Mask: MarkMask, Priority: RulePriority, Table: RouteTable})
		if o.Loopback6 {
			set.Locals = append(set.Locals, ruleset.LocalRoute{V6: true, Table: RouteTable})
		}
	}
	return set
}

// Everything is what any options may have brought: what to remove.
func Everything() ruleset.Set {
	return Pod(Options{
		Probe4: netip.IPv4Unspecified(), Probe6: netip.IPv6Unspecified(), IPv6: true, Loopback6: true, DNS: true,
	})
}

func table(name string, pre, out ruleset.Kind, priority int, prerouting, output rules) ruleset.Table {
	const inPre, inOut = "istio-prerouting", "istio-output"
	return ruleset.Table{Name: name, Chains: []ruleset.Chain{
		{
			Name: "prerouting", Hook: ruleset.Prerouting, Kind: pre, Priority: priority,
			Rules: []ruleset.Rule{{Then: []ruleset.Action{ruleset.Jump{Chain: inPre}}}},
		},
		{
			Name: "output", Hook: ruleset.Output, Kind: out, Priority: priority,
			Rules: []ruleset.Rule{{Then: []ruleset.Action{ruleset.Jump{Chain: inOut}}}},
		},
		{Name: inPre, Rules: prerouting},
		{Name: inOut, Rules: output},
	}}
}

func tcp() ruleset.Match { return ruleset.Proto{Name: "tcp"} }
func udp() ruleset.Match { return ruleset.Proto{Name: "udp"} }
func fromProxy(yes bool) ruleset.Match {
	return ruleset.Mark{Value: ProxyMark, Mask: MarkMask, Not: !yes}
}

// adopt leaves connections alone that were open before the rules came: without
// rules the namespace tracked no connections, so that their next segment looks
// like a first one, and redirecting it would break them. Istio's rules lack this.
func (r *rules) adopt() { r.add(ruleset.Accept{}, tcp(), ruleset.MidStream{}) }

func (o Options) natPrerouting() rules {
	var r rules
	r.adopt()
	for _, name := range o.Interfaces {
		r.add(ruleset.Redirect{Port: OutboundPort}, ruleset.Interface{Name: name}, tcp(), fromProxy(false))
		r.add(ruleset.Return{}, ruleset.Interface{Name: name}, tcp())
	}
	if o.BypassInbound {
		return r
	}
	for _, f := range o.families() {
		r.add(ruleset.Accept{}, ruleset.Family{V6: f.v6}, f.from(f.probe), tcp())
	}
	for _, f := range o.families() {
		r.add(ruleset.Redirect{Port: InboundPort}, ruleset.Family{V6: f.v6}, f.notLoopback(), tcp(),
			ruleset.Port{Dst: true, Not: true, Port: HBONEPort}, fromProxy(false))
	}
	return r
}

func (o Options) natOutput() rules {
	var r rules
	r.adopt()
	toApp := ruleset.Mark{Value: ReplyMark, Mask: MarkMask}
	onLoopback := func(yes bool) ruleset.Match { return ruleset.Interface{Out: true, Not: !yes, Name: "lo"} }
	for _, f := range o.families() {
		r.add(ruleset.Accept{}, ruleset.Family{V6: f.v6}, f.to(f.probe), tcp())
	}
	if o.DNS {
		r.add(ruleset.Redirect{Port: DNSPort}, onLoopback(false), udp(), ruleset.Port{Dst: true, Port: dnsService}, fromProxy(false))
		for _, f := range o.families() {
			r.add(ruleset.Redirect{Port: DNSPort}, ruleset.Family{V6: f.v6}, f.notLoopback(), tcp(),
				ruleset.Port{Dst: true, Port: dnsService}, fromProxy(false))
		}
	}
	r.add(ruleset.Accept{}, tcp(), toApp)
	for _, f := range o.families() {
		r.add(ruleset.Accept{}, ruleset.Family{V6: f.v6}, f.notLoopback(), onLoopback(true))
	}
	for _, f := range o.families() {
		r.add(ruleset.Redirect{Port: OutboundPort}, ruleset.Family{V6: f.v6}, f.notLoopback(), tcp(), fromProxy(false))
	}
	return r
}

func manglePrerouting() rules {
	var r rules
	r.add(ruleset.SetConnMark{Value: ReplyMark, Mask: MarkMask}, fromProxy(true))
	return r
}

func mangleOutput() rules {
	var r rules
	r.add(ruleset.RestoreMark{}, ruleset.Mark{Conn: true, Value: ReplyMark, Mask: MarkMask})
	return r
}

func rawPrerouting() rules {
	var r rules
	r.add(ruleset.Zone{ID: zoneDNS}, udp(), fromProxy(false), ruleset.Port{Port: dnsService})
	return r
}

func rawOutput() rules {
	var r rules
	r.add(ruleset.Zone{ID: zoneDNS}, udp(), fromProxy(true), ruleset.Port{Dst: true, Port: dnsService})
	return r
}

// Enrolled is one address of an enrolled pod.
type Enrolled struct {
	Addr netip.Addr
	UID  string
}

// Node is the table of the node's own namespace: probes of the given users to
// enrolled pods get the probe address as their source.
func Node(o Options, probers []uint32, pods []Enrolled) ruleset.Set {
	pods = slices.SortedFunc(slices.Values(pods), func(a, b Enrolled) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.UID, b.UID))
	})
	pods = slices.CompactFunc(pods, func(a, b Enrolled) bool { return a.Addr == b.Addr })
	t := ruleset.Table{Name: NATTable}
	var r rules
	for _, f := range o.families() {
		s := ruleset.AddrSet{Name: ProbeSet4, V6: f.v6}
		if f.v6 {
			s.Name = ProbeSet6
		}
		for _, p := range pods {
			if p.Addr.Is6() == f.v6 {
				s.Elements = append(s.Elements, ruleset.Element{Addr: p.Addr, Comment: p.UID})
			}
		}
		t.Sets = append(t.Sets, s)
		for _, uid := range probers {
			r.add(ruleset.SourceNAT{Addr: f.probe}, ruleset.Family{V6: f.v6}, tcp(), ruleset.Owner{UID: uid}, ruleset.InSet{Set: s.Name, V6: f.v6})
		}
	}
	t.Chains = []ruleset.Chain{{Name: "postrouting", Hook: ruleset.Postrouting, Kind: ruleset.NAT, Priority: 100, Rules: r}}
	return ruleset.Set{Tables: []ruleset.Table{t}}
}
