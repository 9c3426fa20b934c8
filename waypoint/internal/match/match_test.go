package match

import (
	"net/http"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
)

func stringOf(p *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: "x-a", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: p}}
}

func with(h *routev3.HeaderMatcher, f func(*routev3.HeaderMatcher)) *routev3.HeaderMatcher {
	f(h)
	return h
}

func TestHeaderMatchers(t *testing.T) {
	exactB := func() *routev3.HeaderMatcher {
		return stringOf(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "b"}})
	}
	tests := []struct {
		name   string
		m      *routev3.HeaderMatcher
		header http.Header
		want   bool
	}{
		{"exact hit", exactB(), http.Header{"X-A": {"b"}}, true},
		{"exact is case sensitive", exactB(), http.Header{"X-A": {"B"}}, false},
		{"exact missing", exactB(), nil, false},
		{"inverted missing fails", with(exactB(), func(h *routev3.HeaderMatcher) { h.InvertMatch = true }), nil, false},
		{"inverted missing as empty", with(exactB(), func(h *routev3.HeaderMatcher) { h.InvertMatch, h.TreatMissingHeaderAsEmpty = true, true }), nil, true},
		{"inverted other value", with(exactB(), func(h *routev3.HeaderMatcher) { h.InvertMatch = true }), http.Header{"X-A": {"c"}}, true},
		{"several values join", stringOf(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "b,c"}}), http.Header{"X-A": {"b", "c"}}, true},
		{"prefix", stringOf(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "ab"}}), http.Header{"X-A": {"abc"}}, true},
		{"suffix folded", stringOf(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: "BC"}, IgnoreCase: true}), http.Header{"X-A": {"abc"}}, true},
		{"contains", stringOf(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: "b"}}), http.Header{"X-A": {"abc"}}, true},
		{"regex covers all", stringOf(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "b|c"}}}), http.Header{"X-A": {"bc"}}, false},
		{"present", &routev3.HeaderMatcher{Name: "x-a", HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}, http.Header{"X-A": {""}}, true},
		{"absent", &routev3.HeaderMatcher{Name: "x-a", HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: false}}, nil, true},
		{"no specifier is presence", &routev3.HeaderMatcher{Name: "x-a"}, nil, false},
		{"presence inverted", &routev3.HeaderMatcher{Name: "x-a", InvertMatch: true, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}, nil, true},
		{"range", &routev3.HeaderMatcher{Name: "x-a", HeaderMatchSpecifier: &routev3.HeaderMatcher_RangeMatch{RangeMatch: &typev3.Int64Range{Start: 1, End: 3}}}, http.Header{"X-A": {"2"}}, true},
		{"range end is open", &routev3.HeaderMatcher{Name: "x-a", HeaderMatchSpecifier: &routev3.HeaderMatcher_RangeMatch{RangeMatch: &typev3.Int64Range{Start: 1, End: 3}}}, http.Header{"X-A": {"3"}}, false},
		{"method", &routev3.HeaderMatcher{Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_ExactMatch{ExactMatch: "GET"}}, nil, true}, //nolint:staticcheck // control planes may still send the old form
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			h, err := CompileHeader(tc.m)
			if err != nil {
				t.Fatal(err)
			}
			if got := h.Match(&Request{Method: "GET", Header: tc.header}); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestRegexStandsAlone(t *testing.T) {
	for _, expr := range []string{"", "a)(b", "(", "[z-a]"} {
		if _, err := Regex(expr); err == nil {
			t.Errorf("%q was accepted", expr)
		}
	}
}

