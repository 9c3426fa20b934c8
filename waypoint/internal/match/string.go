package match

import (
	"fmt"
	"regexp"
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// String is a compiled condition on one string. The zero value matches nothing.
type String struct {
	kind kind
	text string // folded when fold is set
	re   *regexp.Regexp
	fold bool
}

type kind uint8

const (
	none kind = iota
	exact
	prefix
	suffix
	contains
	pattern
	present
)

// Match reports whether s meets the condition.
func (m String) Match(s string) bool {
	if m.fold {
		s = strings.ToLower(s)
	}
	switch m.kind {
	case none:
		return false
	case exact:
		return s == m.text
	case prefix:
		return strings.HasPrefix(s, m.text)
	case suffix:
		return strings.HasSuffix(s, m.text)
	case contains:
		return strings.Contains(s, m.text)
	case pattern:
		return m.re.MatchString(s)
	case present:
		return true
	}
	return false
}

// text makes a matcher of a kind on plain text.
func text(k kind, s string, fold bool) String {
	if fold {
		s = strings.ToLower(s)
	}
	return String{kind: k, text: s, fold: fold}
}

// Exactly matches s alone.
func Exactly(s string) String { return text(exact, s, false) }

// CompileString compiles Envoy's StringMatcher.
func CompileString(p *matcherv3.StringMatcher) (String, error) {
	if p == nil {
		return String{}, fmt.Errorf("string matcher is missing")
	}
	if err := strict.Only(p, "exact", "prefix", "suffix", "contains", "safe_regex", "ignore_case"); err != nil {
		return String{}, err
	}
	fold := p.GetIgnoreCase()
	switch m := p.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return text(exact, m.Exact, fold), nil
	case *matcherv3.StringMatcher_Prefix:
		return text(prefix, m.Prefix, fold), nil
	case *matcherv3.StringMatcher_Suffix:
		return text(suffix, m.Suffix, fold), nil
	case *matcherv3.StringMatcher_Contains:
		return text(contains, m.Contains, fold), nil
	case *matcherv3.StringMatcher_SafeRegex:
		return CompileRegex(m.SafeRegex) // ignore_case has no effect on a regex, as in Envoy
	default:
		return String{}, fmt.Errorf("string matcher has no pattern: %w", strict.ErrUnsupported)
	}
}

// CompileRegex compiles an RE2 pattern that has to cover the whole string.
func CompileRegex(p *matcherv3.RegexMatcher) (String, error) {
	if err := strict.Only(p, "google_re2", "regex"); err != nil {
		return String{}, err
	}
	re, err := Regex(p.GetRegex())
	if err != nil {
		return String{}, err
	}
	return String{kind: pattern, re: re}, nil
}

// Regex compiles an RE2 expression that has to cover the whole string.
func Regex(expr string) (*regexp.Regexp, error) {
	if expr == "" {
		return nil, fmt.Errorf("regex is empty: give an expression")
	}
	if _, err := regexp.Compile(expr); err != nil { // alone first: "a)(b" must not become valid by the group around it
		return nil, fmt.Errorf("regex %q: %w", expr, err)
	}
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("regex %q: %w", expr, err)
	}
	return re, nil
}
