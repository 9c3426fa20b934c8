package tokencorpus

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The private keys of RFC 7515 A.2 and A.3 and of RFC 8037 A.1.
const (
	rsaKey = `{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB",` +
		`"d":"Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",` +
		`"p":"4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",` +
		`"q":"uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc"}`
	ecKey = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","d":"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"}`
	edKey = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}`
)

// Case is one request and what has to come back.
type Case struct {
	Name   string
	Method string // empty = GET
	Path   string
	Header map[string][]string
	Status int
	Body   string            // of a refusal; empty = not looked at
	Seen   map[string]string // headers that the application has to see; an empty value: must not see
	URI    string            // that the application has to see; empty = not looked at
	Detail string            // what the challenge ends with; empty = there is none
	Ours   int               // status where we are stricter than Envoy on purpose; 0 = the same
}

// Issuers of the world.
const (
	First  = "https://id.example"
	Second = "second"
	Kept   = "kept"
	// Remote publishes its keys at the service keys of namespace auth; Document is what is there.
	Remote   = "remote"
	Document = `{"keys":[{"kty":"OKP","kid":"ed","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`
)

// Sign makes a token. extra goes into its header.
func Sign(alg jose.SignatureAlgorithm, key, claims string, extra map[jose.HeaderKey]any) (string, error) {
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON([]byte(key)); err != nil {
		return "", err
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: k.Key}, &jose.SignerOptions{ExtraHeaders: extra})
	if err != nil {
		return "", err
	}
	o, err := s.Sign([]byte(claims))
	if err != nil {
		return "", err
	}
	return o.CompactSerialize()
}

// maker signs and remembers the first thing that went wrong.
type maker struct{ err error }

func (m *maker) sign(alg jose.SignatureAlgorithm, key, kid, claims string) string {
	extra := map[jose.HeaderKey]any{}
	if kid != "" {
		extra["kid"] = kid
	}
	return m.with(alg, key, claims, extra)
}

func (m *maker) with(alg jose.SignatureAlgorithm, key, claims string, extra map[jose.HeaderKey]any) string {
	raw, err := Sign(alg, key, claims, extra)
	if err != nil && m.err == nil {
		m.err = fmt.Errorf("sign %s: %w", claims, err)
	}
	return raw
}

// claims of a token of First, with changes; a nil value takes a claim away.
func claims(changes map[string]any) string {
	c := map[string]any{"iss": First, "sub": "alice", "aud": "shop"}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	raw, err := json.Marshal(c)
	if err != nil {
		panic(err) // only literals come here
	}
	return string(raw)
}

func auth(values ...string) map[string][]string { return map[string][]string{"Authorization": values} }

func bearer(token string) map[string][]string { return auth("Bearer " + token) }

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

const (
	invalid   = `, error="invalid_token"`
	denied    = "RBAC: access denied"
	badFormat = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
	fails     = "Jwt verification fails"
	noKey     = "Jwks doesn't have key to match kid or alg from Jwt"
	unknown   = "Jwt issuer is not configured"
)

// Cases are all requests, for a moment.
func Cases(now time.Time) ([]Case, error) {
	m := &maker{}
	out := append(m.verification(now.Unix()), m.places()...)
	out = append(append(out, m.policies()...), m.forged()...)
	printed, err := rfcCases()
	return append(out, printed...), errors.Join(m.err, err)
}

func refused(name, text string, header map[string][]string) Case {
	return Case{Name: name, Path: "/open", Header: header, Status: 401, Body: text, Detail: invalid}
}

func (m *maker) verification(now int64) []Case {
	good := m.sign(jose.RS256, rsaKey, "rsa", claims(nil))
	parts := strings.Split(good, ".")
	plain := func(name string, token string) Case {
		return Case{Name: name, Path: "/any", Header: bearer(token), Status: 200, Seen: map[string]string{"Authorization": ""}}
	}
	at := func(key string, value any) string {
		return m.sign(jose.EdDSA, edKey, "ed", claims(map[string]any{key: value}))
	}
	out := []Case{
		{Name: "no token", Path: "/open", Status: 200},
		plain("RS256", good), plain("RS512", m.sign(jose.RS512, rsaKey, "rsa", claims(nil))), plain("PS256", m.sign(jose.PS256, rsaKey, "rsa", claims(nil))),
		plain("PS384", m.sign(jose.PS384, rsaKey, "rsa", claims(nil))), plain("ES256", m.sign(jose.ES256, ecKey, "ec", claims(nil))),
		plain("EdDSA", m.sign(jose.EdDSA, edKey, "ed", claims(nil))), plain("no key id", m.sign(jose.RS256, rsaKey, "", claims(nil))),
		plain("one of several audiences", at("aud", []string{"x", "shop"})),
		plain("expired within skew", at("exp", now-30)), plain("not yet, within skew", at("nbf", now+30)),
		refused("expired", "Jwt is expired", bearer(at("exp", now-100))),
		refused("not yet", "Jwt not yet valid", bearer(at("nbf", now+100))),
		refused("expiry a text", "Jwt payload [exp] field is not an integer", bearer(at("exp", "9999999999"))),
		refused("unknown issuer", unknown, bearer(at("iss", "https://evil.example"))),
		refused("no issuer", unknown, bearer(at("iss", nil))),
		{Name: "wrong audience", Path: "/open", Header: bearer(at("aud", "bank")), Status: 403, Body: "Audiences in Jwt are not allowed", Detail: invalid},
		{Name: "no audience", Path: "/open", Header: bearer(at("aud", nil)), Status: 403, Body: "Audiences in Jwt are not allowed", Detail: invalid},
		refused("unknown key id", noKey, bearer(m.sign(jose.EdDSA, edKey, "other", claims(nil)))),
		refused("key id of another key", "", bearer(m.sign(jose.EdDSA, edKey, "rsa", claims(nil)))),
		refused("secret from the public key", "", bearer(hmac(m, claims(nil)))),
		refused("alg none", "Jwt header [alg] is not supported", bearer(b64(`{"alg":"none"}`)+"."+parts[1]+"."+parts[2])),
		refused("alg none without signature", badFormat, bearer(b64(`{"alg":"none"}`)+"."+parts[1]+".")),
		refused("other payload", fails, bearer(parts[0]+"."+b64(claims(map[string]any{"sub": "root"}))+"."+parts[2])),
		refused("embedded key", noKey, bearer(m.with(jose.EdDSA, edKey, claims(nil), map[jose.HeaderKey]any{"kid": "x", "jku": "http://evil.example/"}))),
		refused("two parts", badFormat, bearer("a.b")),
		refused("nothing", badFormat, auth("Bearer ???")),
		refused("header no base64", "Jwt header is an invalid Base64url encoded", bearer("a!.b.c")),
		refused("header no JSON", "Jwt header is an invalid JSON", bearer(b64("x")+"."+parts[1]+"."+parts[2])),
		refused("payload no JSON", "Jwt payload is an invalid JSON", bearer(m.sign(jose.EdDSA, edKey, "ed", "sentence"))),
		refused("nested", "Jwt payload is an invalid JSON", bearer(m.sign(jose.EdDSA, edKey, "ed", good))),
		refused("encrypted form", badFormat, bearer("a.b.c.d.e")),
		{Name: "not a bearer", Path: "/open", Header: auth("Basic dXNlcjpwYXNz"), Status: 200, Seen: map[string]string{"Authorization": "Basic dXNlcjpwYXNz"}},
		refused("a good and a bad one", "", auth("Bearer "+good, "Bearer "+at("exp", now-100))),
		{Name: "preflight", Method: "OPTIONS", Path: "/open", Status: 200, Header: map[string][]string{
			"Authorization": {"Bearer nonsense"}, "Origin": {"https://a.example"}, "Access-Control-Request-Method": {"GET"},
		}},
	}
	// Where we are stricter: what has to be understood, and isn't, is no reason to believe a token.
	critical := plain("critical extension", m.with(jose.EdDSA, edKey, claims(nil), map[jose.HeaderKey]any{"kid": "ed", "crit": []string{"x"}, "x": 1}))
	critical.Ours = 401
	lower := refused("bearer in small letters", "", auth("bearer nonsense"))
	lower.Status, lower.Ours, lower.Detail = 200, 401, ""
	expired := plain("expiry at the epoch", at("exp", 0))
	expired.Ours = 401
	return append(out, critical, lower, expired)
}

// hmac signs with what everybody knows.
func hmac(m *maker, text string) string {
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON([]byte(rsaKey)); err != nil && m.err == nil {
		m.err = err
	}
	raw, err := k.Public().MarshalJSON()
	if err != nil && m.err == nil {
		m.err = err
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: raw}, nil)
	if err != nil {
		m.err = err
		return ""
	}
	o, err := s.Sign([]byte(text))
	if err != nil {
		m.err = err
		return ""
	}
	token, err := o.CompactSerialize()
	if err != nil {
		m.err = err
	}
	return token
}

