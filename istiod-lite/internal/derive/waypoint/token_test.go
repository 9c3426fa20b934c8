package waypoint

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"strings"
	"testing"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tokensOf derives a world of one service with one rule, and returns the rule's provider.
func tokensOf(t *testing.T, rule *securityapi.JWTRule) (*jwtv3.JwtProvider, Resources, []Finding) {
	t.Helper()
	in := parseWorld(t, []byte("service web.shop 10.96.0.1 80/http\nservice keys.auth 10.96.0.2 80/http,8080/http foreign\nservice issuer.shop 10.96.0.3 80/http"), nil)
	o := &securityv1.RequestAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "r"}}
	o.Spec.TargetRefs = []*typeapi.PolicyTargetReference{{Kind: "Service", Name: "web"}}
	o.Spec.JwtRules = []*securityapi.JWTRule{rule}
	in.Authentications = []*securityv1.RequestAuthentication{o}
	r, findings := Derive(in)
	var found *jwtv3.JwtProvider
	for _, c := range r.Listeners[MainInternal].GetFilterChains() {
		f := tokenConfig(t, c.GetFilters()[len(c.GetFilters())-1].GetTypedConfig().UnmarshalTo, c.GetName())
		if (f != nil) != (c.GetName() == vipName(80, true, "", "web.shop.svc.cluster.local")) {
			t.Errorf("chain %s verifies tokens: %v", c.GetName(), f != nil)
		}
		if f != nil {
			found = f.GetProviders()["ns[shop]-request[r]-rule[0]"]
		}
	}
	if found == nil {
		t.Fatal("the rule has no provider")
	}
	return found, r, findings
}

// tokenConfig is a chain's token filter, which has to come before any policy.
func tokenConfig(t *testing.T, unpack func(proto.Message) error, chain string) *jwtv3.JwtAuthentication {
	t.Helper()
	m := &hcmv3.HttpConnectionManager{}
	if unpack(m) != nil {
		return nil
	}
	for i, f := range m.GetHttpFilters() {
		j := &jwtv3.JwtAuthentication{}
		if f.GetTypedConfig().UnmarshalTo(j) != nil {
			continue
		}
		if i != 0 || !j.GetBypassCorsPreflight() {
			t.Errorf("chain %s: the token filter is number %d", chain, i)
		}
		return j
	}
	return nil
}

// TestKeySources: from where a jwksUri is fetched.
func TestKeySources(t *testing.T) {
	for uri, want := range map[string]string{
		"http://keys.auth:8080/k":                         "outbound|8080||keys.auth.svc.cluster.local",
		"http://keys.auth.svc/k":                          "outbound|80||keys.auth.svc.cluster.local",
		"http://keys.auth.svc.cluster.local:8080":         "outbound|8080||keys.auth.svc.cluster.local",
		"http://KEYS.auth/k":                              "outbound|80||keys.auth.svc.cluster.local",
		"http://issuer/k":                                 "inbound-vip|80|http|issuer.shop.svc.cluster.local",
		"http://keys.auth:9/k":                            "jwks|http|9|keys.auth",
		"https://keys.auth/k":                             "jwks|https|443|keys.auth",
		"https://id.example/.well-known/jwks.json":        "jwks|https|443|id.example",
		"http://10.1.2.3:81/k":                            "jwks|http|81|10.1.2.3",
		"https://[2001:db8::1]/k":                         "jwks|https|443|2001:db8::1",
		"http://169.254.169.254/latest/meta-data":         "",
		"http://[fe80::1]/k":                              "",
		"http://[::1]:15000/config_dump":                  "",
		"http://127.0.0.1:15000/quitquitquit":             "",
		"http://[::ffff:127.0.0.1]/k":                     "",
		"http://localhost/k":                              "",
		"http://a.localhost./k":                           "",
		"http://metadata.google.internal/k":               "",
		"http://2130706433/k":                             "",
		"http://0x7f.1/k":                                 "",
		"http://0/k":                                      "",
		"http://100.100.100.200/k":                        "",
		"file:///etc/passwd":                              "",
		"https://user:pass@id.example/k":                  "",
		"https://id.example:0/k":                          "",
		"https:///k":                                      "",
		"https://id.example/" + strings.Repeat("x", 3000): "",
	} {
		p, r, findings := tokensOf(t, &securityapi.JWTRule{Issuer: "i", JwksUri: uri})
		got := p.GetRemoteJwks().GetHttpUri()
		if got.GetCluster() != want {
			t.Errorf("%.60s: cluster %q, want %q", uri, got.GetCluster(), want)
		}
		if want == "" {
			if p.GetLocalJwks().GetInlineString() != nobodysKey || len(findings) != 1 || !strings.Contains(findings[0].Message, "refused") {
				t.Errorf("%.60s: %v, findings %v", uri, p, findings)
			}
			continue
		}
		if r.Clusters[want] == nil || got.GetUri() != uri || got.GetTimeout().AsDuration() != jwksTimeout || len(findings) != 0 {
			t.Errorf("%s: %v, findings %v", uri, p, findings)
		}
		if outside := strings.HasPrefix(want, "jwks|"); outside != (p.GetRemoteJwks().GetAsyncFetch() != nil) {
			t.Errorf("%s: fetched ahead: %v", uri, !outside)
		}
	}
}

