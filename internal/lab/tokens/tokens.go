package tokens

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// IssuerName is the iss claim of the lab's tokens.
const IssuerName = "marrow-lab"

// Audience is what Istio's control plane asks for in a token.
const Audience = "istio-ca"

// KubernetesAudience is the audience of the token for the API server.
const KubernetesAudience = "https://kubernetes.default.svc.cluster.local"

// Issuer signs tokens with a key of its own.
type Issuer struct {
	signer jose.Signer
	public jose.JSONWebKey
}

// Subject is whom a token speaks for.
type Subject struct {
	Namespace, ServiceAccount string
	Pod, PodUID, Node         string
}

type named struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

type kubernetesClaim struct {
	Namespace      string `json:"namespace"`
	Node           named  `json:"node"`
	Pod            named  `json:"pod"`
	ServiceAccount named  `json:"serviceaccount"`
}

type claims struct {
	jwt.Claims
	Kubernetes kubernetesClaim `json:"kubernetes.io"`
}

// NewIssuer makes an issuer with a fresh key.
func NewIssuer() (*Issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the lab's token key: %w", err)
	}
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode the lab's token key: %w", err)
	}
	sum := sha256.Sum256(raw)
	kid := hex.EncodeToString(sum[:8])
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("make the lab's token signer: %w", err)
	}
	return &Issuer{
		signer: signer,
		public: jose.JSONWebKey{Key: &key.PublicKey, KeyID: kid, Algorithm: string(jose.ES256), Use: "sig"},
	}, nil
}

// JWKS is the key set that checks this issuer's tokens.
func (i *Issuer) JWKS() ([]byte, error) {
	raw, err := json.MarshalIndent(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.public}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the lab's key set: %w", err)
	}
	return append(raw, '\n'), nil
}

// Token signs a token. No newline follows it: an HTTP header with one is
// refused.
func (i *Issuer) Token(s Subject, audience string, now time.Time, life time.Duration) (string, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", fmt.Errorf("make a token's id: %w", err)
	}
	c := claims{
		Claims: jwt.Claims{
			Issuer:    IssuerName,
			Subject:   "system:serviceaccount:" + s.Namespace + ":" + s.ServiceAccount,
			Audience:  jwt.Audience{audience},
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now),
			Expiry:    jwt.NewNumericDate(now.Add(life)),
			ID:        hex.EncodeToString(id),
		},
		Kubernetes: kubernetesClaim{
			Namespace: s.Namespace,
			Node:      named{Name: s.Node},
			Pod:       named{Name: s.Pod, UID: s.PodUID},
			ServiceAccount: named{
				Name: s.ServiceAccount,
			},
		},
	}
	token, err := jwt.Signed(i.signer).Claims(c).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign the token of %s/%s: %w", s.Namespace, s.ServiceAccount, err)
	}
	return token, nil
}