// places are where tokens stand and what becomes of them.
func (m *maker) places() []Case {
	second := m.sign(jose.EdDSA, edKey, "ed", `{"iss":"second","sub":"bob"}`)
	kept := m.sign(jose.EdDSA, edKey, "ed", `{"iss":"kept","sub":"eve"}`)
	full := claims(map[string]any{"org": map[string]any{"group": "admin"}, "level": 7, "admin": true, "list": []int{1}})
	payload := strings.Split(m.sign(jose.EdDSA, edKey, "ed", full), ".")[1]
	forged := map[string][]string{"X-Payload": {"forged"}, "X-Sub": {"root"}, "X-Group": {"root"}}
	with := func(name, value string) map[string][]string {
		h := maps.Clone(forged)
		h[name] = []string{value}
		return h
	}
	return []Case{
		{Name: "fetched keys", Path: "/open", Header: bearer(m.sign(jose.EdDSA, edKey, "ed", `{"iss":"remote"}`)), Status: 200, Seen: map[string]string{"Authorization": ""}},
		refused("fetched keys, another id", noKey, bearer(m.sign(jose.EdDSA, edKey, "old", `{"iss":"remote"}`))),
		{Name: "query", Path: "/second?a=1&tok=" + second + "&b=2", Status: 200, URI: "/second?a=1&b=2"},
		{Name: "query alone", Path: "/second?tok=" + second, Status: 200},
		{Name: "default query", Path: "/any?access_token=" + m.sign(jose.EdDSA, edKey, "ed", claims(nil)), Status: 200},
		{Name: "bad token in the query", Path: "/open?access_token=x", Status: 401, Body: badFormat, Detail: invalid},
		{Name: "header with prefix", Path: "/second", Header: map[string][]string{"X-Second": {"Token " + second}}, Status: 200, Seen: map[string]string{"X-Second": ""}},
		{Name: "header without prefix", Path: "/open", Header: map[string][]string{"X-Second": {second}}, Status: 200, Seen: map[string]string{"X-Second": second}},
		{Name: "cookie", Path: "/second", Header: map[string][]string{"Cookie": {"a=b; sess=" + second + "; c=d"}}, Status: 200},
		{Name: "kept", Path: "/kept", Header: map[string][]string{"X-Kept": {kept}}, Status: 200, Seen: map[string]string{"X-Kept": kept}},
		refused("another issuer's place", unknown, map[string][]string{"X-Kept": {second}}),
		{
			Name: "claims to headers", Path: "/any", Header: with("Authorization", "Bearer "+m.sign(jose.EdDSA, edKey, "ed", full)), Status: 200,
			Seen: map[string]string{"X-Payload": payload, "X-Sub": "alice", "X-Group": "admin", "X-Level": "7", "X-Admin": "true", "X-List": "WzFd"},
		},
		{
			Name: "claims that are not there", Path: "/any", Header: with("Authorization", "Bearer "+m.sign(jose.EdDSA, edKey, "ed", claims(nil))), Status: 200,
			Seen: map[string]string{"X-Sub": "alice", "X-Group": "", "X-Level": ""},
		},
		{Name: "forged headers without a token", Path: "/open", Header: forged, Status: 200, Seen: map[string]string{"X-Payload": "", "X-Sub": "", "X-Group": ""}},
		{
			Name: "two tokens, the second bad", Path: "/any", Status: 200,
			Header: map[string][]string{"Authorization": {"Bearer " + m.sign(jose.EdDSA, edKey, "ed", claims(nil))}, "X-Kept": {"x"}},
		},
	}
}

