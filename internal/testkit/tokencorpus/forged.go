package tokencorpus

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// evil is a key that no issuer publishes.
func evil() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte("a seed of thirty-two known bytes"))
}

// trusted is the key that issuers publish as "ed".
func (m *maker) trusted() ed25519.PrivateKey {
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON([]byte(edKey)); err != nil && m.err == nil {
		m.err = err
	}
	return k.Key.(ed25519.PrivateKey)
}

// byHand signs with a header that no library would write.
func byHand(key ed25519.PrivateKey, header map[string]any, payload string) string {
	h, err := json.Marshal(header)
	if err != nil {
		panic(err) // only literals come here
	}
	text := b64(string(h)) + "." + b64(payload)
	return text + "." + b64(string(ed25519.Sign(key, []byte(text))))
}

// pemSecret signs as HS256 with the published RSA key in the form in which programs keep it.
func (m *maker) pemSecret(kid string) string {
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON([]byte(rsaKey)); err != nil && m.err == nil {
		m.err = err
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public().Key)
	if err != nil && m.err == nil {
		m.err = err
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})},
		&jose.SignerOptions{ExtraHeaders: map[jose.HeaderKey]any{"kid": kid}})
	if err != nil {
		m.err = err
		return ""
	}
	o, err := s.Sign([]byte(claims(nil)))
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

// forged are tokens that try to bring their own key, name another one, or have the proxy leave something out; and, beside each that brings a
// key, a good token with the same header: what a token says about keys is neither believed nor held against it.
func (m *maker) forged() []Case {
	ed := m.trusted()
	good := func(name string, header map[string]any) Case {
		return Case{Name: name, Path: "/any", Header: bearer(byHand(ed, header, claims(nil))), Status: 200, Seen: map[string]string{"Authorization": ""}}
	}
	bad := func(name, text string, header map[string]any) Case {
		return refused(name, text, bearer(byHand(evil(), header, claims(nil))))
	}
	head := func(kid, name string, value any) map[string]any {
		return map[string]any{"alg": "EdDSA", "kid": kid, name: value}
	}
	jwk := map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(string(evil().Public().(ed25519.PublicKey)))}
	x5c := []string{base64.StdEncoding.EncodeToString([]byte("no certificate at all"))}
	var out []Case
	for name, value := range map[string]any{"jwk": jwk, "x5c": x5c, "jku": "http://evil.example/keys", "x5u": "http://evil.example/cert", "x5t": "AAAA"} {
		out = append(out, bad("signed by what "+name+" says", fails, head("ed", name, value)), bad("signed by what "+name+" says, unknown key id", noKey, head("evil", name, value)),
			good("well signed, "+name+" says otherwise", head("ed", name, value)))
	}
	for _, kid := range []string{"../../../../dev/null", "/etc/passwd", "ed\x00", "ed' OR '1'='1", "http://evil.example/key", "ED", "ed "} {
		out = append(out, bad("key id "+strings.ReplaceAll(kid, "\x00", "NUL"), noKey, map[string]any{"alg": "EdDSA", "kid": kid}))
	}
	token := m.sign(jose.RS256, rsaKey, "rsa", claims(nil))
	parts := strings.Split(m.sign(jose.ES256, ecKey, "ec", claims(nil)), ".")
	out = append(
		out,
		refused("secret from the public key, PEM", "", bearer(m.pemSecret("rsa"))),
		refused("RSA's token, key id of the curve", "", bearer(m.sign(jose.RS256, rsaKey, "ec", claims(nil)))),
		refused("a curve's signature of zeros", fails, bearer(parts[0]+"."+parts[1]+"."+b64(strings.Repeat("\x00", 64)))),
		refused("a curve's signature too short", fails, bearer(parts[0]+"."+parts[1]+"."+b64("\x01"))),
		refused("nested with its type", "Jwt payload is an invalid JSON", bearer(byHand(ed, head("ed", "cty", "JWT"), token))),
		refused("nested in a claim", unknown, bearer(byHand(ed, head("ed", "typ", "JWT"), `{"jwt":"`+token+`"}`))),
	)
	for name, header := range map[string]map[string]any{
		"b64 false": head("ed", "b64", false), "b64 false and critical": {"alg": "EdDSA", "kid": "ed", "b64": false, "crit": []string{"b64"}},
		"critical and empty": head("ed", "crit", []string{}), "critical alg": head("ed", "crit", []string{"alg"}),
	} {
		c := good(name, header)
		c.Ours = 401 // RFC 7515 4.1.11 and RFC 7797 6 make these invalid
		out = append(out, c)
	}
	return out
}
