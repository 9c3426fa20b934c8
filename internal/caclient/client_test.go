package caclient

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	capb "github.com/marrowmesh/marrow/api/ca"
	"github.com/marrowmesh/marrow/internal/identity"
)

// authority signs whatever is asked, for the identity it was set to.
type authority struct {
	names string // empty: what was asked for
	last  *capb.IstioCertificateRequest
}

func (a *authority) Invoke(_ context.Context, _ string, in, out any, _ ...grpc.CallOption) error {
	req := in.(*capb.IstioCertificateRequest)
	a.last = req
	block, _ := pem.Decode([]byte(req.GetCsr()))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	u := csr.URIs[0]
	if a.names != "" {
		u, _ = url.Parse(a.names)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, URIs: []*url.URL{u}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, csr.PublicKey, key)
	if err != nil {
		return err
	}
	for _, der := range [][]byte{leafDER, rootDER} {
		out.(*capb.IstioCertificateResponse).CertChain = append(out.(*capb.IstioCertificateResponse).CertChain, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	return nil
}

func (*authority) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	panic("the service has no streams")
}

func TestFreshKey(t *testing.T) {
	a := &authority{}
	c := New(a)
	id := identity.MustParse("spiffe://cluster.local/ns/shop/sa/web")
	one, err := c.Fetch(t.Context(), id, true, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.last.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue(); got != id.String() || a.last.GetValidityDuration() != 3600 {
		t.Errorf("asked for %q, %d s", got, a.last.GetValidityDuration())
	}
	two, err := c.Fetch(t.Context(), id, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	if a.last.GetMetadata() != nil {
		t.Error("without impersonation the metadata must be absent")
	}
	if one.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(two.Leaf.PublicKey) {
		t.Error("two requests used the same key")
	}
}

func TestForeignIdentityRefused(t *testing.T) {
	c := New(&authority{names: "spiffe://cluster.local/ns/shop/sa/admin"})
	_, err := c.Fetch(t.Context(), identity.MustParse("spiffe://cluster.local/ns/shop/sa/web"), true, 0)
	if err == nil || !strings.Contains(err.Error(), "sa/admin") {
		t.Fatalf("got %v, want a refusal that names the foreign identity", err)
	}
}
