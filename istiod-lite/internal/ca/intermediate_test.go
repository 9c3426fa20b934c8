package ca

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
)

// plugged writes the directory of an intermediate authority under a root of its own.
func plugged(t *testing.T, now time.Time, edit func(*x509.Certificate)) (dir string, root []byte) {
	t.Helper()
	rootKey, key := ecKey(t), ecKey(t)
	top := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(365 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	middle := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "middle"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(12 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	if edit != nil {
		edit(middle)
	}
	text := func(tmpl, parent *x509.Certificate, pub any) []byte {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, rootKey)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir, root = t.TempDir(), text(top, top, rootKey.Public())
	for name, data := range map[string][]byte{
		RootFile: root, CertFile: text(middle, top, key.Public()),
		KeyFile: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, root
}

// TestIntermediate: under somebody else's root, peers that know the root alone can verify what was issued,
// and nothing outlives its signer.
func TestIntermediate(t *testing.T) {
	now := time.Now()
	dir, root := plugged(t, now, nil)
	a, err := Open(dir, "cluster.local", now)
	if err != nil {
		t.Fatal(err)
	}
	id := identity.MustParse("spiffe://cluster.local/ns/shop/sa/web")
	chain, err := a.SignCSR(csr(t, ecKey(t)), id, 24*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 3 || chain[2] != string(root) {
		t.Fatalf("chain of %d parts; want leaf, intermediate and root", len(chain))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	between.AppendCertsFromPEM([]byte(chain[1]))
	leaf, err := parseCert([]byte(chain[0]))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		t.Error(err)
	}
	if leaf.NotAfter.After(a.cert.NotAfter) || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		t.Errorf("leaf until %s, usage %b; its signer ends at %s", leaf.NotAfter, leaf.KeyUsage, a.cert.NotAfter)
	}
	chainPEM, keyPEM, err := a.IssueKey(id, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if pair, err := tls.X509KeyPair(chainPEM, keyPEM); err != nil || len(pair.Certificate) != 2 {
		t.Errorf("issued pair with %d certificates, %v; want leaf and intermediate", len(pair.Certificate), err)
	}
	if _, err := a.SignCSR(csr(t, ecKey(t)), id, time.Hour, a.cert.NotAfter.Add(time.Second)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired signer signs: %v", err)
	}
	if serving, err := a.ServerCertificate([]string{"istiod.istio-system.svc"}, now); err != nil || len(serving.Certificate) != 2 {
		t.Errorf("own certificate with %d parts, %v; want the intermediate too", len(serving.Certificate), err)
	}
}

// TestUselessIntermediate: what could only sign certificates that nobody accepts is refused at the start.
func TestUselessIntermediate(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		edit func(*x509.Certificate)
		want string
	}{
		"not a CA": {func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature }, "is not a CA certificate"},
		"expired":  {func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, CertFile + " expired at"},
	} {
		dir, _ := plugged(t, now, tc.edit)
		if _, err := Open(dir, "cluster.local", now); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	dir, _ := plugged(t, now, nil)
	_, other := plugged(t, now, nil)
	if err := os.WriteFile(filepath.Join(dir, RootFile), other, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, "cluster.local", now); err == nil || !strings.Contains(err.Error(), "does not chain to "+RootFile) {
		t.Errorf("a foreign root: %v", err)
	}
}
