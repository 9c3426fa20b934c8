package filters

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/marrowmesh/marrow/waypoint/internal/jwt"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// issuerKey signs for every issuer of these tests.
func issuerKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte("a seed that is 32 bytes in length"[:32]))
}

func keySet(t testing.TB) string {
	t.Helper()
	raw, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: issuerKey().Public(), KeyID: "k"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func token(t testing.TB, kid, claims string) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: issuerKey(), KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := o.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func inline(t testing.TB, p *jwtv3.JwtProvider) *jwtv3.JwtProvider {
	p.JwksSourceSpecifier = &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: keySet(t)}}}
	return p
}

func needs(name string) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: name}}
}

func anyOfThese(rs ...*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: rs}}}
}

func allOfThese(rs ...*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: rs}}}
}

func missing() *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}
}

func failed() *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissingOrFailed{AllowMissingOrFailed: &emptypb.Empty{}}}
}

// tokenFilter demands r below every path.
func tokenFilter(t testing.TB, r *jwtv3.JwtRequirement, providers map[string]*jwtv3.JwtProvider) *JWT {
	t.Helper()
	f, err := compileJWT(&jwtv3.JwtAuthentication{Providers: providers, Rules: []*jwtv3.RequirementRule{{
		Match:           &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		RequirementType: &jwtv3.RequirementRule_Requires{Requires: r},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func nothing(jwt.Source) *jwt.Keys { return nil }

func asking(header ...string) *match.Request {
	q := get()
	q.Header = http.Header{}
	for i := 0; i < len(header); i += 2 {
		q.Header.Add(header[i], header[i+1])
	}
	return q
}

// TestTokens: which tokens satisfy which demand.
func TestTokens(t *testing.T) {
	one := token(t, "k", `{"iss":"one","sub":"a","aud":["x","y"],"exp":4000000000}`)
	two := token(t, "k", `{"iss":"two","sub":"b"}`)
	bad := one[:len(one)-4] + "AAAA"
	providers := map[string]*jwtv3.JwtProvider{
		"one":  inline(t, &jwtv3.JwtProvider{Issuer: "one", Audiences: []string{"y"}, FromHeaders: []*jwtv3.JwtHeader{{Name: "one"}}, FromParams: []string{"p"}}),
		"two":  inline(t, &jwtv3.JwtProvider{Issuer: "two", FromHeaders: []*jwtv3.JwtHeader{{Name: "two"}}}),
		"both": inline(t, &jwtv3.JwtProvider{FromHeaders: []*jwtv3.JwtHeader{{Name: "any"}}}),
		"ends": inline(t, &jwtv3.JwtProvider{RequireExpiration: true, FromHeaders: []*jwtv3.JwtHeader{{Name: "any"}}}),
		"soon": inline(t, &jwtv3.JwtProvider{MaxLifetime: durationpb.New(time.Hour), FromHeaders: []*jwtv3.JwtHeader{{Name: "any"}}}),
		"subs": inline(t, &jwtv3.JwtProvider{Subjects: exactly("a"), FromHeaders: []*jwtv3.JwtHeader{{Name: "any"}}}),
	}
	withAudience := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderAndAudiences{
		ProviderAndAudiences: &jwtv3.ProviderWithAudiences{ProviderName: "one", Audiences: []string{"z"}},
	}}
	for _, tc := range []struct {
		name  string
		needs *jwtv3.JwtRequirement
		q     *match.Request
		want  jwt.Status
	}{
		{"wanted and there", needs("one"), asking("one", one), jwt.OK},
		{"wanted and missing", needs("one"), asking(), jwt.Missing},
		{"wanted and bad", needs("one"), asking("one", bad), jwt.VerificationFails},
		{"another issuer's", needs("one"), asking("one", two), jwt.UnknownIssuer},
		{"good and bad", needs("one"), asking("one", one, "one", bad), jwt.VerificationFails},
		{"bad and good", needs("one"), asking("one", bad, "one", one), jwt.VerificationFails},
		{"more than can be meant", needs("one"), asking(strings.Split(strings.Repeat("one|"+one+"|", maxTokens+1), "|")[:2*maxTokens+2]...), jwt.TooManyTokens},
		{"other audiences", withAudience, asking("one", one), jwt.AudienceNotAllowed},
		{"any issuer", needs("both"), asking("any", two), jwt.OK},
		{"has to end", needs("ends"), asking("any", one), jwt.OK},
		{"never ends", needs("ends"), asking("any", two), jwt.LifetimeNotAllowed},
		{"lives too long", needs("soon"), asking("any", one), jwt.LifetimeNotAllowed},
		{"ends soon", needs("soon"), asking("any", token(t, "k", fmt.Sprintf(`{"exp":%d}`, time.Now().Unix()+60))), jwt.OK},
		{"subject", needs("subs"), asking("any", one), jwt.OK},
		{"another subject", needs("subs"), asking("any", two), jwt.SubjectNotAllowed},
		{"either, first", anyOfThese(needs("one"), needs("two")), asking("one", one), jwt.OK},
		{"either, second", anyOfThese(needs("one"), needs("two")), asking("two", two), jwt.OK},
		{"either, none", anyOfThese(needs("one"), needs("two")), asking(), jwt.Missing},
		{"either, worst is told", anyOfThese(needs("one"), needs("two")), asking("one", bad), jwt.VerificationFails},
		{"both, both", allOfThese(needs("one"), needs("two")), asking("one", one, "two", two), jwt.OK},
		{"both, one", allOfThese(needs("one"), needs("two")), asking("one", one), jwt.Missing},
		{"optional, none", anyOfThese(needs("one"), missing()), asking(), jwt.OK},
		{"optional, bad", anyOfThese(needs("one"), missing()), asking("one", bad), jwt.VerificationFails},
		{"optional, another's", anyOfThese(needs("one"), missing()), asking("one", two), jwt.UnknownIssuer},
		{"bad is let through", anyOfThese(needs("one"), failed()), asking("one", bad), jwt.OK},
		{"all optional, none", missing(), asking(), jwt.OK},
		{"all optional, one bad", missing(), asking("one", bad, "two", two), jwt.VerificationFails},
		{"all may fail", failed(), asking("one", bad), jwt.OK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := tokenFilter(t, tc.needs, providers).Judge(tc.q, nothing, time.Now())
			if v.Status != tc.want {
				t.Errorf("%v, want %v", v.Status, tc.want)
			}
		})
	}
}

// TestTokenHeaders: a header that tokens set is the token's or is not there, whatever the client wrote and whichever provider was asked.
func TestTokenHeaders(t *testing.T) {
	out := func(name string) []*jwtv3.JwtClaimToHeader {
		return []*jwtv3.JwtClaimToHeader{{HeaderName: name, ClaimName: "sub"}}
	}
	f := tokenFilter(t, anyOfThese(needs("one"), needs("two"), missing()), map[string]*jwtv3.JwtProvider{
		"one": inline(t, &jwtv3.JwtProvider{Issuer: "one", ClaimToHeaders: out("x-one"), FromHeaders: []*jwtv3.JwtHeader{{Name: "one"}}}),
		"two": inline(t, &jwtv3.JwtProvider{Issuer: "two", ClaimToHeaders: out("x-two"), ForwardPayloadHeader: "x-payload", FromHeaders: []*jwtv3.JwtHeader{{Name: "two"}}}),
	})
	forged := []string{"X-One", "root", "X-Two", "root", "X-Payload", "root"}
	for name, tc := range map[string]struct {
		q    *match.Request
		want string
	}{
		"no token":            {asking(forged...), ""},
		"the first's":         {asking(append(forged, "one", token(t, "k", `{"iss":"one","sub":"a"}`))...), "a"},
		"control characters":  {asking(append(forged, "one", token(t, "k", `{"iss":"one","sub":"a\r\nx-two: root"}`))...), ""},
		"claim of other kind": {asking(append(forged, "one", token(t, "k", `{"iss":"one"}`))...), ""},
	} {
		f.Sanitize(tc.q)
		v := f.Judge(tc.q, nothing, time.Now())
		v.Apply(tc.q)
		if v.Status != jwt.OK || tc.q.Header.Get("X-One") != tc.want || tc.q.Header.Get("X-Two") != "" || tc.q.Header.Get("X-Payload") != "" {
			t.Errorf("%s: %v %v", name, v.Status, tc.q.Header)
		}
	}
}

// TestTokenWants: keys that are not there, or do not know the token's id, are asked for; a decision that stands needs none.
func TestTokenWants(t *testing.T) {
	remote := &jwtv3.JwtProvider{Issuer: "one", JwksSourceSpecifier: &jwtv3.JwtProvider_RemoteJwks{RemoteJwks: &jwtv3.RemoteJwks{
		HttpUri: &corev3.HttpUri{Uri: "http://i/keys", HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "c"}, Timeout: durationpb.New(time.Second)},
	}}}
	f := tokenFilter(t, anyOfThese(needs("one"), missing()), map[string]*jwtv3.JwtProvider{"one": remote})
	if s := f.Sources(); len(s) != 1 || s[0].URI != "http://i/keys" || s[0].Cluster != "c" || s[0].Timeout != time.Second || s[0].Cache != defaultCache {
		t.Fatalf("sources %+v", s)
	}
	keys, err := jwt.ParseKeys([]byte(keySet(t)), true)
	if err != nil {
		t.Fatal(err)
	}
	have := func(jwt.Source) *jwt.Keys { return keys }
	good, unknown := token(t, "k", `{"iss":"one"}`), token(t, "new", `{"iss":"one"}`)
	for name, tc := range map[string]struct {
		raw  string
		look Lookup
		want jwt.Status
		asks bool
		seen *jwt.Keys
	}{
		"no keys yet":      {good, nothing, jwt.FetchFails, true, nil},
		"known id":         {good, have, jwt.OK, false, nil},
		"unknown id":       {unknown, have, jwt.NoMatchingKey, true, keys},
		"another issuer's": {token(t, "k", `{"iss":"two"}`), nothing, jwt.UnknownIssuer, false, nil},
		"expired":          {token(t, "new", `{"iss":"one","exp":1}`), nothing, jwt.Expired, false, nil},
	} {
		v := f.Judge(asking("Authorization", "Bearer "+tc.raw), tc.look, time.Now())
		if v.Status != tc.want || (len(v.Wants) > 0) != tc.asks || tc.asks && v.Wants[0].Seen != tc.seen {
			t.Errorf("%s: %v, wants %v", name, v.Status, v.Wants)
		}
	}
}

// TestTokenConfig: what cannot be done is refused by name.
func TestTokenConfig(t *testing.T) {
	good := func() *jwtv3.JwtAuthentication {
		return &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{"one": inline(t, &jwtv3.JwtProvider{Issuer: "one"})}}
	}
	if _, err := compileJWT(good()); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(p *jwtv3.JwtAuthentication){
		"filter_state_rules":        func(p *jwtv3.JwtAuthentication) { p.FilterStateRules = &jwtv3.FilterStateRule{Name: "x"} },
		"failed_status_in_metadata": func(p *jwtv3.JwtAuthentication) { p.Providers["one"].FailedStatusInMetadata = "x" },
		"neither local_jwks":        func(p *jwtv3.JwtAuthentication) { p.Providers["one"].JwksSourceSpecifier = nil },
		"not configured": func(p *jwtv3.JwtAuthentication) {
			p.RequirementMap = map[string]*jwtv3.JwtRequirement{"x": needs("other")}
		},
		"ExtractOnly": func(p *jwtv3.JwtAuthentication) {
			p.RequirementMap = map[string]*jwtv3.JwtRequirement{"x": {RequiresType: &jwtv3.JwtRequirement_ExtractOnlyWithoutValidation{
				ExtractOnlyWithoutValidation: &jwtv3.ExtractOnlyWithoutValidation{},
			}}}
		},
		"requirement_map": func(p *jwtv3.JwtAuthentication) {
			p.Rules = []*jwtv3.RequirementRule{{
				Match:           &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				RequirementType: &jwtv3.RequirementRule_RequirementName{RequirementName: "x"},
			}}
		},
		"safe_regex": func(p *jwtv3.JwtAuthentication) {
			p.Rules = []*jwtv3.RequirementRule{{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{}}}}
		},
		"no usable key": func(p *jwtv3.JwtAuthentication) {
			p.Providers["one"].GetLocalJwks().Specifier = &corev3.DataSource_InlineString{InlineString: `{"keys":[]}`}
		},
		"JWKS is not": func(p *jwtv3.JwtAuthentication) {
			p.Providers["one"].GetLocalJwks().Specifier = &corev3.DataSource_InlineString{InlineString: `x`}
		},
		"DataSource_Filename": func(p *jwtv3.JwtAuthentication) {
			p.Providers["one"].GetLocalJwks().Specifier = &corev3.DataSource_Filename{Filename: "/etc/passwd"}
		},
		"belongs to the connection": func(p *jwtv3.JwtAuthentication) { p.Providers["one"].ForwardPayloadHeader = "transfer-encoding" },
		"is no header name":         func(p *jwtv3.JwtAuthentication) { p.Providers["one"].ForwardPayloadHeader = ":path" },
		"from_headers":              func(p *jwtv3.JwtAuthentication) { p.Providers["one"].FromHeaders = []*jwtv3.JwtHeader{{Name: "a b"}} },
		"max_lifetime":              func(p *jwtv3.JwtAuthentication) { p.Providers["one"].MaxLifetime = durationpb.New(-1) },
		"is no http or https URL": func(p *jwtv3.JwtAuthentication) {
			p.Providers["one"].JwksSourceSpecifier = &jwtv3.JwtProvider_RemoteJwks{RemoteJwks: &jwtv3.RemoteJwks{HttpUri: &corev3.HttpUri{Uri: "file:///x", HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "c"}}}}
		},
	} {
		p := good()
		change(p)
		if _, err := compileJWT(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	per := func(p *jwtv3.PerRouteConfig) error {
		a, err := anypb.New(p)
		if err != nil {
			t.Fatal(err)
		}
		_, err = CompileOverrides(map[string]*anypb.Any{"jwt": a})
		return err
	}
	if err := per(&jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_Disabled{Disabled: true}}); err != nil {
		t.Error(err)
	}
	if err := per(&jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_RequirementName{RequirementName: "x"}}); !errors.Is(err, strict.ErrUnsupported) {
		t.Errorf("a requirement per route: %v", err)
	}
}

// FuzzJWT: no configuration that compiles panics with any token.
func FuzzJWT(f *testing.F) {
	p := &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{"one": inline(f, &jwtv3.JwtProvider{Issuer: "one", FromCookies: []string{"c"}, FromParams: []string{"p"}})}}
	p.Rules = []*jwtv3.RequirementRule{{
		Match:           &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		RequirementType: &jwtv3.RequirementRule_Requires{Requires: anyOfThese(needs("one"), missing())},
	}}
	raw, err := proto.Marshal(p)
	if err != nil {
		f.Fatal(err)
	}
	good := token(f, "k", `{"iss":"one"}`)
	f.Add(raw, "Bearer "+good, "p="+good, "c="+good)
	f.Fuzz(func(_ *testing.T, raw []byte, auth, query, cookie string) {
		p := &jwtv3.JwtAuthentication{}
		if proto.Unmarshal(raw, p) != nil {
			return
		}
		j, err := compileJWT(p)
		if err != nil {
			return
		}
		q := asking("Authorization", auth, "Cookie", cookie)
		q.Query = query
		j.Sanitize(q)
		v := j.Judge(q, nothing, time.Unix(1, 0))
		v.Apply(q)
	})
}
