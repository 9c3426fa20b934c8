package match

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// TestEveryEscape: two spellings of one byte must not be two paths, or a policy for the one misses the other;
// and no byte may become another.
func TestEveryEscape(t *testing.T) {
	const plainBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~"
	for c := 1; c < 256; c++ {
		want := fmt.Sprintf("/x%%%02Xy", c)
		if c < 0x80 && (strings.IndexByte(plainBytes, byte(c)) >= 0 || c == '.') {
			want = "/x" + string(rune(c)) + "y"
		}
		for _, format := range []string{"/x%%%02xy", "/x%%%02Xy"} {
			in := fmt.Sprintf(format, c)
			if got, _, err := (Normalization{Base: true}).Apply(in); err != nil || got != want {
				t.Errorf("%s becomes %q, %v; want %s", in, got, err, want)
			}
		}
	}
	for _, bad := range []string{"/%0g", "/%g0", "/%0G", "/%:0", "/%0/", "/%0@", "/%0`"} {
		if got, _, err := (Normalization{Base: true}).Apply(bad); err == nil {
			t.Errorf("%s becomes %q", bad, got)
		}
	}
}

// TestOldFormsOfHeaderMatchers: a control plane may still send them, and each is another comparison.
func TestOldFormsOfHeaderMatchers(t *testing.T) {
	regex := func(s string) *matcherv3.RegexMatcher { return &matcherv3.RegexMatcher{Regex: s} }
	for _, tc := range []struct {
		name string
		m    *routev3.HeaderMatcher
		hits string // of abc, ab, bc, xbx
	}{
		{"exact", &routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_ExactMatch{ExactMatch: "ab"}}, "ab"},                    //nolint:staticcheck // control planes may still send the old form
		{"prefix", &routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_PrefixMatch{PrefixMatch: "ab"}}, "abc ab"},             //nolint:staticcheck // control planes may still send the old form
		{"suffix", &routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_SuffixMatch{SuffixMatch: "bc"}}, "abc bc"},             //nolint:staticcheck // control planes may still send the old form
		{"contains", &routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_ContainsMatch{ContainsMatch: "b"}}, "abc ab bc xbx"}, //nolint:staticcheck // control planes may still send the old form
		{"regex", &routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_SafeRegexMatch{SafeRegexMatch: regex("x.x")}}, "xbx"},   //nolint:staticcheck // control planes may still send the old form
		{"presence by silence", &routev3.HeaderMatcher{}, "abc ab bc xbx"},
	} {
		tc.m.Name = "x-a"
		h, err := CompileHeader(tc.m)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range []string{"abc", "ab", "bc", "xbx"} {
			if h.Match(&Request{Header: http.Header{"X-A": {v}}}) {
				got = append(got, v)
			}
		}
		if strings.Join(got, " ") != tc.hits {
			t.Errorf("%s hits %q, want %q", tc.name, got, tc.hits)
		}
		if h.Match(&Request{Header: http.Header{}}) {
			t.Errorf("%s hits a missing header", tc.name)
		}
	}
	within, err := CompileHeader(&routev3.HeaderMatcher{
		Name: "x-a", HeaderMatchSpecifier: &routev3.HeaderMatcher_RangeMatch{RangeMatch: &typev3.Int64Range{Start: 0, End: 10}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for v, want := range map[string]bool{"-1": false, "0": true, "9": true, "10": false, "many": false, "": false} {
		if within.Match(&Request{Header: http.Header{"X-A": {v}}}) != want {
			t.Errorf("%q in [0,10) is not %v", v, want)
		}
	}
}

// TestState: each key has its own value, and an absent one is not the empty text.
func TestState(t *testing.T) {
	q := &Request{Principal: "peer", Local: "local", Connect: "authority"}
	for key, want := range map[string]string{StatePeerPrincipal: "peer", StateLocalPrincipal: "local", StateAuthority: "authority"} {
		if got, ok := q.State(key); got != want || !ok || !KnownState(key) {
			t.Errorf("%s is %q, %v", key, got, ok)
		}
		if _, ok := (&Request{}).State(key); ok {
			t.Errorf("%s of nobody is there", key)
		}
	}
	if _, ok := q.State("other"); ok || KnownState("other") {
		t.Error("an unknown key has a value")
	}
}