// policies are decisions by claims.
func (m *maker) policies() []Case {
	ask := func(name, path string, status int, changes map[string]any) Case {
		c := Case{Name: name, Path: path, Status: status, Header: bearer(m.sign(jose.EdDSA, edKey, "ed", claims(changes)))}
		if status == 403 {
			c.Body = denied
		}
		return c
	}
	org := func(group any) map[string]any { return map[string]any{"org": map[string]any{"group": group}} }
	anonymous := Case{Name: "principal wanted, no token", Path: "/any", Status: 403, Body: denied}
	return []Case{
		anonymous,
		ask("principal by issuer", "/any", 200, map[string]any{"sub": "zoe"}),
		ask("principal without subject", "/any", 403, map[string]any{"sub": nil}),
		ask("principal exactly", "/admin", 200, org("admin")),
		ask("another principal", "/admin", 403, map[string]any{"sub": "bob", "org": map[string]any{"group": "admin"}}),
		ask("nested claim, prefix", "/admin", 200, org("developers")),
		ask("nested claim in a list", "/admin", 200, org([]string{"x", "admin"})),
		ask("nested claim, other", "/admin", 403, org("user")),
		ask("nested claim, a number", "/admin", 403, org(1)),
		ask("nested claim, none", "/admin", 403, nil),
		{Name: "anonymous only", Path: "/anonymous", Status: 200},
		ask("anonymous only, with token", "/anonymous", 403, nil),
		ask("audience and presenter", "/app", 200, map[string]any{"azp": "app"}),
		ask("presenter missing", "/app", 403, nil),
		ask("word of a scope", "/write", 200, map[string]any{"scope": "read write"}),
		ask("no word of a scope", "/write", 403, map[string]any{"scope": "read writer"}),
		ask("scope a list", "/write", 200, map[string]any{"scope": []string{"write"}}),
		ask("word of a claim of one's own", "/roles", 403, map[string]any{"roles": "user banned"}),
		ask("not banned", "/roles", 200, map[string]any{"roles": "user"}),
		ask("no roles", "/roles", 200, nil),
		{Name: "not banned, no token", Path: "/roles", Status: 403, Body: denied},
		{Name: "path without policy", Path: "/elsewhere", Status: 403, Body: denied},
	}
}
