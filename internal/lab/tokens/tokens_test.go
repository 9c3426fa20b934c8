package tokens_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/marrowmesh/marrow/internal/lab/tokens"
)

func parse(t *testing.T, i *tokens.Issuer, token string, into ...any) error {
	t.Helper()
	raw, err := i.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Claims(set, into...)
}

func issuer(t *testing.T) *tokens.Issuer {
	t.Helper()
	i, err := tokens.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestTokenClaims(t *testing.T) {
	i := issuer(t)
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	subject := tokens.Subject{Namespace: "shop", ServiceAccount: "web", Pod: "web-1", PodUID: "u1", Node: "node-2"}
	token, err := i.Token(subject, tokens.Audience, now, 12*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(token) != token {
		t.Errorf("token has white space around it: %q", token)
	}
	var std jwt.Claims
	type ref struct {
		Name string `json:"name"`
		UID  string `json:"uid"`
	}
	var own struct {
		K struct {
			Namespace string `json:"namespace"`
			Node      ref    `json:"node"`
			Pod       ref    `json:"pod"`
			SA        ref    `json:"serviceaccount"`
		} `json:"kubernetes.io"`
	}
	if err := parse(t, i, token, &std, &own); err != nil {
		t.Fatal(err)
	}
	if err := std.Validate(jwt.Expected{Issuer: "marrow-lab", Subject: "system:serviceaccount:shop:web", AnyAudience: jwt.Audience{"istio-ca"}, Time: now.Add(11 * time.Hour)}); err != nil {
		t.Error(err)
	}
	if err := std.Validate(jwt.Expected{Time: now.Add(13 * time.Hour)}); err == nil {
		t.Error("the token is valid after its life")
	}
	if k := own.K; k.Namespace != "shop" || k.Node.Name != "node-2" || k.Pod.Name != "web-1" || k.Pod.UID != "u1" || k.SA.Name != "web" {
		t.Errorf("kubernetes.io claim is %+v", k)
	}
}

func TestKeySetIsOwn(t *testing.T) {
	one, two := issuer(t), issuer(t)
	token, err := one.Token(tokens.Subject{Namespace: "a", ServiceAccount: "b"}, tokens.Audience, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := parse(t, two, token, &jwt.Claims{}); err == nil {
		t.Error("another lab's key set accepts the token")
	}
}
