package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/metadata"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func writeKeys(t *testing.T, path string, k *ecdsa.PrivateKey) {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// claims of a good token; cases break one thing each.
func claims(now time.Time) map[string]any {
	return map[string]any{
		"iss": "marrow-lab", "sub": "system:serviceaccount:shop:web", "aud": []string{Audience},
		"exp": now.Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": "shop", "node": map[string]any{"name": "node-1"},
			"pod": map[string]any{"name": "web-1", "uid": "u1"}, "serviceaccount": map[string]any{"name": "web"},
		},
	}
}

func sign(t *testing.T, k *ecdsa.PrivateKey, c map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := jwt.Signed(s).Claims(c).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokenRefusals(t *testing.T) {
	now := time.Now()
	key, other := newKey(t), newKey(t)
	path := filepath.Join(t.TempDir(), "jwks.json")
	writeKeys(t, path, key)
	v, err := NewTokenVerifier(path, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	good, err := v.Verify(sign(t, key, claims(now)), now)
	if err != nil {
		t.Fatal(err)
	}
	if good.Identity.String() != "spiffe://cluster.local/ns/shop/sa/web" || good.PodName != "web-1" || good.PodUID != "u1" || good.Node != "node-1" {
		t.Fatalf("caller %+v", good)
	}
	unsigned := "eyJhbGciOiJub25lIn0." + strings.Split(sign(t, key, claims(now)), ".")[1] + "."
	for name, tc := range map[string]struct {
		token func() string
		text  string
	}{
		"other key":  {func() string { return sign(t, other, claims(now)) }, "error in cryptographic primitive"},
		"unsigned":   {func() string { return unsigned }, "signature algorithm"},
		"expired":    {func() string { c := claims(now); c["exp"] = now.Add(-2 * time.Minute).Unix(); return sign(t, key, c) }, "expired"},
		"no expiry":  {func() string { c := claims(now); delete(c, "exp"); return sign(t, key, c) }, "never expires"},
		"not yet":    {func() string { c := claims(now); c["nbf"] = now.Add(time.Hour).Unix(); return sign(t, key, c) }, "not valid yet"},
		"audience":   {func() string { c := claims(now); c["aud"] = "kubernetes"; return sign(t, key, c) }, "audience"},
		"subject":    {func() string { c := claims(now); c["sub"] = "system:serviceaccount:shop:admin"; return sign(t, key, c) }, "subject"},
		"no claims":  {func() string { c := claims(now); delete(c, "kubernetes.io"); return sign(t, key, c) }, "subject"},
		"garbage":    {func() string { return "a.b.c" }, ""},
		"empty":      {func() string { return "" }, ""},
		"very large": {func() string { return strings.Repeat("x", maxToken+1) }, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := v.Verify(tc.token(), now)
			if !errors.Is(err, ErrUnauthenticated) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %+v, %v; want a refusal with %q", c, err, tc.text)
			}
		})
	}
}

func TestKeysFollowTheFile(t *testing.T) {
	now := time.Now()
	first, second := newKey(t), newKey(t)
	path := filepath.Join(t.TempDir(), "jwks.json")
	if _, err := NewTokenVerifier(path, "td"); err == nil {
		t.Fatal("a missing key file must be an error at start")
	}
	writeKeys(t, path, first)
	v, err := NewTokenVerifier(path, "td")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Chtimes(path, now, now.Add(time.Minute))
	if _, err := v.Verify(sign(t, first, claims(now)), now); err != nil {
		t.Fatalf("a broken file must leave the last good keys in force: %v", err)
	}
	writeKeys(t, path, second)
	_ = os.Chtimes(path, now, now.Add(2*time.Minute))
	if _, err := v.Verify(sign(t, second, claims(now)), now); err != nil {
		t.Fatalf("new keys are not taken up: %v", err)
	}
	if _, err := v.Verify(sign(t, first, claims(now)), now); err == nil {
		t.Fatal("a withdrawn key still counts")
	}
}

func TestCallerHeader(t *testing.T) {
	key := newKey(t)
	path := filepath.Join(t.TempDir(), "jwks.json")
	writeKeys(t, path, key)
	v, err := NewTokenVerifier(path, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	tok := sign(t, key, claims(time.Now()))
	for name, md := range map[string]metadata.MD{
		"none": {}, "basic": metadata.Pairs("authorization", "Basic x"), "two": metadata.Pairs("authorization", "Bearer "+tok, "authorization", "Bearer "+tok),
	} {
		if _, err := v.Caller(metadata.NewIncomingContext(t.Context(), md)); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
	if _, err := v.Caller(metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+tok))); err != nil {
		t.Error(err)
	}
}
