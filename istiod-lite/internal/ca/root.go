package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Files of the authority's directory, named as in Istio's secrets.
const (
	CertFile = "ca-cert.pem"
	KeyFile  = "ca-key.pem"
	// RootFile is what clients trust; the only one that may be handed out.
	RootFile = "root-cert.pem"
)

// rootLife is the validity of a self-signed root.
const rootLife = 10 * 365 * 24 * time.Hour

// clockSkew back-dates certificates so that a client whose clock is behind accepts them.
const clockSkew = 2 * time.Minute

// Authority holds the signing key.
type Authority struct {
	cert    *x509.Certificate
	certPEM []byte
	key     crypto.Signer
	roots   []byte
}

// Open loads the authority from dir, or creates a self-signed root there when
// the directory holds none of its files. A directory with some of the files is
// an error: signing with a new key would break every certificate in use.
func Open(dir, trustDomain string, now time.Time) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("certificate authority directory: %w", err)
	}
	var missing, present []string
	for _, f := range []string{CertFile, KeyFile, RootFile} {
		if _, err := os.Stat(filepath.Join(dir, f)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, f)
		} else {
			present = append(present, f)
		}
	}
	switch {
	case len(present) == 0:
		return create(dir, trustDomain, now)
	case len(missing) > 0:
		return nil, fmt.Errorf("certificate authority directory %s holds %v but not %v: restore the missing files, or remove all of them to make a new root", dir, present, missing)
	default:
		return load(dir, now)
	}
}

func create(dir, trustDomain string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{trustDomain}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	// The public file comes last: whoever waits for it finds a whole authority.
	for _, f := range []struct {
		name string
		data []byte
		mode fs.FileMode
	}{{KeyFile, keyPEM, 0o600}, {CertFile, certPEM, 0o644}, {RootFile, certPEM, 0o644}} {
		if err := writeFile(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
	}
	return load(dir, now)
}

// writeFile makes the file appear whole or not at all.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func load(dir string, now time.Time) (*Authority, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(filepath.Join(dir, RootFile))
	if err != nil {
		return nil, err
	}
	a := &Authority{certPEM: certPEM, roots: roots}
	if a.cert, err = parseCert(certPEM); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, CertFile), err)
	}
	if a.key, err = parseKey(keyPEM); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, KeyFile), err)
	}
	return a, a.check(dir, now)
}

// check refuses an authority that could sign nothing of use.
func (a *Authority) check(dir string, now time.Time) error {
	pub, ok := a.cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !pub.Equal(a.key.Public()):
		return fmt.Errorf("certificate authority %s: %s does not belong to %s", dir, KeyFile, CertFile)
	case !a.cert.IsCA:
		return fmt.Errorf("certificate authority %s: %s is not a CA certificate", dir, CertFile)
	case now.After(a.cert.NotAfter):
		return fmt.Errorf("certificate authority %s: %s expired at %s", dir, CertFile, a.cert.NotAfter.Format(time.RFC3339))
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.roots) {
		return fmt.Errorf("certificate authority %s: %s holds no certificate", dir, RootFile)
	}
	if _, err := a.cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("certificate authority %s: %s does not chain to %s: %w", dir, CertFile, RootFile, err)
	}
	return nil
}

func parseCert(b []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM block of type CERTIFICATE")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("PEM block of type %q; want a private key", block.Type)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", key)
	}
	return signer, nil
}

// newSerial is 128 random bits, positive.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}

// Roots is the PEM bundle that clients trust.
func (a *Authority) Roots() []byte { return a.roots }