func TestQuery(t *testing.T) {
	m, err := CompileQuery(&routev3.QueryParameterMatcher{Name: "v", QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "2"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for q, want := range map[string]bool{"v=2": true, "a=1&v=2": true, "v=1&v=2": false, "": false, "w=2": false, "v": false} {
		if got := m.Match(&Request{Query: q}); got != want {
			t.Errorf("%q: got %v, want %v", q, got, want)
		}
	}
}

func TestFraction(t *testing.T) {
	f, err := CompileFraction(&typev3.FractionalPercent{Numerator: 25, Denominator: typev3.FractionalPercent_HUNDRED})
	if err != nil {
		t.Fatal(err)
	}
	if !f.Hit(func(uint64) uint64 { return 249_999 }) || f.Hit(func(uint64) uint64 { return 250_000 }) {
		t.Error("25 % is not a quarter of a million")
	}
	if f, _ = CompileFraction(&typev3.FractionalPercent{Numerator: 200}); f != Always {
		t.Errorf("more than all is all, got %d", f)
	}
	if _, err := CompileRuntime(&corev3.RuntimeFractionalPercent{RuntimeKey: "k"}); err == nil {
		t.Error("a runtime fraction without default was accepted")
	}
}

func TestNormalize(t *testing.T) {
	base := Normalization{Base: true}
	merge := Normalization{Base: true, MergeSlashes: true}
	decode := Normalization{Base: true, MergeSlashes: true, Slashes: SlashUnescape}
	tests := []struct {
		n        Normalization
		in, want string
	}{
		{base, "/", "/"},
		{base, "/a/b", "/a/b"},
		{base, "/a/./b", "/a/b"},
		{base, "/a/../b", "/b"},
		{base, "/../../b", "/b"},
		{base, "/a/..", "/"},
		{base, "/a/b/..", "/a/"},
		{base, "/a/.", "/a/"},
		{base, "/a/%2e%2E/b", "/b"},
		{base, "/a/.%2e/b", "/b"},
		{base, "/%61dmin", "/admin"},
		{base, "/a%2fb", "/a%2Fb"},
		{base, `/a\..\b`, "/b"},
		{base, "/a//b", "/a//b"},
		{base, "/a//../b", "/a/b"},
		{base, "/%252e%252e/a", "/%252e%252e/a"},
		{base, "/ä", "/%C3%A4"},
		{base, "/.well-known/x", "/.well-known/x"},
		{base, "/...", "/..."},
		{base, "/;x", "/;x"},
		{base, "/...;x/a;y", "/...;x/a;y"},
		{merge, "//a///b", "/a/b"},
		{decode, "/a%2F..%5Cb", "/b"},
		{Normalization{}, "/a/../b", "/a/../b"},
	}
	for _, tc := range tests {
		got, _, err := tc.n.Apply(tc.in)
		if err != nil || got != tc.want {
			t.Errorf("%+v %q: got %q, %v, want %q", tc.n, tc.in, got, err, tc.want)
		}
	}
	for _, bad := range []string{"/%", "/%2", "/%zz", "/%00", "/a b", "/a\x7f", "/a/..;/b", "/.;x", "/%2e%2e%3b/a", "/;x/a"} {
		if got, _, err := base.Apply(bad); err == nil {
			t.Errorf("%q became %q, want a refusal", bad, got)
		}
	}
	if _, _, err := (Normalization{Slashes: SlashReject}).Apply("/a%2fb"); err == nil {
		t.Error("an escaped slash passed")
	}
	if _, redirect, _ := (Normalization{Slashes: SlashRedirect}).Apply("/a%2fb"); !redirect {
		t.Error("an escaped slash was not redirected")
	}
}

func TestCheckAuthority(t *testing.T) {
	for _, good := range []string{"", "web", "web:80", "a_b.example.", "10.0.0.1:80", "[::1]", "[2001:db8::1]:443", "xn--a.example"} {
		if err := CheckAuthority(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"a@b", "a/b", "a b", "a,b", "a%2eb", "[a]", "[a]:80", "[::1", "[::1]x", "[1.2.3.4]", "a\\b", "a\x00", "\xc3\xa9", "*", "a?b", "a#b"} {
		if CheckAuthority(bad) == nil {
			t.Errorf("%q passed", bad)
		}
	}
}

func TestSplitTarget(t *testing.T) {
	tests := []struct {
		in, path, query string
		bad             bool
	}{
		{in: "/a?b=c?d", path: "/a", query: "b=c?d"},
		{in: "http://h/a?b", path: "/a", query: "b"},
		{in: "http://h", path: "/"},
		{in: "http://h?x", path: "/", query: "x"},
		{in: "*", path: "*"},
		{in: "/a#b", bad: true},
		{in: "a/b", bad: true},
		{in: "/a b", bad: true},
		{in: "/a?b HTTP/1.1", bad: true},
		{in: "/a?\x7f", bad: true},
	}
	for _, tc := range tests {
		p, q, err := SplitTarget(tc.in)
		if (err != nil) != tc.bad || p != tc.path || q != tc.query {
			t.Errorf("%q: got %q %q %v", tc.in, p, q, err)
		}
	}
}

func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/", `/\..\`, "/a//b/./", "/%2f%5c", "/\xff", "*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		path, _, err := SplitTarget(in)
		if err != nil || path == "*" {
			return
		}
		for _, n := range []Normalization{{Base: true}, {Base: true, MergeSlashes: true}, {Base: true, MergeSlashes: true, Slashes: SlashUnescape}} {
			once, _, err := n.Apply(path)
			if err != nil {
				continue
			}
			twice, _, err := n.Apply(once)
			if err != nil || twice != once {
				t.Fatalf("%q: once %q, twice %q, %v", path, once, twice, err)
			}
			for s := range strings.SplitSeq(once, "/") {
				if s == "." || s == ".." {
					t.Fatalf("%q kept a dot segment: %q", path, once)
				}
			}
			if !strings.HasPrefix(once, "/") {
				t.Fatalf("%q became %q", path, once)
			}
		}
	})
}

func FuzzCompileHeader(f *testing.F) {
	seed, _ := proto.Marshal(stringOf(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "a"}}))
	f.Add(seed)
	f.Fuzz(func(_ *testing.T, raw []byte) {
		p := &routev3.HeaderMatcher{}
		if proto.Unmarshal(raw, p) != nil {
			return
		}
		if h, err := CompileHeader(p); err == nil {
			h.Match(&Request{Header: http.Header{"A": {"1"}}})
		}
	})
}
