package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// signers are one key of each kind, made once.
type signers struct {
	rsa, small *rsa.PrivateKey
	p256       *ecdsa.PrivateKey
	p384       *ecdsa.PrivateKey
	p521       *ecdsa.PrivateKey
	ed         ed25519.PrivateKey
}

var made = sync.OnceValue(func() signers {
	var s signers
	var err error
	keep := func(e error) {
		if err == nil {
			err = e
		}
	}
	var e error
	s.rsa, e = rsa.GenerateKey(rand.Reader, 2048)
	keep(e)
	s.small, e = rsa.GenerateKey(rand.Reader, 1024)
	keep(e)
	s.p256, e = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	keep(e)
	s.p384, e = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	keep(e)
	s.p521, e = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	keep(e)
	_, s.ed, e = ed25519.GenerateKey(rand.Reader)
	keep(e)
	if err != nil {
		panic(err)
	}
	return s
})

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// sign makes a token with a header that go-jose would not write by itself.
func sign(t testing.TB, alg jose.SignatureAlgorithm, k any, claims string, extra map[jose.HeaderKey]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: k}, &jose.SignerOptions{ExtraHeaders: extra})
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

func set(t testing.TB, keys ...jose.JSONWebKey) *Keys {
	t.Helper()
	raw, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKeys(raw, false)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// judge is the whole of what makes a token believed, but for its issuer and audience.
func judge(raw string, k *Keys, now time.Time) Status {
	t, s := Parse(raw)
	if s != OK {
		return s
	}
	if s := t.InTime(now, time.Minute); s != OK {
		return s
	}
	return t.Verify(k)
}

// TestAlgorithms: each algorithm with its own kind of key, and with no other.
func TestAlgorithms(t *testing.T) {
	m := made()
	secret := []byte(strings.Repeat("s", 64))
	algs := map[jose.SignatureAlgorithm]any{
		jose.RS256: m.rsa, jose.RS384: m.rsa, jose.RS512: m.rsa, jose.PS256: m.rsa, jose.PS384: m.rsa, jose.PS512: m.rsa,
		jose.ES256: m.p256, jose.ES384: m.p384, jose.ES512: m.p521, jose.EdDSA: m.ed,
		jose.HS256: secret, jose.HS384: secret, jose.HS512: secret,
	}
	public := map[string]any{"rsa": m.rsa.Public(), "p256": m.p256.Public(), "p384": m.p384.Public(), "p521": m.p521.Public(), "ed": m.ed.Public(), "secret": secret}
	for alg, k := range algs {
		raw := sign(t, alg, k, `{"iss":"i"}`, nil)
		good := 0
		for name, p := range public {
			switch s := judge(raw, set(t, jose.JSONWebKey{Key: p}), time.Now()); s {
			case OK:
				good++
			case NoMatchingKey:
			default:
				t.Errorf("%s with the key %s: %v", alg, name, s)
			}
		}
		if good != 1 {
			t.Errorf("%s: good with %d kinds of keys, want one", alg, good)
		}
		at := strings.LastIndexByte(raw, '.') + 1
		flipped := raw[:at] + string(raw[at]^1) + raw[at+1:]
		if s := judge(flipped, set(t, jose.JSONWebKey{Key: keyOf(k)}), time.Now()); s != VerificationFails && s != SignatureBadBase64 {
			t.Errorf("%s with a broken signature: %v", alg, s)
		}
	}
}

func keyOf(k any) any {
	if s, ok := k.(crypto.Signer); ok {
		return s.Public()
	}
	return k
}

// TestForgedTokens: what attackers write into tokens, each once.
func TestForgedTokens(t *testing.T) {
	m := made()
	public := jose.JSONWebKey{Key: m.rsa.Public(), KeyID: "a", Algorithm: "RS256"}
	keys := set(t, public)
	der, err := x509.MarshalPKIXPublicKey(m.rsa.Public())
	if err != nil {
		t.Fatal(err)
	}
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	const claims = `{"iss":"i","sub":"s"}`
	good := sign(t, jose.RS256, m.rsa, claims, map[jose.HeaderKey]any{"kid": "a"})
	if s := judge(good, keys, time.Now()); s != OK {
		t.Fatalf("the good one: %v", s)
	}
	_, evil, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	header := func(text string) string { return b64(text) + "." + parts[1] + "." + parts[2] }
	now := time.Now().Unix()
	for name, tc := range map[string]struct {
		raw  string
		want Status
	}{
		"alg none":                    {b64(`{"alg":"none"}`) + "." + parts[1] + ".", BadFormat},
		"alg none with a signature":   {header(`{"alg":"none"}`), HeaderUnknownAlg},
		"alg nOnE":                    {header(`{"alg":"nOnE"}`), HeaderUnknownAlg},
		"alg empty":                   {header(`{"alg":""}`), HeaderUnknownAlg},
		"alg missing":                 {header(`{"kid":"a"}`), HeaderBadAlg},
		"alg a number":                {header(`{"alg":256}`), HeaderBadAlg},
		"alg rs256":                   {header(`{"alg":"rs256"}`), HeaderUnknownAlg},
		"alg of encryption":           {header(`{"alg":"RSA-OAEP"}`), HeaderUnknownAlg},
		"alg twice":                   {header(`{"alg":"RS256","alg":"none"}`), HeaderBadJSON},
		"public key as secret, PEM":   {sign(t, jose.HS256, asPEM, claims, map[jose.HeaderKey]any{"kid": "a"}), NoMatchingKey},
		"public key as secret, DER":   {sign(t, jose.HS256, der, claims, nil), NoMatchingKey},
		"modulus as secret":           {sign(t, jose.HS256, m.rsa.N.Bytes(), claims, nil), NoMatchingKey},
		"another algorithm, same key": {sign(t, jose.PS256, m.rsa, claims, map[jose.HeaderKey]any{"kid": "a"}), NoMatchingKey},
		"embedded key":                {sign(t, jose.EdDSA, jose.JSONWebKey{Key: evil, KeyID: "a"}, claims, map[jose.HeaderKey]any{"jwk": jose.JSONWebKey{Key: evil.Public()}}), NoMatchingKey},
		"key by URL":                  {sign(t, jose.EdDSA, evil, claims, map[jose.HeaderKey]any{"jku": "https://evil.example/keys", "kid": "a"}), NoMatchingKey},
		"certificate by URL":          {sign(t, jose.EdDSA, evil, claims, map[jose.HeaderKey]any{"x5u": "https://evil.example/cert", "kid": "a"}), NoMatchingKey},
		"certificates that are none":  {sign(t, jose.RS256, m.rsa, claims, map[jose.HeaderKey]any{"x5c": []string{"AAAA"}, "kid": "a"}), OK},
		"unknown key id":              {sign(t, jose.RS256, m.rsa, claims, map[jose.HeaderKey]any{"kid": "b"}), NoMatchingKey},
		"key id is a path":            {sign(t, jose.RS256, m.rsa, claims, map[jose.HeaderKey]any{"kid": "../../dev/null"}), NoMatchingKey},
		"key id is SQL":               {sign(t, jose.RS256, m.rsa, claims, map[jose.HeaderKey]any{"kid": "a' OR '1'='1"}), NoMatchingKey},
		"key id is a list":            {header(`{"alg":"RS256","kid":["a"]}`), HeaderBadKid},
		"critical and unknown":        {sign(t, jose.RS256, m.rsa, claims, map[jose.HeaderKey]any{"crit": []string{"x"}, "x": 1}), HeaderCritical},
		"critical and empty":          {header(`{"alg":"RS256","crit":[]}`), HeaderCritical},
		"payload not encoded":         {header(`{"alg":"RS256","b64":false,"crit":["b64"]}`), HeaderCritical},
		"b64 alone":                   {header(`{"alg":"RS256","b64":false}`), HeaderCritical},
		"nested":                      {sign(t, jose.RS256, m.rsa, good, map[jose.HeaderKey]any{"cty": "JWT"}), PayloadBadJSON},
		"encrypted form":              {"a.b.c.d.e", BadFormat},
		"two parts":                   {parts[0] + "." + parts[1], BadFormat},
		"empty payload":               {parts[0] + ".." + parts[2], BadFormat},
		"four parts":                  {good + ".x", BadFormat},
		"JSON form":                   {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, BadFormat},
		"space before":                {" " + good, HeaderBadBase64},
		"line break inside":           {parts[0] + "\n." + parts[1] + "." + parts[2], HeaderBadBase64},
		"padding":                     {parts[0] + "=." + parts[1] + "." + parts[2], HeaderBadBase64},
		"standard alphabet":           {parts[0] + "." + parts[1] + "." + strings.NewReplacer("-", "+", "_", "/").Replace(parts[2]) + "+", SignatureBadBase64},
		"other payload":               {parts[0] + "." + b64(`{"iss":"i","sub":"root"}`) + "." + parts[2], VerificationFails},
		"claim twice":                 {sign(t, jose.RS256, m.rsa, `{"sub":"a","sub":"b"}`, nil), PayloadBadJSON},
		"payload a list":              {sign(t, jose.RS256, m.rsa, `["iss"]`, nil), PayloadBadJSON},
		"payload with a tail":         {sign(t, jose.RS256, m.rsa, `{"iss":"i"}{}`, nil), PayloadBadJSON},
		"not UTF-8":                   {sign(t, jose.RS256, m.rsa, "{\"iss\":\"\xff\"}", nil), PayloadBadJSON},
		"too deep":                    {sign(t, jose.RS256, m.rsa, `{"a":`+strings.Repeat("[", 200)+strings.Repeat("]", 200)+`}`, nil), PayloadBadJSON},
		"too long":                    {sign(t, jose.RS256, m.rsa, `{"a":"`+strings.Repeat("x", maxToken)+`"}`, nil), BadFormat},
		"expired by more than skew":   {sign(t, jose.RS256, m.rsa, fmt.Sprintf(`{"exp":%d}`, now-70), nil), Expired},
		"expired within skew":         {sign(t, jose.RS256, m.rsa, fmt.Sprintf(`{"exp":%d}`, now-50), nil), OK},
		"expired at the epoch":        {sign(t, jose.RS256, m.rsa, `{"exp":0}`, nil), Expired},
		"not yet, beyond skew":        {sign(t, jose.RS256, m.rsa, fmt.Sprintf(`{"nbf":%d}`, now+70), nil), NotYetValid},
		"not yet, within skew":        {sign(t, jose.RS256, m.rsa, fmt.Sprintf(`{"nbf":%d}`, now+50), nil), OK},
		"expiry a text":               {sign(t, jose.RS256, m.rsa, `{"exp":"4000000000"}`, nil), ExpiresNotInteger},
		"expiry negative":             {sign(t, jose.RS256, m.rsa, `{"exp":-1}`, nil), ExpiresOutOfRange},
		"expiry beyond all":           {sign(t, jose.RS256, m.rsa, `{"exp":1e300}`, nil), ExpiresOutOfRange},
		"start a truth":               {sign(t, jose.RS256, m.rsa, `{"nbf":true}`, nil), NotBeforeNotInteger},
		"issued a text":               {sign(t, jose.RS256, m.rsa, `{"iat":"x"}`, nil), IssuedNotInteger},
		"issuer a list":               {sign(t, jose.RS256, m.rsa, `{"iss":["i"]}`, nil), IssuerNotString},
		"subject a number":            {sign(t, jose.RS256, m.rsa, `{"sub":1}`, nil), SubjectNotString},
		"id a number":                 {sign(t, jose.RS256, m.rsa, `{"jti":1}`, nil), IDNotString},
		"audience an object":          {sign(t, jose.RS256, m.rsa, `{"aud":{}}`, nil), AudienceNotString},
		"audience of numbers":         {sign(t, jose.RS256, m.rsa, `{"aud":["a",1]}`, nil), AudienceNotString},
	} {
		t.Run(name, func(t *testing.T) {
			if got := judge(tc.raw, keys, time.Now()); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// TestKeySets: what is a key and what is not.
func TestKeySets(t *testing.T) {
	m := made()
	public := func(k jose.JSONWebKey) string {
		raw, err := k.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	cert := func(key crypto.Signer) string {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		quoted, _ := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		return string(quoted)
	}
	one := func(k string) string { return `{"keys":[` + k + `]}` }
	rsaKey := public(jose.JSONWebKey{Key: m.rsa.Public()})
	const secret = `{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}`
	for name, tc := range map[string]struct {
		doc     string
		fetched bool
		usable  int
		bad     bool
	}{
		"one":                         {one(rsaKey), true, 1, false},
		"none":                        {`{"keys":[]}`, true, 0, false},
		"a bad one beside it":         {one(rsaKey + `,{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"RSA"},5`), true, 1, false},
		"for encryption":              {one(public(jose.JSONWebKey{Key: m.rsa.Public(), Use: "enc"})), true, 0, false},
		"for signatures":              {one(public(jose.JSONWebKey{Key: m.rsa.Public(), Use: "sig"})), true, 1, false},
		"short RSA":                   {one(public(jose.JSONWebKey{Key: m.small.Public()})), true, 0, false},
		"algorithm of another kind":   {one(public(jose.JSONWebKey{Key: m.rsa.Public(), Algorithm: "HS256"})), true, 0, false},
		"curve of another algorithm":  {one(public(jose.JSONWebKey{Key: m.p256.Public(), Algorithm: "ES384"})), true, 0, false},
		"private, its public half":    {one(public(jose.JSONWebKey{Key: m.p256})), true, 1, false},
		"a secret, inline":            {one(secret), false, 1, false},
		"a secret, fetched":           {one(secret), true, 0, false},
		"unknown kind":                {one(`{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}`), true, 0, false},
		"certificates":                {`{"a":` + cert(m.rsa) + `,"b":` + cert(m.p256) + `}`, true, 2, false},
		"certificate of a short key":  {`{"a":` + cert(m.small) + `}`, true, 0, false},
		"no keys":                     {`{"kees":[]}`, true, 0, true},
		"empty":                       {`{}`, true, 0, true},
		"not an object":               {`[]`, true, 0, true},
		"not JSON":                    {`<html>`, true, 0, true},
		"keys not a list":             {`{"keys":{}}`, true, 0, true},
		"more keys than can be tried": {one(strings.Repeat(rsaKey+",", maxKeys) + rsaKey), true, 0, true},
	} {
		k, err := ParseKeys([]byte(tc.doc), tc.fetched)
		if (err != nil) != tc.bad || k.Len() != tc.usable {
			t.Errorf("%s: %d keys, %v; want %d, error %v", name, k.Len(), err, tc.usable, tc.bad)
		}
	}
	if s := judge(sign(t, jose.RS256, m.rsa, `{}`, nil), nil, time.Now()); s != NoValidKeys {
		t.Errorf("without any key: %v", s)
	}
	// Two keys of one id: both are tried.
	both := set(t, jose.JSONWebKey{Key: m.p256.Public(), KeyID: "a"}, jose.JSONWebKey{Key: m.rsa.Public(), KeyID: "a"})
	if s := judge(sign(t, jose.RS256, m.rsa, `{}`, map[jose.HeaderKey]any{"kid": "a"}), both, time.Now()); s != OK {
		t.Errorf("two keys of one id: %v", s)
	}
}

// FuzzParse: whatever comes, no panic, and what is read has one spelling.
func FuzzParse(f *testing.F) {
	m := made()
	f.Add(sign(f, jose.ES256, m.p256, `{"iss":"i","aud":["a"],"exp":1,"nbf":2}`, nil))
	f.Add("a.b.c")
	f.Add(b64(`{"alg":"ES256"}`) + "." + b64(`{"a":[[[[{}]]]]}`) + ".AA")
	keys := set(f, jose.JSONWebKey{Key: m.p256.Public()})
	f.Fuzz(func(t *testing.T, raw string) {
		tok, s := Parse(raw)
		if (tok != nil) != (s == OK) {
			t.Fatalf("token %v with status %v", tok, s)
		}
		if s != OK {
			return
		}
		for p := range strings.SplitSeq(raw, ".") {
			decoded, err := base64.RawURLEncoding.DecodeString(p)
			if err != nil || base64.RawURLEncoding.EncodeToString(decoded) != p {
				t.Fatalf("section %q has another spelling", p)
			}
		}
		tok.InTime(time.Unix(1, 0), time.Minute)
		tok.Lifetime(time.Unix(1, 0))
		_ = tok.Verify(keys).String()
	})
}

// FuzzKeys: no document makes the reader panic or gives more keys than are tried.
func FuzzKeys(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"},{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`))
	f.Add([]byte(`{"a":"-----BEGIN CERTIFICATE-----"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if k, err := ParseKeys(raw, true); err == nil && k.Len() > maxKeys {
			t.Fatalf("%d keys", k.Len())
		}
	})
}
