package match

import (
	"fmt"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Header is a compiled condition on one header or pseudo header.
type Header struct {
	name    string
	value   String
	numbers *typev3.Int64Range
	absent  bool // the header has to be absent
	empty   bool // a missing header counts as the empty string
	invert  bool
}

// Match reports whether q meets the condition.
func (h *Header) Match(q *Request) bool {
	v, ok := q.Get(h.name)
	switch {
	case h.absent:
		return !ok != h.invert
	case h.value.kind == present && h.numbers == nil:
		return ok != h.invert
	case !ok && !h.empty:
		return false // as in Envoy: a value condition on a missing header fails, inverted or not
	}
	return h.matchValue(v) != h.invert
}

func (h *Header) matchValue(v string) bool {
	if h.numbers == nil {
		return h.value.Match(v)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
	return err == nil && n >= h.numbers.GetStart() && n < h.numbers.GetEnd()
}

// CompileHeaders compiles a list whose members must all match.
func CompileHeaders(ps []*routev3.HeaderMatcher) ([]Header, error) {
	out := make([]Header, 0, len(ps))
	for _, p := range ps {
		h, err := CompileHeader(p)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// CompileHeader compiles Envoy's HeaderMatcher, the deprecated direct forms included.
func CompileHeader(p *routev3.HeaderMatcher) (Header, error) {
	name := p.GetName()
	if name == "" {
		return Header{}, fmt.Errorf("header matcher has no name")
	}
	h := Header{name: canonical(name), invert: p.GetInvertMatch(), empty: p.GetTreatMissingHeaderAsEmpty()}
	if err := strict.Only(p, "name", "invert_match", "treat_missing_header_as_empty", "exact_match", "safe_regex_match",
		"range_match", "present_match", "prefix_match", "suffix_match", "contains_match", "string_match"); err != nil {
		return Header{}, fmt.Errorf("header %q: %w", name, err)
	}
	var err error
	switch m := p.GetHeaderMatchSpecifier().(type) {
	case nil:
		h.value = String{kind: present}
	case *routev3.HeaderMatcher_PresentMatch:
		h.absent, h.value = !m.PresentMatch, String{kind: present}
	case *routev3.HeaderMatcher_ExactMatch:
		h.value = text(exact, m.ExactMatch, false) //nolint:staticcheck // control planes may still send the old form
	case *routev3.HeaderMatcher_PrefixMatch:
		h.value = text(prefix, m.PrefixMatch, false) //nolint:staticcheck // control planes may still send the old form
	case *routev3.HeaderMatcher_SuffixMatch:
		h.value = text(suffix, m.SuffixMatch, false) //nolint:staticcheck // control planes may still send the old form
	case *routev3.HeaderMatcher_ContainsMatch:
		h.value = text(contains, m.ContainsMatch, false) //nolint:staticcheck // control planes may still send the old form
	case *routev3.HeaderMatcher_RangeMatch:
		h.numbers = m.RangeMatch
	case *routev3.HeaderMatcher_SafeRegexMatch:
		h.value, err = CompileRegex(m.SafeRegexMatch) //nolint:staticcheck // control planes may still send the old form
	case *routev3.HeaderMatcher_StringMatch:
		h.value, err = CompileString(m.StringMatch)
	default:
		err = fmt.Errorf("matcher %T: %w", m, strict.ErrUnsupported)
	}
	if err != nil {
		return Header{}, fmt.Errorf("header %q: %w", name, err)
	}
	return h, nil
}

// All reports whether every condition holds.
func All(hs []Header, q *Request) bool {
	for i := range hs {
		if !hs[i].Match(q) {
			return false
		}
	}
	return true
}

// Query is a compiled condition on one query parameter.
type Query struct {
	name  string
	value String
}

// Match reports whether q has the parameter with a value that fits; the first of equal names counts.
func (m *Query) Match(q *Request) bool {
	for rest := q.Query; rest != ""; {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		k, v, _ := strings.Cut(pair, "=")
		if k == m.name {
			return m.value.Match(v)
		}
	}
	return false
}

// CompileQuery compiles Envoy's QueryParameterMatcher. Values are compared as they are on the wire, not decoded, as in Envoy.
func CompileQuery(p *routev3.QueryParameterMatcher) (Query, error) {
	if err := strict.Only(p, "name", "string_match", "present_match"); err != nil {
		return Query{}, err
	}
	out := Query{name: p.GetName(), value: String{kind: present}}
	switch m := p.GetQueryParameterMatchSpecifier().(type) {
	case nil, *routev3.QueryParameterMatcher_PresentMatch:
		if p.GetQueryParameterMatchSpecifier() != nil && !p.GetPresentMatch() {
			return Query{}, fmt.Errorf("query parameter %q: absence: %w", out.name, strict.ErrUnsupported)
		}
	case *routev3.QueryParameterMatcher_StringMatch:
		s, err := CompileString(m.StringMatch)
		if err != nil {
			return Query{}, fmt.Errorf("query parameter %q: %w", out.name, err)
		}
		out.value = s
	}
	return out, nil
}
