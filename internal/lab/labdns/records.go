package labdns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	// Domain is the cluster's domain.
	Domain = "cluster.local."

	// ttl is short: the lab changes under its users' hands.
	ttl = 5
)

// Records is everything the server knows.
type Records struct {
	Services []Service
	Pods     []Pod
}

// Service is one Service's names.
type Service struct {
	Name, Namespace string
	// Addrs are the virtual addresses; for a headless Service those of its
	// ready pods.
	Addrs []netip.Addr
	// ExternalName makes the name an alias; the other fields are then unused.
	ExternalName string
	Ports        []Port
	// Hosts are the pods of a headless Service that have a hostname.
	Hosts []Host
}

// Port is a named port of a Service, for SRV records.
type Port struct {
	Name     string
	Protocol string // tcp or udp
	Port     uint16
}

// Host is one pod behind a headless Service.
type Host struct {
	Name  string
	Addrs []netip.Addr
}

// Pod is one pod's addresses.
type Pod struct {
	Namespace string
	Addrs     []netip.Addr
}

// node is what one name has.
type node struct {
	addrs []netip.Addr
	alias string
	srv   []target
}

type target struct {
	host string
	port uint16
}

// zone maps lower-case, fully qualified names to what they have. Names that
// only stand above others are there too, empty.
type zone map[string]*node

func (z zone) at(name string) *node {
	name = strings.ToLower(name)
	n, ok := z[name]
	if !ok {
		n = &node{}
		z[name] = n
		// Above: "svc.cluster.local." exists because something is below it.
		if _, parent, found := strings.Cut(name, "."); found && strings.HasSuffix(parent, Domain) {
			z.at(parent)
		}
	}
	return n
}

func newZone(r Records) zone {
	z := zone{}
	z.at(Domain)
	for _, s := range r.Services {
		z.service(s)
	}
	for _, p := range r.Pods {
		for _, a := range p.Addrs {
			n := z.at(podLabel(a) + "." + p.Namespace + ".pod." + Domain)
			n.addrs = append(n.addrs, a.Unmap())
		}
	}
	return z
}

func (z zone) service(s Service) {
	name := s.Name + "." + s.Namespace + ".svc." + Domain
	n := z.at(name)
	if s.ExternalName != "" {
		n.alias = dns.Fqdn(s.ExternalName)
		return
	}
	for _, a := range s.Addrs {
		n.addrs = append(n.addrs, a.Unmap())
	}
	hosts := []string{name}
	if len(s.Hosts) > 0 {
		hosts = nil
	}
	for _, h := range s.Hosts {
		full := h.Name + "." + name
		z.at(full).addrs = slices.Clone(h.Addrs)
		hosts = append(hosts, full)
	}
	for _, p := range s.Ports {
		if p.Name == "" {
			continue
		}
		srv := z.at("_" + p.Name + "._" + strings.ToLower(p.Protocol) + "." + name)
		for _, h := range hosts {
			srv.srv = append(srv.srv, target{host: strings.ToLower(h), port: p.Port})
		}
	}
}

// podLabel writes an address as the first label of a pod's name.
func podLabel(a netip.Addr) string {
	a = a.Unmap()
	if a.Is4() {
		return strings.ReplaceAll(a.String(), ".", "-")
	}
	return strings.ReplaceAll(a.String(), ":", "-")
}

// answer makes the response to one query.
func (z zone) answer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		return m.SetRcode(q, dns.RcodeNotImplemented)
	}
	m.SetReply(q)
	m.Authoritative = true
	m.RecursionAvailable = true // clients that insist on it would give up otherwise
	question := q.Question[0]
	if question.Qclass != dns.ClassINET && question.Qclass != dns.ClassANY {
		m.Rcode = dns.RcodeRefused
		return m
	}
	n, ok := z[strings.ToLower(question.Name)]
	if !ok {
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{soa()}
		return m
	}
	m.Answer = z.records(question.Name, question.Qtype, n, &m.Extra)
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{soa()}
	}
	return m
}

func (z zone) records(name string, kind uint16, n *node, extra *[]dns.RR) []dns.RR {
	if n.alias != "" {
		out := []dns.RR{&dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: n.alias}}
		if end, ok := z[strings.ToLower(n.alias)]; ok && end.alias == "" {
			out = append(out, addresses(n.alias, kind, end.addrs)...)
		}
		return out
	}
	out := addresses(name, kind, n.addrs)
	if kind != dns.TypeSRV && kind != dns.TypeANY {
		return out
	}
	for _, t := range n.srv {
		out = append(out, &dns.SRV{Hdr: header(name, dns.TypeSRV), Weight: 100, Port: t.port, Target: t.host})
		if end, ok := z[t.host]; ok {
			*extra = append(*extra, addresses(t.host, dns.TypeANY, end.addrs)...)
		}
	}
	return out
}

func addresses(name string, kind uint16, addrs []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range addrs {
		switch {
		case a.Is4() && (kind == dns.TypeA || kind == dns.TypeANY):
			out = append(out, &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
		case a.Is6() && (kind == dns.TypeAAAA || kind == dns.TypeANY):
			out = append(out, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return out
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// soa lets resolvers remember absence no longer than presence.
func soa() dns.RR {
	return &dns.SOA{
		Hdr: header(Domain, dns.TypeSOA), Ns: "ns.dns." + Domain, Mbox: "hostmaster." + Domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}
