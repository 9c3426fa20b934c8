package authn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/metadata"

	"github.com/marrowmesh/marrow/internal/identity"
)

// Audience is what a token must be made for.
const Audience = "istio-ca"

// maxToken bounds a bearer token.
const maxToken = 16 << 10

// ErrUnauthenticated marks every refusal of this room.
var ErrUnauthenticated = errors.New("not authenticated")

// Caller is a pod that proved its service account.
type Caller struct {
	Identity identity.ID
	PodName  string
	PodUID   string
	// Node is where the token says that the pod runs; empty when it does not say.
	Node string
}

// TokenVerifier checks service-account tokens against a JWKS file, which is read
// again when it changes: the offline form of a TokenReview.
type TokenVerifier struct {
	path        string
	trustDomain string

	mu      sync.Mutex
	keys    jose.JSONWebKeySet
	modTime time.Time
}

// NewTokenVerifier reads the keys; it fails if the file is missing or not a JWKS.
func NewTokenVerifier(jwksPath, trustDomain string) (*TokenVerifier, error) {
	v := &TokenVerifier{path: jwksPath, trustDomain: trustDomain}
	_, err := v.current()
	return v, err
}

// current returns the keys, reloaded if the file changed. A file that turns bad leaves the last good keys in force.
func (v *TokenVerifier) current() (jose.JSONWebKeySet, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fi, err := os.Stat(v.path)
	if err == nil && fi.ModTime().Equal(v.modTime) {
		return v.keys, nil
	}
	var raw []byte
	if err == nil {
		raw, err = os.ReadFile(v.path)
	}
	var keys jose.JSONWebKeySet
	if err == nil {
		err = json.Unmarshal(raw, &keys)
	}
	if err == nil && len(keys.Keys) == 0 {
		err = errors.New("no keys in it")
	}
	if err != nil {
		if len(v.keys.Keys) > 0 {
			return v.keys, nil
		}
		return keys, fmt.Errorf("token keys %s: %w", v.path, err)
	}
	v.keys, v.modTime = keys, fi.ModTime()
	return keys, nil
}

// podClaims is the private claim of Kubernetes service-account tokens.
type podClaims struct {
	Kubernetes struct {
		Namespace string `json:"namespace"`
		Node      struct {
			Name string `json:"name"`
		} `json:"node"`
		Pod struct {
			Name string `json:"name"`
			UID  string `json:"uid"`
		} `json:"pod"`
		ServiceAccount struct {
			Name string `json:"name"`
		} `json:"serviceaccount"`
	} `json:"kubernetes.io"`
}

// Caller reads the bearer token of a gRPC call.
func (v *TokenVerifier) Caller(ctx context.Context) (Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return Caller{}, fmt.Errorf("%w: want one authorization header, got %d", ErrUnauthenticated, len(values))
	}
	token, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok {
		return Caller{}, fmt.Errorf("%w: the authorization header is not a bearer token", ErrUnauthenticated)
	}
	return v.Verify(token, time.Now())
}

// Verify checks one token.
func (v *TokenVerifier) Verify(token string, now time.Time) (Caller, error) {
	c, err := v.verify(token, now)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: service-account token: %w", ErrUnauthenticated, err)
	}
	return c, nil
}

func (v *TokenVerifier) verify(token string, now time.Time) (Caller, error) {
	if len(token) > maxToken {
		return Caller{}, fmt.Errorf("%d bytes long; at most %d", len(token), maxToken)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.RS256, jose.RS512, jose.EdDSA})
	if err != nil {
		return Caller{}, err
	}
	keys, err := v.current()
	if err != nil {
		return Caller{}, err
	}
	var std jwt.Claims
	var pod podClaims
	if err := parsed.Claims(keys, &std, &pod); err != nil {
		return Caller{}, err
	}
	if std.Expiry == nil {
		return Caller{}, errors.New("it never expires (claim exp is missing)")
	}
	if err := std.ValidateWithLeeway(jwt.Expected{AnyAudience: jwt.Audience{Audience}, Time: now}, time.Minute); err != nil {
		return Caller{}, err
	}
	k := pod.Kubernetes
	if want := "system:serviceaccount:" + k.Namespace + ":" + k.ServiceAccount.Name; std.Subject != want {
		return Caller{}, fmt.Errorf("subject %q does not fit the claims %q", std.Subject, want)
	}
	id, err := identity.New(v.trustDomain, k.Namespace, k.ServiceAccount.Name)
	if err != nil {
		return Caller{}, err
	}
	return Caller{Identity: id, PodName: k.Pod.Name, PodUID: k.Pod.UID, Node: k.Node.Name}, nil
}
