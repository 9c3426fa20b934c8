package mtls

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/marrowmesh/marrow/internal/identity"
)

// Certificate is one identity's proof and what it trusts. It is never
// changed after it was made; it remembers which peers it has verified.
type Certificate struct {
	ID       identity.ID // zero if the leaf carries none of the mesh's form
	Leaf     *x509.Certificate
	Chain    []*x509.Certificate // leaf, then intermediates: what is presented
	Roots    []*x509.Certificate // what peers must chain to
	TLS      tls.Certificate
	Pool     *x509.CertPool // Roots
	ChainPEM []byte
	RootPEM  []byte
	BadRoots []error // root blocks that could not be parsed and were left out

	verified chains // of peers, against Pool
}

// Source gives the certificate to present now. Fetching, caching and
// rotation are behind it.
type Source interface {
	Certificate(ctx context.Context) (*Certificate, error)
}

// Errors of a CA's answer.
var (
	ErrEmptyChain = errors.New("empty response")
	ErrNoRoots    = errors.New("no root certificate present")
)

// NewCertificate joins a key with the CA's answer: chainPEM[0] is the leaf,
// the last element all roots, those between one intermediate each. Of leaf
// and intermediates only the first PEM block counts; unparsable roots are
// left out (BadRoots).
func NewCertificate(key crypto.Signer, chainPEM []string) (*Certificate, error) {
	if len(chainPEM) == 0 {
		return nil, fmt.Errorf("certificate chain: %w", ErrEmptyChain)
	}
	if len(chainPEM) == 1 {
		return nil, fmt.Errorf("certificate chain of one element: %w", ErrNoRoots)
	}
	c := &Certificate{Pool: x509.NewCertPool()}
	last := len(chainPEM) - 1
	for i, text := range chainPEM[:last] {
		cert, err := firstCertificate(text)
		if err != nil {
			return nil, fmt.Errorf("certificate chain element %d: %w", i, err)
		}
		c.Chain = append(c.Chain, cert)
		c.TLS.Certificate = append(c.TLS.Certificate, cert.Raw)
		c.ChainPEM = append(c.ChainPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	c.parseRoots([]byte(chainPEM[last]))
	if len(c.Roots) == 0 {
		return nil, fmt.Errorf("certificate chain element %d: %w", last, errors.Join(append(c.BadRoots, ErrNoRoots)...))
	}
	c.Leaf = c.Chain[0]
	if err := matchKey(key, c.Leaf); err != nil {
		return nil, err
	}
	c.TLS.PrivateKey, c.TLS.Leaf = key, c.Leaf
	id, err := identity.FromCertificate(c.Leaf)
	if err != nil && !errors.Is(err, identity.ErrNoIdentity) {
		return nil, fmt.Errorf("certificate leaf: %w", err)
	}
	c.ID = id
	return c, nil
}

func (c *Certificate) parseRoots(rest []byte) {
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			c.BadRoots = append(c.BadRoots, fmt.Errorf("root certificate left out: %w", err))
			continue
		}
		c.Roots = append(c.Roots, root)
		c.Pool.AddCert(root)
		c.RootPEM = append(c.RootPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
	}
}

func firstCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	if block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("first PEM block is %q, want CERTIFICATE", block.Type)
	}
	return x509.ParseCertificate(block.Bytes)
}

func matchKey(key crypto.Signer, leaf *x509.Certificate) error {
	if key == nil {
		return errors.New("certificate without private key")
	}
	mine, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("private key: %w", err)
	}
	if !bytes.Equal(mine, leaf.RawSubjectPublicKeyInfo) {
		return errors.New("certificate is for another key than the one requested")
	}
	return nil
}

// NewRequest makes a fresh P-256 key and the request to certify it: empty
// subject, and as only extension the critical SAN with id.
func NewRequest(id identity.ID) (*ecdsa.PrivateKey, string, error) {
	if id.IsZero() {
		return nil, "", errors.New("certificate request for the zero identity")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("certificate request for %v: %w", id, err)
	}
	san, err := sanExtension(id)
	if err != nil {
		return nil, "", fmt.Errorf("certificate request for %v: %w", id, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtraExtensions:    []pkix.Extension{san},
	}, key)
	if err != nil {
		return nil, "", fmt.Errorf("certificate request for %v: %w", id, err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// sanExtension is written by hand because the standard library marks the
// extension of a request as not critical.
func sanExtension(id identity.ID) (pkix.Extension, error) {
	const uniformResourceIdentifier = 6 // GeneralName, RFC 5280 4.2.1.6
	value, err := asn1.Marshal([]asn1.RawValue{{
		Class: asn1.ClassContextSpecific, Tag: uniformResourceIdentifier, Bytes: []byte(id.String()),
	}})
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}, err
}
