package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.Hash.New
	_ "crypto/sha512" // for crypto.Hash.New
	"encoding/base64"
	"math/big"
	"strings"
)

// hashes by the number that ends an algorithm's name (RFC 7518 3.1).
func hashOf(alg string) crypto.Hash {
	switch {
	case strings.HasSuffix(alg, "256"):
		return crypto.SHA256
	case strings.HasSuffix(alg, "384"):
		return crypto.SHA384
	default:
		return crypto.SHA512
	}
}

// signed says whether the signature is one of k, whose kind is that of the token's algorithm. The header is bytes here and nothing else: no
// key or certificate in it is even parsed.
func (t *Token) signed(k any) bool {
	at := strings.LastIndexByte(t.raw, '.')
	sig, err := base64.RawURLEncoding.Strict().DecodeString(t.raw[at+1:])
	if err != nil {
		return false
	}
	input := []byte(t.raw[:at])
	if public, ok := k.(ed25519.PublicKey); ok {
		return ed25519.Verify(public, input, sig)
	}
	hash := hashOf(t.alg)
	if secret, ok := k.([]byte); ok {
		mac := hmac.New(hash.New, secret)
		mac.Write(input)
		return hmac.Equal(mac.Sum(nil), sig)
	}
	h := hash.New()
	h.Write(input)
	sum := h.Sum(nil)
	switch public := k.(type) {
	case *rsa.PublicKey:
		if strings.HasPrefix(t.alg, "PS") {
			// RFC 7518 3.5: the salt is as long as the hash.
			return rsa.VerifyPSS(public, hash, sum, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return rsa.VerifyPKCS1v15(public, hash, sum, sig) == nil
	case *ecdsa.PublicKey:
		// RFC 7518 3.4: two numbers, each as long as the curve's field.
		size := (public.Curve.Params().BitSize + 7) / 8
		if len(sig) != 2*size {
			return false
		}
		return ecdsa.Verify(public, sum, new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:]))
	}
	return false
}
