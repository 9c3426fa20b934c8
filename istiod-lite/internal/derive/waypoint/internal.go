package waypoint

import (
	"maps"
	"net/netip"
	"slices"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// mainInternal holds the chains of every bound service and of the attached workloads, and the tree that chooses between
// them by the address and port that the tunnel's client asked for.
func (d *derivation) mainInternal() *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:              MainInternal,
		ListenerSpecifier: internalListener(),
		TrafficDirection:  corev3.TrafficDirection_INBOUND,
		AccessLog:         listenerAccessLog(),
		// A client that stays silent on an undeclared port may be waiting for the server to speak.
		ContinueOnListenerFiltersTimeout: true,
	}
	var ranges []*xdsmatcherv3.IPMatcher_IPRangeMatcher
	for i := range d.in.Services {
		s := &d.in.Services[i]
		if !s.Bound {
			continue
		}
		ports := map[string]*xdsmatcherv3.Matcher_OnMatch{}
		for _, p := range s.Ports {
			if p.Protocol == Ignored {
				continue
			}
			chains, choice := d.serviceChains(s, p)
			l.FilterChains = append(l.FilterChains, chains...)
			ports[decimal(p.Number)] = choice
		}
		// Envoy refuses a listener with an empty range list or map: a service without address is reached by its pods'.
		if len(s.VIPs) > 0 && len(ports) > 0 {
			ranges = append(ranges, &xdsmatcherv3.IPMatcher_IPRangeMatcher{
				Ranges:  hostRanges(s.VIPs),
				OnMatch: subtree(exactTree("port", &inputsv3.DestinationPortInput{}, ports)),
			})
		}
	}
	l.FilterChains = append(l.FilterChains, d.directChains()...)
	if addrs := d.workloadAddresses(); len(addrs) > 0 {
		ranges = append(ranges, &xdsmatcherv3.IPMatcher_IPRangeMatcher{
			Ranges:  hostRanges(addrs),
			OnMatch: sniffedChoice(directHTTP, directTCP),
		})
	}
	l.FilterChainMatcher = addressTree(ranges)
	l.ListenerFilters = d.listenerFilters()
	if f := d.nameInspector(); f != nil {
		l.ListenerFilters = append(l.ListenerFilters, f)
	}
	return l
}

func (d *derivation) workloadAddresses() []netip.Addr {
	var out []netip.Addr
	for _, w := range d.in.Workloads {
		out = append(out, w.Addresses...)
	}
	return out
}

// listenerFilters looks into the bytes only where the port's protocol is not declared, because that makes
// protocols in which the server speaks first wait.
func (d *derivation) listenerFilters() []*listenerv3.ListenerFilter {
	filters := []*listenerv3.ListenerFilter{originalDst()}
	declared, sniffed := map[uint32]bool{}, map[uint32]bool{}
	for _, s := range d.in.Services {
		for _, p := range s.Ports {
			switch {
			case !s.Bound || p.Protocol == Ignored:
			case p.Protocol == Sniffed:
				sniffed[p.Number] = true
			default:
				declared[p.Number] = true
			}
		}
	}
	if len(sniffed) == 0 && len(d.in.Workloads) == 0 {
		return filters
	}
	inspector := listenerFilter("envoy.filters.listener.http_inspector", &inspectorv3.HttpInspector{})
	if len(d.in.Workloads) == 0 {
		// Pod ports are not known here, so with attached workloads every connection is looked at.
		inspector.FilterDisabled = exceptPorts(declared, sniffed)
	}
	return append(filters, inspector)
}

// exceptPorts matches the ports of the first set that are not in the second. nil = there are none.
func exceptPorts(declared, sniffed map[uint32]bool) *listenerv3.ListenerFilterChainMatchPredicate {
	var rules []*listenerv3.ListenerFilterChainMatchPredicate
	for _, port := range sortedPorts(declared) {
		if sniffed[port] {
			continue
		}
		rules = append(rules, &listenerv3.ListenerFilterChainMatchPredicate{
			Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
				DestinationPortRange: &typev3.Int32Range{Start: int32(port), End: int32(port) + 1},
			},
		})
	}
	switch len(rules) {
	case 0:
		return nil
	case 1: // an or_match needs two
		return rules[0]
	}
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
	}}
}

func (d *derivation) serviceChains(s *Service, p Port) ([]*listenerv3.FilterChain, *xdsmatcherv3.Matcher_OnMatch) {
	httpName, tcpName := vipName(p.Number, true, "", s.Hostname), vipName(p.Number, false, "", s.Hostname)
	switch {
	case p.Protocol.isHTTP():
		return []*listenerv3.FilterChain{d.httpChain(httpName, s, p)}, chainChoice(httpName)
	case p.Protocol == TCP:
		return []*listenerv3.FilterChain{d.tcpChain(tcpName, s, p)}, chainChoice(tcpName)
	}
	return []*listenerv3.FilterChain{d.httpChain(httpName, s, p), d.tcpChain(tcpName, s, p)}, sniffedChoice(httpName, tcpName)
}

func chainChoice(name string) *xdsmatcherv3.Matcher_OnMatch {
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{
		Action: xdsExtension(name, wrapperspb.String(name)),
	}}
}

func sniffedChoice(http, tcp string) *xdsmatcherv3.Matcher_OnMatch {
	m := exactTree("application-protocol", &inputsv3.ApplicationProtocolInput{}, map[string]*xdsmatcherv3.Matcher_OnMatch{
		"'h2c'":      chainChoice(http),
		"'http/1.1'": chainChoice(http),
		"'http/1.0'": chainChoice(http),
	})
	m.OnNoMatch = chainChoice(tcp)
	return subtree(m)
}

func exactTree(name string, input proto.Message, branches map[string]*xdsmatcherv3.Matcher_OnMatch) *xdsmatcherv3.Matcher {
	return &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherTree_{
		MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
			Input: xdsExtension(name, input),
			TreeType: &xdsmatcherv3.Matcher_MatcherTree_ExactMatchMap{
				ExactMatchMap: &xdsmatcherv3.Matcher_MatcherTree_MatchMap{Map: branches},
			},
		},
	}}
}

func sortedPorts(set map[uint32]bool) []uint32 { return slices.Sorted(maps.Keys(set)) }

func subtree(m *xdsmatcherv3.Matcher) *xdsmatcherv3.Matcher_OnMatch {
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Matcher{Matcher: m}}
}

// addressTree is nil for a waypoint with nothing behind it; such a listener has only the direct chains and no way to
// reach them.
func addressTree(ranges []*xdsmatcherv3.IPMatcher_IPRangeMatcher) *xdsmatcherv3.Matcher {
	if len(ranges) == 0 {
		// A tree must have a branch. This address belongs to nobody (RFC 5737).
		ranges = []*xdsmatcherv3.IPMatcher_IPRangeMatcher{{
			Ranges:  hostRanges([]netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 255})}),
			OnMatch: chainChoice(directTCP),
		}}
	}
	return &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherTree_{
		MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
			Input: xdsExtension("ip", &inputsv3.DestinationIPInput{}),
			TreeType: &xdsmatcherv3.Matcher_MatcherTree_CustomMatch{
				CustomMatch: xdsExtension("ip", &xdsmatcherv3.IPMatcher{RangeMatchers: ranges}),
			},
		},
	}}
}

func hostRanges(addrs []netip.Addr) []*xdscorev3.CidrRange {
	out := make([]*xdscorev3.CidrRange, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, &xdscorev3.CidrRange{
			AddressPrefix: a.String(),
			PrefixLen:     wrapperspb.UInt32(uint32(a.BitLen())),
		})
	}
	return out
}
