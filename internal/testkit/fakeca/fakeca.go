package fakeca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
)

// CA signs certificates under one self-signed root.
type CA struct {
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	pem  string

	mu     sync.Mutex
	serial int64
	issued map[identity.ID]*mtls.Certificate
}

// New makes an authority.
func New() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"test"}}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{key: key, root: root, serial: 1, pem: encode(der), issued: map[identity.ID]*mtls.Certificate{}}, nil
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// Issue signs a certificate for an identity, the same one each time.
func (ca *CA) Issue(id identity.ID) (*mtls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if c := ca.issued[id]; c != nil {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, err
	}
	ca.serial++
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial), URIs: []*url.URL{uri},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, ca.root, &key.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	c, err := mtls.NewCertificate(key, []string{encode(der), ca.pem})
	if err != nil {
		return nil, fmt.Errorf("certificate of %v: %w", id, err)
	}
	ca.issued[id] = c
	return c, nil
}

// Source is the authority as the certificate source of one identity.
func (ca *CA) Source(id identity.ID) mtls.Source { return source{ca, id} }

type source struct {
	ca *CA
	id identity.ID
}

func (s source) Certificate(context.Context) (*mtls.Certificate, error) { return s.ca.Issue(s.id) }
