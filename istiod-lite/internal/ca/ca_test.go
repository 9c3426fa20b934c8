package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	capb "github.com/marrowmesh/marrow/api/ca"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/istiod-lite/internal/authn"
)

func open(t *testing.T) *Authority {
	t.Helper()
	a, err := Open(t.TempDir(), "cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func csr(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "spiffe://cluster.local/ns/evil/sa/evil"}, DNSNames: []string{"istiod.istio-system.svc"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func ecKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestRootOnDisk(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	a, err := Open(dir, "cluster.local", now)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("key file mode %v, %v; want 0600", fi.Mode(), err)
	}
	again, err := Open(dir, "cluster.local", now)
	if err != nil || string(again.Roots()) != string(a.Roots()) {
		t.Fatalf("the root changed on the second start: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Fatalf("temporary files left: %v", left)
	}
	if _, err := Open(dir, "cluster.local", now.Add(11*365*24*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Fatalf("an expired root: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, "cluster.local", now); err == nil || !strings.Contains(err.Error(), KeyFile) {
		t.Fatalf("half an authority must be refused naming what is missing: %v", err)
	}
	other := t.TempDir()
	if _, err := Open(other, "cluster.local", now); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(filepath.Join(other, KeyFile))
	_ = os.WriteFile(filepath.Join(dir, KeyFile), b, 0o600)
	if _, err := Open(dir, "cluster.local", now); err == nil || !strings.Contains(err.Error(), "does not belong") {
		t.Fatalf("a foreign key: %v", err)
	}
}

func TestLeaf(t *testing.T) {
	a, now := open(t), time.Now()
	id := identity.MustParse("spiffe://cluster.local/ns/shop/sa/web")
	chain, err := a.SignCSR(csr(t, ecKey(t)), id, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 || chain[1] != string(a.Roots()) {
		t.Fatalf("chain of %d parts; want leaf and root bundle", len(chain))
	}
	leaf, err := parseCert([]byte(chain[0]))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.Roots())
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Error(err)
		}
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id.String() || len(leaf.DNSNames) != 0 || leaf.Subject.String() != "" || leaf.IsCA {
		t.Errorf("leaf names: URIs %v, DNS %v, subject %q, CA %v; want the identity alone", leaf.URIs, leaf.DNSNames, leaf.Subject, leaf.IsCA)
	}
	critical := false
	for _, e := range leaf.Extensions {
		critical = critical || (e.Id.String() == "2.5.29.17" && e.Critical)
	}
	if !critical {
		t.Error("with an empty subject the subjectAltName must be critical")
	}
	if skew := now.Sub(leaf.NotBefore); skew < time.Minute || skew > 3*time.Minute {
		t.Errorf("not_before is %s back, want 2 minutes", skew)
	}
	if _, err := a.SignCSR(csr(t, ecKey(t)), id, MaxTTL+time.Second, now); !errors.Is(err, ErrBadRequest) {
		t.Errorf("a life above the maximum: %v", err)
	}
	if chain, err = a.SignCSR(csr(t, ecKey(t)), id, -1, now); err != nil {
		t.Fatal(err)
	}
	if leaf, _ = parseCert([]byte(chain[0])); leaf.NotAfter.Sub(now).Round(time.Hour) != DefaultTTL {
		t.Errorf("default life ends %s from now", leaf.NotAfter.Sub(now))
	}
}

func TestHostileCSR(t *testing.T) {
	a := open(t)
	id := identity.MustParse("spiffe://cluster.local/ns/shop/sa/web")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := csr(t, ecKey(t))
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	for name, text := range map[string]string{
		"empty": "", "not PEM": "hello", "broken signature": string(pem.EncodeToMemory(block)), "short RSA key": csr(t, weak), "short curve": csr(t, p224),
		"a certificate": string(a.Roots()), "large": good + strings.Repeat(" ", maxCSR),
	} {
		if _, err := a.SignCSR(text, id, 0, time.Now()); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
	if _, err := a.SignCSR(good, identity.ID{}, 0, time.Now()); !errors.Is(err, ErrBadRequest) {
		t.Errorf("no identity: %v", err)
	}
}

func FuzzRequestKey(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		if pub, err := requestKey(text); err == nil && pub == nil {
			t.Fatal("no key and no error")
		}
	})
}

// world is a node check's surroundings: pods by namespace/name.
type world map[string][3]string // uid, sa, node

func (w world) Pod(ns, name string) (uid, sa, node string, ok bool) {
	p, ok := w[ns+"/"+name]
	return p[0], p[1], p[2], ok
}

func (w world) OnNode(node, ns, sa string) bool {
	for k, p := range w {
		if strings.HasPrefix(k, ns+"/") && p[1] == sa && p[2] == node {
			return true
		}
	}
	return false
}

type fixedCaller struct {
	who authn.Caller
	err error
}

func (f fixedCaller) Caller(context.Context) (authn.Caller, error) { return f.who, f.err }

func TestImpersonation(t *testing.T) {
	pods := world{
		"istio-system/ztunnel-1": {"uz1", "ztunnel", "node-1"}, "istio-system/ztunnel-2": {"uz2", "ztunnel", "node-2"},
		"istio-system/node-agent": {"ua", "cni", "node-1"}, "istio-system/ztunnel-0": {"uz0", "ztunnel", ""}, "shop/waits": {"u3", "waits", ""},
		"shop/web-1": {"u1", "web", "node-1"}, "shop/db-1": {"u2", "db", "node-2"},
	}
	ztunnel := authn.Caller{Identity: identity.MustParse("spiffe://cluster.local/ns/istio-system/sa/ztunnel"), PodName: "ztunnel-1", PodUID: "uz1"}
	with := func(mod func(*authn.Caller)) authn.Caller { c := ztunnel; mod(&c); return c }
	for name, tc := range map[string]struct {
		caller authn.Caller
		asks   string // empty: no impersonation
		want   string // empty: refused
	}{
		"own pod's identity":           {with(func(c *authn.Caller) { c.Identity = identity.MustParse("spiffe://cluster.local/ns/shop/sa/web") }), "", "spiffe://cluster.local/ns/shop/sa/web"},
		"pod of the node":              {ztunnel, "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/web"},
		"pod of another node":          {ztunnel, "spiffe://cluster.local/ns/shop/sa/db", ""},
		"nobody's identity":            {ztunnel, "spiffe://cluster.local/ns/shop/sa/ghost", ""},
		"another trust domain":         {ztunnel, "spiffe://evil/ns/shop/sa/web", ""},
		"malformed":                    {ztunnel, "spiffe://cluster.local/ns/shop", ""},
		"empty":                        {ztunnel, " ", ""},
		"caller's pod is gone":         {with(func(c *authn.Caller) { c.PodName = "ztunnel-9" }), "spiffe://cluster.local/ns/shop/sa/web", ""},
		"caller's pod was renewed":     {with(func(c *authn.Caller) { c.PodUID = "old" }), "spiffe://cluster.local/ns/shop/sa/web", ""},
		"caller's pod runs as another": {with(func(c *authn.Caller) { c.PodName, c.PodUID = "node-agent", "ua" }), "spiffe://cluster.local/ns/shop/sa/web", ""},
		"caller's pod is on no node":   {with(func(c *authn.Caller) { c.PodName, c.PodUID = "ztunnel-0", "uz0" }), "spiffe://cluster.local/ns/shop/sa/waits", ""},
		"untrusted account": {
			authn.Caller{Identity: identity.MustParse("spiffe://cluster.local/ns/shop/sa/web"), PodName: "web-1", PodUID: "u1"},
			"spiffe://cluster.local/ns/shop/sa/web", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewService(ServiceConfig{
				Authority: open(t), Authenticator: fixedCaller{who: tc.caller}, Pods: pods, TrustDomain: "cluster.local",
				TrustedNodeAccounts: []string{"istio-system/ztunnel"},
			})
			req := &capb.IstioCertificateRequest{Csr: csr(t, ecKey(t)), ValidityDuration: 3600}
			if tc.asks != "" {
				req.Metadata, _ = structpb.NewStruct(map[string]any{"ImpersonatedIdentity": tc.asks})
			}
			resp, err := s.CreateCertificate(t.Context(), req)
			if tc.want == "" {
				if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "request impersonation authentication failure") {
					t.Fatalf("got %v, %v; want the opaque refusal", resp, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			leaf, _ := parseCert([]byte(resp.GetCertChain()[0]))
			if leaf.URIs[0].String() != tc.want {
				t.Fatalf("certificate for %s, want %s", leaf.URIs[0], tc.want)
			}
		})
	}
	s := NewService(ServiceConfig{Authority: open(t), Authenticator: fixedCaller{err: errors.New("no token")}, Pods: pods})
	if _, err := s.CreateCertificate(t.Context(), &capb.IstioCertificateRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("without a token: %v", err)
	}
}
