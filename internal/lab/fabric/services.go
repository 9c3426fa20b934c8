package fabric

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// Protocol of a Service port.
type Protocol uint8

// The protocols that Services balance; the values are the IP header's.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String is Kubernetes' name of the protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	default:
		return fmt.Sprintf("protocol %d", uint8(p))
	}
}

// Service is one set of virtual addresses.
type Service struct {
	Name  string       // for messages
	VIPs  []netip.Addr // of one or both families; none for a headless Service
	Ports []ServicePort
}

// ServicePort is one port of a Service and where it leads. Endpoints of both
// families may be mixed; each virtual address uses those of its own.
type ServicePort struct {
	Protocol  Protocol
	Port      uint16
	Endpoints []netip.AddrPort
}

type serviceState struct {
	mu        sync.Mutex
	datagrams datagrams // of the rules in force
}

// SetServices replaces all Services on every node and in the fabric. Each
// namespace changes in one transaction; established connections stay, UDP
// conversations with an endpoint that is gone go elsewhere.
//
// The DNS server's address is left out: the fabric itself answers there. A
// Service that cannot be programmed is named in the error and left out; the
// others are in force all the same.
func (f *Fabric) SetServices(services []Service) error {
	f.services.mu.Lock()
	defer f.services.mu.Unlock()
	set, err := compile(services, f.ipv6)
	old := stale{before: f.services.datagrams, now: datagramsOf(set)}
	f.services.datagrams = old.now
	errs := []error{err}
	for _, ns := range f.namespaces() {
		errs = append(errs, program(ns, set, f.ipv6))
		if old.now.lost(old.before) {
			errs = append(errs, old.forget(ns, f.ipv6))
		}
	}
	return errors.Join(errs...)
}

// namespaces are those in which Services can be reached from.
func (f *Fabric) namespaces() []*Netns {
	list := []*Netns{f.ns}
	for _, n := range f.nodes {
		list = append(list, n.ns)
	}
	return list
}

// spread is one virtual address and port and the endpoints it is spread over.
type spread struct {
	vip       netip.AddrPort
	protocol  Protocol
	endpoints []netip.AddrPort // at least one
}

// ruleset is what the rules of every namespace say, as a value. Everything
// else of the Service ranges is refused, so that a Service without endpoints
// needs no entry.
type ruleset struct {
	spreads []spread     // ordered by address, port, protocol
	hairpin []netip.Addr // endpoints, ordered: pods that may reach themselves
}

// compile turns Services into a ruleset. The same Services in any order give
// the same ruleset.
func compile(services []Service, ipv6 bool) (ruleset, error) {
	type key struct {
		vip      netip.AddrPort
		protocol Protocol
	}
	var (
		set   ruleset
		errs  []error
		owner = map[key]string{}
		seen  = map[netip.Addr]bool{}
	)
	for _, s := range services {
		for _, vip := range s.VIPs {
			vip = vip.Unmap()
			switch {
			case vip == DNS4(), vip == DNS6(), vip.Is6() && !ipv6:
				continue
			case !ServiceCIDR4().Contains(vip) && !ServiceCIDR6().Contains(vip):
				errs = append(errs, fmt.Errorf("fabric: service %s: address %v is outside the lab's Service ranges %v and %v; leave clusterIP empty", s.Name, vip, ServiceCIDR4(), ServiceCIDR6()))
				continue
			}
			for _, p := range s.Ports {
				k := key{netip.AddrPortFrom(vip, p.Port), p.Protocol}
				if first, ok := owner[k]; ok {
					errs = append(errs, fmt.Errorf("fabric: service %s: %v %v belongs to service %s already", s.Name, k.vip, p.Protocol, first))
					continue
				}
				owner[k] = s.Name
				endpoints := family(p.Endpoints, vip)
				if len(endpoints) == 0 {
					continue
				}
				set.spreads = append(set.spreads, spread{vip: k.vip, protocol: p.Protocol, endpoints: endpoints})
				for _, e := range endpoints {
					if !seen[e.Addr()] {
						seen[e.Addr()] = true
						set.hairpin = append(set.hairpin, e.Addr())
					}
				}
			}
		}
	}
	slices.SortFunc(set.spreads, func(a, b spread) int {
		return cmp.Or(a.vip.Compare(b.vip), cmp.Compare(a.protocol, b.protocol))
	})
	slices.SortFunc(set.hairpin, netip.Addr.Compare)
	return set, errors.Join(errs...)
}

// family picks, orders and deduplicates the endpoints of the address's family.
func family(list []netip.AddrPort, like netip.Addr) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range list {
		e = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
		if e.Addr().Is4() == like.Is4() {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}
