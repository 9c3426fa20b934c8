package waypoint

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// nobodysKey stands where there is no key: a reader refuses a set without any, together with the whole listener. Its x is the first point
// of P-256 at or after SHA-256("marrow: a key that nobody has"), so that nobody can know its private half.
const nobodysKey = `{"keys":[{"kty":"EC","kid":"nobody","crv":"P-256","alg":"ES256",` +
	`"x":"VjL-LdMSN_vv5-E8kHdJCQ2W5ZQnt4H3it4t2xsDMz0","y":"aT-ABkod173Zyv7StZCeMJ2fQgOizzIQfj9Dg6_0qt4"}]}`

// keySet is what proxies are sent of a user's JWKS: the keys that can verify something, and never the private half of one.
type keySet struct {
	text    string
	skipped int
	private bool // somebody wrote a private key
}

// readKeys reads a JWKS, or a map from key ids to certificates.
func readKeys(text string) (keySet, error) {
	var out keySet
	var doc map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return out, errors.New("the text is no JSON object")
	}
	var keys []jose.JSONWebKey
	if raw, ok := doc["keys"]; ok {
		var list []json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			return out, errors.New("keys is no list")
		}
		for _, one := range list {
			var k jose.JSONWebKey
			if err := k.UnmarshalJSON(one); err != nil {
				out.skipped++
				continue
			}
			keys = append(keys, k)
		}
	} else {
		keys, out.skipped = certificateKeys(doc)
	}
	var good jose.JSONWebKeySet
	for _, k := range keys {
		if _, secret := k.Key.([]byte); !secret && !k.IsPublic() {
			k, out.private = k.Public(), true
		}
		if !verifies(k) {
			out.skipped++
			continue
		}
		good.Keys = append(good.Keys, jose.JSONWebKey{Key: k.Key, KeyID: k.KeyID, Algorithm: k.Algorithm, Use: k.Use})
	}
	const most = 100
	if n := len(good.Keys); n == 0 || n > most {
		return out, fmt.Errorf("it has %d keys that can verify a token; want 1 to %d", n, most)
	}
	raw, err := json.Marshal(good)
	out.text = string(raw)
	return out, err
}

// verifies says whether a key is of a kind, and for an algorithm, that readers know.
func verifies(k jose.JSONWebKey) bool {
	if k.Use != "" && k.Use != "sig" {
		return false
	}
	alg := func(all ...string) bool { return k.Algorithm == "" || slices.Contains(all, k.Algorithm) }
	const modulus, f4 = 2048, 65537
	switch p := k.Key.(type) {
	case *rsa.PublicKey:
		return p.N.BitLen() >= modulus && (p.E == 3 || p.E == f4) && alg("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P256():
			return alg("ES256")
		case elliptic.P384():
			return alg("ES384")
		case elliptic.P521():
			return alg("ES512")
		}
	case ed25519.PublicKey:
		return alg("EdDSA")
	case []byte:
		return len(p) > 0 && alg("HS256", "HS384", "HS512")
	}
	return false
}

func certificateKeys(doc map[string]json.RawMessage) (keys []jose.JSONWebKey, skipped int) {
	for _, id := range slices.Sorted(maps.Keys(doc)) {
		var text string
		_ = json.Unmarshal(doc[id], &text) // what is no text is no certificate either
		block, _ := pem.Decode([]byte(text))
		if block == nil || !strings.HasPrefix(text, "-----BEGIN CERTIFICATE-----") {
			skipped++
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			skipped++
			continue
		}
		keys = append(keys, jose.JSONWebKey{Key: cert.PublicKey, KeyID: id})
	}
	return keys, skipped
}
