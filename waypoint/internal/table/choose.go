package table

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networkinputs "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// node is one step of the choice of a chain: *ranges, *exact, *prefixes or leaf.
type node interface {
	find(c Conn) (chain string, o outcome)
}

type outcome uint8

const (
	notHere outcome = iota
	found
	lookFirst // the first bytes decide
)

type leaf string

func (l leaf) find(Conn) (string, outcome) { return string(l), found }

// ranges chooses by destination IP: the first range that holds it and has an answer.
type ranges struct {
	rows      []rangeRow
	otherwise node
}

type rangeRow struct {
	prefixes  []netip.Prefix
	exclusive bool
	then      node
}

func (r *ranges) find(c Conn) (string, outcome) {
	if ip := c.Destination.Addr().Unmap(); ip.IsValid() {
		for i := range r.rows {
			row := &r.rows[i]
			if !row.has(ip) {
				continue
			}
			if name, o := row.then.find(c); o != notHere || row.exclusive {
				return name, o
			}
		}
	}
	return fallback(r.otherwise, c)
}

func (r *rangeRow) has(ip netip.Addr) bool {
	for _, p := range r.prefixes {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

func fallback(n node, c Conn) (string, outcome) {
	if n == nil {
		return "", notHere
	}
	return n.find(c)
}

// exact chooses by one value of the connection.
type exact struct {
	input     input
	then      map[string]node
	otherwise node
}

type input uint8

const (
	inputPort input = iota
	inputProtocol
	inputAuthority
)

func (e *exact) find(c Conn) (string, outcome) {
	switch e.input {
	case inputPort:
		if c.Destination.IsValid() {
			if n, ok := e.then[strconv.Itoa(int(c.Destination.Port()))]; ok {
				return n.find(c)
			}
		}
	case inputAuthority:
		if n, ok := e.then[c.Authority]; ok {
			return n.find(c)
		}
	case inputProtocol:
		if c.Protocol == Unseen {
			return "", lookFirst
		}
		for _, a := range c.Protocol.alpn() {
			if n, ok := e.then["'"+a+"'"]; ok {
				return n.find(c)
			}
		}
	}
	return fallback(e.otherwise, c)
}

// compileMatcher compiles a filter chain matcher. known tells whether a chain of that name exists.
func compileMatcher(m *xdsmatcher.Matcher, known func(string) bool) (node, error) {
	if err := strict.Only(m, "matcher_tree", "on_no_match"); err != nil {
		return nil, err
	}
	otherwise, err := compileOnMatch(m.GetOnNoMatch(), known)
	if err != nil {
		return nil, fmt.Errorf("on_no_match: %w", err)
	}
	tree := m.GetMatcherTree()
	if tree == nil {
		if otherwise == nil {
			return nil, fmt.Errorf("matcher has no tree")
		}
		return otherwise, nil
	}
	switch t := tree.GetTreeType().(type) {
	case *xdsmatcher.Matcher_MatcherTree_ExactMatchMap:
		in, err := compileInput(tree.GetInput())
		if err != nil {
			return nil, err
		}
		e := &exact{input: in, then: map[string]node{}, otherwise: otherwise}
		for k, v := range t.ExactMatchMap.GetMap() {
			n, err := compileOnMatch(v, known)
			if err != nil {
				return nil, fmt.Errorf("exact_match_map[%q]: %w", k, err)
			}
			e.then[k] = n
		}
		return e, nil
	case *xdsmatcher.Matcher_MatcherTree_CustomMatch:
		if got := tree.GetInput().GetTypedConfig(); !got.MessageIs(&networkinputs.DestinationIPInput{}) {
			return nil, fmt.Errorf("input %s of an IP match: %w", got.GetTypeUrl(), strict.ErrUnsupported)
		}
		return compileRanges(t.CustomMatch, otherwise, known)
	}
	return nil, fmt.Errorf("matcher tree %T: %w", tree.GetTreeType(), strict.ErrUnsupported)
}

func compileRanges(p *xdscore.TypedExtensionConfig, otherwise node, known func(string) bool) (node, error) {
	m := &xdsmatcher.IPMatcher{}
	if err := strict.Unpack(p.GetTypedConfig(), m, "range_matchers"); err != nil {
		return nil, err
	}
	out := &ranges{otherwise: otherwise}
	for i, rm := range m.GetRangeMatchers() {
		row := rangeRow{exclusive: rm.GetExclusive()}
		for _, r := range rm.GetRanges() {
			pre, err := prefix(r.GetAddressPrefix(), int(r.GetPrefixLen().GetValue()), r.GetPrefixLen() != nil)
			if err != nil {
				return nil, fmt.Errorf("range_matchers[%d]: %w", i, err)
			}
			row.prefixes = append(row.prefixes, pre)
		}
		n, err := compileOnMatch(rm.GetOnMatch(), known)
		if err != nil {
			return nil, fmt.Errorf("range_matchers[%d]: %w", i, err)
		}
		if n == nil {
			return nil, fmt.Errorf("range_matchers[%d] has no on_match", i)
		}
		row.then = n
		out.rows = append(out.rows, row)
	}
	return out, nil
}

func prefix(addr string, bits int, given bool) (netip.Prefix, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("range %q: %w", addr, err)
	}
	a = a.Unmap()
	if !given {
		bits = 0 // an unset length is zero, as in Envoy
	}
	pre, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("range %s/%d: %w", addr, bits, err)
	}
	return pre, nil
}