// TestInlineKeys: what proxies get of a user's key set.
func TestInlineKeys(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	text := func(keys ...jose.JSONWebKey) string {
		raw, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	public := text(jose.JSONWebKey{Key: private.Public(), KeyID: "a"})
	for name, tc := range map[string]struct{ jwks, sent, finding string }{
		"public":             {public, public, ""},
		"private":            {text(jose.JSONWebKey{Key: private, KeyID: "a"}), public, "private"},
		"one cannot be used": {text(jose.JSONWebKey{Key: private.Public(), KeyID: "a"}, jose.JSONWebKey{Key: short.Public()}), public, "left out"},
		"none can be used":   {text(jose.JSONWebKey{Key: short.Public()}), nobodysKey, "refused"},
		"no keys":            {`{"keys":[]}`, nobodysKey, "refused"},
		"no JSON":            {`{`, nobodysKey, "refused"},
		"neither":            {"", nobodysKey, "OpenID"},
	} {
		p, _, findings := tokensOf(t, &securityapi.JWTRule{Issuer: "i", Jwks: tc.jwks})
		if got := p.GetLocalJwks().GetInlineString(); got != tc.sent {
			t.Errorf("%s: sent %s", name, got)
		}
		if tc.finding == "" && len(findings) != 0 || tc.finding != "" && (len(findings) != 1 || !strings.Contains(findings[0].Message, tc.finding)) {
			t.Errorf("%s: findings %v", name, findings)
		}
	}
	if _, err := readKeys(nobodysKey); err != nil {
		t.Errorf("nobody's key: %v", err)
	}
}

// TestTokenRuleThatCannotBe: a place or a header that no request can have makes the rule refuse, or is left out, and somebody is told.
func TestTokenRuleThatCannotBe(t *testing.T) {
	const keys = `{"keys":[{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}`
	p, _, findings := tokensOf(t, &securityapi.JWTRule{Issuer: "i", Jwks: keys, FromHeaders: []*securityapi.JWTHeader{{Name: "a b"}, {Name: "x-ok"}}})
	if p.GetLocalJwks().GetInlineString() != nobodysKey || len(findings) != 1 {
		t.Errorf("bad place: %v %v", p, findings)
	}
	p, _, findings = tokensOf(t, &securityapi.JWTRule{
		Issuer: "i", Jwks: keys, OutputPayloadToHeader: ":path", Timeout: durationpb.New(-1),
		OutputClaimToHeaders: []*securityapi.ClaimToHeader{{Header: "x", Claim: ""}, {Header: "content-length", Claim: "a"}, {Header: "x-ok", Claim: "a"}},
	})
	if p.GetForwardPayloadHeader() != "" || len(p.GetClaimToHeaders()) != 1 || len(findings) != 3 {
		t.Errorf("bad headers: %v %v", p, findings)
	}
}

func TestClaimPaths(t *testing.T) {
	for in, want := range map[string]string{
		"[a]": "a", "[a][b][c]": "a b c", "[https://x/y]": "https://x/y", "[[a]]": "[a]", "[a]]": "a]",
		"": "!", "[]": "!", "a": "!", "[a": "!", "a]": "!", "[a]b": "!", "[a][]": "!",
	} {
		got, err := claimPath(in)
		if err != nil {
			got = []string{"!"}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
