package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
)

// Life of workload certificates; Istio's DEFAULT_WORKLOAD_CERT_TTL and MAX_WORKLOAD_CERT_TTL.
const (
	DefaultTTL = 24 * time.Hour
	MaxTTL     = 90 * 24 * time.Hour
)

// maxCSR bounds the text of a request; a P-256 CSR has about 500 bytes.
const maxCSR = 16 << 10

// ErrBadRequest marks what the caller can mend.
var ErrBadRequest = errors.New("certificate request refused")

// SignCSR issues a certificate for id to the key of the PEM CSR. Names in the
// CSR are ignored. A ttl of zero or less means [DefaultTTL]; above [MaxTTL] is an error.
// The answer is the chain as the CA service gives it: leaf first, root bundle last.
func (a *Authority) SignCSR(csrPEM string, id identity.ID, ttl time.Duration, now time.Time) ([]string, error) {
	pub, err := requestKey(csrPEM)
	if err != nil {
		return nil, err
	}
	return a.issue(pub, id, ttl, now)
}

func requestKey(csrPEM string) (crypto.PublicKey, error) {
	if len(csrPEM) > maxCSR {
		return nil, fmt.Errorf("%w: CSR of %d bytes; at most %d", ErrBadRequest, len(csrPEM), maxCSR)
	}
	block, _ := pem.Decode([]byte(csrPEM))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("%w: csr: no PEM block of type CERTIFICATE REQUEST", ErrBadRequest)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: csr: %w", ErrBadRequest, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: csr: the self-signature does not verify: %w", ErrBadRequest, err)
	}
	return csr.PublicKey, checkKey(csr.PublicKey)
}

// checkKey refuses keys that are too weak to stand for an identity.
func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("%w: csr: elliptic curve of %d bits; at least 256", ErrBadRequest, k.Curve.Params().BitSize)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 || k.N.BitLen() > 8192 {
			return fmt.Errorf("%w: csr: RSA key of %d bits; 2048 to 8192", ErrBadRequest, k.N.BitLen())
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("%w: csr: key of type %T is not supported", ErrBadRequest, pub)
	}
	return nil
}

func (a *Authority) issue(pub crypto.PublicKey, id identity.ID, ttl time.Duration, now time.Time) ([]string, error) {
	if id.IsZero() {
		return nil, fmt.Errorf("%w: no identity to sign", ErrBadRequest)
	}
	switch {
	case ttl <= 0:
		ttl = DefaultTTL
	case ttl > MaxTTL:
		return nil, fmt.Errorf("%w: validity_duration %s is above the maximum of %s", ErrBadRequest, ttl, MaxTTL)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("%w: identity %s: %w", ErrBadRequest, id, err)
	}
	leaf, err := a.leaf(&x509.Certificate{URIs: []*url.URL{uri}}, pub, ttl, now)
	if err != nil {
		return nil, err
	}
	chain := []string{string(leaf)}
	// An intermediate goes along; a self-signed root is in the bundle already.
	if string(a.certPEM) != string(a.roots) && a.cert.CheckSignatureFrom(a.cert) != nil {
		chain = append(chain, string(a.certPEM))
	}
	return append(chain, string(a.roots)), nil
}

// leaf signs an end-entity certificate; the template gives its names.
func (a *Authority) leaf(tmpl *x509.Certificate, pub crypto.PublicKey, ttl time.Duration, now time.Time) ([]byte, error) {
	if now.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("the signing certificate expired at %s", a.cert.NotAfter.Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber = serial
	tmpl.NotBefore = now.Add(-clockSkew)
	tmpl.NotAfter = now.Add(ttl)
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		tmpl.NotAfter = a.cert.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// IssueKey makes a key and a certificate for id: what SDS hands to a proxy that
// cannot ask by itself. It returns the PEM chain without roots, and the PEM key.
func (a *Authority) IssueKey(id identity.ID, ttl time.Duration, now time.Time) (chainPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	chain, err := a.issue(key.Public(), id, ttl, now)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range chain[:len(chain)-1] {
		chainPEM = append(chainPEM, c...)
	}
	return chainPEM, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ServerCertificate is the control plane's own, for the given DNS names; it lives as long as the signer.
func (a *Authority) ServerCertificate(names []string, now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := a.leaf(&x509.Certificate{DNSNames: names}, key.Public(), rootLife, now)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(append(leaf, a.certPEM...), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}
