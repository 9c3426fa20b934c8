package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// maxKeys bounds what one token may be tried with.
	maxKeys = 100
	// minModulus is what RFC 7518 demands of RSA.
	minModulus = 2048
)

// Source is a place that publishes keys. It is comparable: equal sources share what was fetched.
type Source struct {
	URI     string
	Cluster string // through which it is reached
	Timeout time.Duration
	Cache   time.Duration // how long keys are taken as current
	Retry   time.Duration // pause after a failure, at first
}

// kind is what a key is made for, and what an algorithm needs.
type kind uint8

const (
	kindRSA kind = iota + 1
	kindP256
	kindP384
	kindP521
	kindEd25519
	kindSecret
)

// kindOf is 0 for an algorithm that is not supported; "none" is one of those.
func kindOf(alg string) kind {
	switch jose.SignatureAlgorithm(alg) {
	case jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512:
		return kindRSA
	case jose.ES256:
		return kindP256
	case jose.ES384:
		return kindP384
	case jose.ES512:
		return kindP521
	case jose.EdDSA:
		return kindEd25519
	case jose.HS256, jose.HS384, jose.HS512:
		return kindSecret
	default: // others, as those of ML-DSA, that no issuer of a mesh uses yet
		return 0
	}
}

// Keys is a set of keys of one issuer. It does not change.
type Keys struct {
	list    []key
	Skipped int // keys of the document that cannot be used
}

type key struct {
	id, alg string // empty = any
	kind    kind
	verify  any // *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey or, of a secret, []byte
}

// Len is the number of usable keys.
func (k *Keys) Len() int {
	if k == nil {
		return 0
	}
	return len(k.list)
}

// ParseKeys reads a JWKS document, or the map of key ids to certificates that Google publishes. Keys that cannot be used are skipped.
// A document that came over the network gives no secrets: whoever can read it could sign.
func ParseKeys(raw []byte, fetched bool) (*Keys, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("JWKS is not a JSON object: %w", err)
	}
	set, ok := doc["keys"]
	if !ok {
		return certificates(doc)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(set, &list); err != nil {
		return nil, fmt.Errorf("JWKS: keys is not a list: %w", err)
	}
	if len(list) > maxKeys {
		return nil, fmt.Errorf("JWKS has %d keys, at most %d are taken", len(list), maxKeys)
	}
	out := &Keys{}
	for _, one := range list {
		k, ok := parseKey(one)
		if !ok || fetched && k.kind == kindSecret {
			out.Skipped++
			continue
		}
		out.list = append(out.list, k)
	}
	return out, nil
}

func parseKey(raw []byte) (key, bool) {
	var j jose.JSONWebKey
	if err := j.UnmarshalJSON(raw); err != nil || j.Use != "" && j.Use != "sig" {
		return key{}, false
	}
	if !j.IsPublic() {
		if secret, ok := j.Key.([]byte); ok {
			k := key{id: j.KeyID, alg: j.Algorithm, kind: kindSecret, verify: secret}
			return k, len(secret) > 0 && k.agrees()
		}
		j = j.Public() // somebody published a private key; its public half is what it signs for
	}
	k := key{id: j.KeyID, alg: j.Algorithm, verify: j.Key}
	k.kind = kindOfKey(j.Key)
	return k, k.kind != 0 && k.agrees()
}

// agrees says whether the algorithm that a key is published for is one that it can be used with.
func (k key) agrees() bool { return k.alg == "" || kindOf(k.alg) == k.kind }

func kindOfKey(public any) kind {
	switch p := public.(type) {
	case *rsa.PublicKey:
		if p.N.BitLen() >= minModulus && p.E >= 3 {
			return kindRSA
		}
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P256():
			return kindP256
		case elliptic.P384():
			return kindP384
		case elliptic.P521():
			return kindP521
		}
	case ed25519.PublicKey:
		return kindEd25519
	}
	return 0
}

func certificates(doc map[string]json.RawMessage) (*Keys, error) {
	out := &Keys{}
	if len(doc) == 0 || len(doc) > maxKeys {
		return nil, fmt.Errorf("JWKS has no keys; want {\"keys\": [...]}")
	}
	for _, id := range slices.Sorted(maps.Keys(doc)) {
		var text string
		if err := json.Unmarshal(doc[id], &text); err != nil || !strings.HasPrefix(text, "-----BEGIN CERTIFICATE-----") {
			return nil, fmt.Errorf("JWKS has no keys; want {\"keys\": [...]}")
		}
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			out.Skipped++
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			out.Skipped++
			continue
		}
		if k := kindOfKey(cert.PublicKey); k != 0 {
			out.list = append(out.list, key{id: id, kind: k, verify: cert.PublicKey})
		} else {
			out.Skipped++
		}
	}
	return out, nil
}

// Verify checks the signature with the issuer's keys: that of the token's key id, or any if the token or the key has none.
func (t *Token) Verify(keys *Keys) Status {
	if keys.Len() == 0 {
		return NoValidKeys
	}
	tried := false
	want := kindOf(t.alg)
	for _, k := range keys.list {
		if t.kid != "" && k.id != "" && k.id != t.kid || k.alg != "" && k.alg != t.alg || k.kind != want {
			continue
		}
		tried = true
		if t.signed(k.verify) {
			return OK
		}
	}
	if !tried {
		return NoMatchingKey
	}
	return VerificationFails
}
