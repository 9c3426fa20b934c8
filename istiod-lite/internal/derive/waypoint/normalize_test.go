package waypoint

import (
	"regexp"
	"strings"
	"testing"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	meshapi "istio.io/api/mesh/v1alpha1"
)

// TestPathNormalization: every value of the mesh's setting reaches every HTTP chain in the fields of a stock Envoy.
func TestPathNormalization(t *testing.T) {
	const keep, forward = hcmv3.HttpConnectionManager_KEEP_UNCHANGED, hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
	type fields struct {
		normalize, merge bool
		escaped          hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction
	}
	for value, want := range map[meshapi.MeshConfig_ProxyPathNormalization_NormalizationType]fields{
		meshapi.MeshConfig_ProxyPathNormalization_DEFAULT:                  {true, false, keep},
		meshapi.MeshConfig_ProxyPathNormalization_NONE:                     {false, false, keep},
		meshapi.MeshConfig_ProxyPathNormalization_BASE:                     {true, false, keep},
		meshapi.MeshConfig_ProxyPathNormalization_MERGE_SLASHES:            {true, true, keep},
		meshapi.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES: {true, true, forward},
		99: {true, true, forward}, // of a newer API: the strictest that is known
	} {
		in := parseWorld(t, []byte("service web.shop 10.96.0.1 80/http"), nil)
		in.Mesh.Config = &meshapi.MeshConfig{PathNormalization: &meshapi.MeshConfig_ProxyPathNormalization{Normalization: value}}
		r, _ := Derive(in)
		seen := 0
		for _, c := range r.Listeners[MainInternal].GetFilterChains() {
			for _, f := range c.GetFilters() {
				m := &hcmv3.HttpConnectionManager{}
				if f.GetTypedConfig().UnmarshalTo(m) != nil {
					continue
				}
				seen++
				if got := (fields{m.GetNormalizePath().GetValue(), m.GetMergeSlashes(), m.GetPathWithEscapedSlashesAction()}); got != want {
					t.Errorf("%v, chain %s: %+v, want %+v", value, c.GetName(), got, want)
				}
			}
		}
		if seen != 2 {
			t.Errorf("%v: %d connection managers", value, seen)
		}
	}
}

// TestHostSpellings: a host in a rule that refuses means all its spellings, in a rule that lets through only itself.
func TestHostSpellings(t *testing.T) {
	matches := func(wide bool, v, host string) bool {
		p, err := hostMatch(wide)(v)
		if err != nil {
			t.Fatal(err)
		}
		m := p.GetHeader().GetStringMatch()
		switch {
		case p.GetHeader().GetPresentMatch():
			return host != ""
		case m.GetSafeRegex() != nil:
			return regexp.MustCompile(`\A(?:` + m.GetSafeRegex().GetRegex() + `)\z`).MatchString(host)
		case m.GetPrefix() != "":
			return strings.HasPrefix(strings.ToLower(host), strings.ToLower(m.GetPrefix()))
		case m.GetSuffix() != "":
			return strings.HasSuffix(strings.ToLower(host), strings.ToLower(m.GetSuffix()))
		}
		return strings.EqualFold(m.GetExact(), host)
	}
	for _, c := range []struct {
		v, host              string
		refuses, letsThrough bool
	}{
		{"a.example", "a.example", true, true},
		{"a.example", "A.Example", true, true},
		{"a.example", "a.example:80", true, false},
		{"a.example", "a.example.", true, false},
		{"a.example", "a.example.:8080", true, false},
		{"a.example", "xa.example", false, false},
		{"a.example", "aXexample", false, false},
		{"a.example", "a.example.com", false, false},
		{"*.example", "a.example:80", true, false},
		{"*.example", "b.a.example", true, true},
		{"*.example", "example", false, false},
		{"a.example*", "a.example:80", true, true},
		{"a.example:80", "a.example:80", true, true},
		{"a.example:80", "a.example:81", false, false},
		{"[::1]", "[::1]:80", true, false},
		{"*", "anything:1", true, true},
	} {
		if got := matches(true, c.v, c.host); got != c.refuses {
			t.Errorf("refusing %q, host %q: %v", c.v, c.host, got)
		}
		if got := matches(false, c.v, c.host); got != c.letsThrough {
			t.Errorf("letting through %q, host %q: %v", c.v, c.host, got)
		}
	}
}