func compileOnMatch(p *xdsmatcher.Matcher_OnMatch, known func(string) bool) (node, error) {
	if p == nil {
		return nil, nil
	}
	if err := strict.Only(p, "matcher", "action"); err != nil {
		return nil, err
	}
	if p.GetMatcher() != nil {
		return compileMatcher(p.GetMatcher(), known)
	}
	v := &wrapperspb.StringValue{}
	if err := strict.Unpack(p.GetAction().GetTypedConfig(), v, "value"); err != nil {
		return nil, fmt.Errorf("action: %w", err)
	}
	if !known(v.GetValue()) {
		return nil, fmt.Errorf("action names the chain %q, which the listener does not have", v.GetValue())
	}
	return leaf(v.GetValue()), nil
}

func compileInput(p *xdscore.TypedExtensionConfig) (input, error) {
	a := p.GetTypedConfig()
	switch name := a.GetTypeUrl(); name[strings.LastIndexByte(name, '/')+1:] {
	case "envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput":
		return inputPort, nil
	case "envoy.extensions.matching.common_inputs.network.v3.ApplicationProtocolInput":
		return inputProtocol, nil
	case "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput":
		return filterStateInput(a)
	default:
		return 0, fmt.Errorf("matcher input %s: %w", name, strict.ErrUnsupported)
	}
}

func filterStateInput(a *anypb.Any) (input, error) {
	m := &networkinputs.FilterStateInput{}
	if err := strict.Unpack(a, m, "key"); err != nil {
		return 0, err
	}
	if m.GetKey() != match.StateAuthority {
		return 0, fmt.Errorf("matcher input filter state %q: %w", m.GetKey(), strict.ErrUnsupported)
	}
	return inputAuthority, nil
}

// compileClassic compiles the older way to choose a chain: a filter_chain_match in every chain.
func compileClassic(chains []*listenerv3.FilterChain) (node, error) {
	var otherwise node
	root := &ranges{}
	for _, c := range chains {
		m := c.GetFilterChainMatch()
		if err := strict.Only(m, "prefix_ranges", "destination_port", "application_protocols"); err != nil {
			return nil, fmt.Errorf("chain %q: %w", c.GetName(), err)
		}
		var n node = leaf(c.GetName())
		if ps := m.GetApplicationProtocols(); len(ps) > 0 {
			e := &exact{input: inputProtocol, then: map[string]node{}}
			for _, p := range ps {
				e.then["'"+p+"'"] = n
			}
			n = e
		}
		if p := m.GetDestinationPort(); p != nil {
			n = &exact{input: inputPort, then: map[string]node{strconv.Itoa(int(p.GetValue())): n}}
		}
		if len(m.GetPrefixRanges()) == 0 {
			if otherwise == nil {
				otherwise = n
			}
			continue
		}
		row := rangeRow{then: n}
		for _, r := range m.GetPrefixRanges() {
			pre, err := prefix(r.GetAddressPrefix(), int(r.GetPrefixLen().GetValue()), r.GetPrefixLen() != nil)
			if err != nil {
				return nil, fmt.Errorf("chain %q: %w", c.GetName(), err)
			}
			row.prefixes = append(row.prefixes, pre)
		}
		root.rows = append(root.rows, row)
	}
	root.otherwise = otherwise
	return root, nil
}
