package mtls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
)

type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{key: key, cert: cert, pem: encode(der)}
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func (a *authority) issue(t testing.TB, id string, change func(*x509.Certificate)) *Certificate {
	t.Helper()
	key, csrPEM, err := NewRequest(identity.MustParse("spiffe://td/ns/requested/sa/requested"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(csrPEM))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if id != "" {
		u, _ := url.Parse(id)
		tmpl.URIs = []*url.URL{u}
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, csr.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCertificate(key, []string{encode(der), a.pem})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pair is a loopback connection: on a pipe an alert would wait for a reader.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

type outcome struct {
	conn Conn
	id   identity.ID
	err  error
}

func shake(t testing.TB, cl, srv *Certificate, expect ...identity.ID) (c, s outcome) {
	t.Helper()
	a, b := pair(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	done := make(chan outcome, 1)
	go func() {
		conn, id, err := Server(ctx, b, srv)
		if err == nil { // a client learns of its refusal by reading
			_, err = conn.Write([]byte("x"))
		}
		done <- outcome{conn, id, err}
	}()
	conn, id, err := Client(ctx, a, cl, expect)
	c = outcome{conn, id, err}
	if err == nil {
		_, c.err = conn.Read(make([]byte, 1))
	}
	s = <-done
	_, _ = a.Close(), b.Close()
	return c, s
}

const (
	idA = "spiffe://td/ns/a/sa/a"
	idB = "spiffe://td/ns/b/sa/b"
)

func TestHandshake(t *testing.T) {
	ca := newAuthority(t, "root")
	c, s := shake(t, ca.issue(t, idA, nil), ca.issue(t, idB, nil), identity.MustParse("spiffe://td/ns/x/sa/x"), identity.MustParse(idB))
	if c.err != nil || s.err != nil {
		t.Fatal(c.err, s.err)
	}
	if c.id.String() != idB || s.id.String() != idA {
		t.Errorf("client saw %v, server saw %v", c.id, s.id)
	}
	if Suite(c.conn) == 0 || Suite(c.conn) != Suite(s.conn) {
		t.Errorf("suites %#x and %#x", Suite(c.conn), Suite(s.conn))
	}
}

// TestNothingResumes: a client that would keep tickets gets none.
func TestNothingResumes(t *testing.T) {
	ca := newAuthority(t, "root")
	cert := ca.issue(t, idA, nil)
	cache := tls.NewLRUClientSessionCache(10)
	for range 2 {
		a, b := pair(t)
		done := make(chan error, 1)
		go func() {
			s, _, err := Server(context.Background(), b, ca.issue(t, idB, nil))
			if err == nil {
				_, err = s.Write([]byte("x"))
			}
			done <- err
		}()
		c := tls.Client(a, &tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{cert.TLS}, NextProtos: []string{"h2"},
			ServerName: "x", ClientSessionCache: cache,
		})
		_, err := c.Read(make([]byte, 1))
		if serr := <-done; err != nil || serr != nil {
			t.Fatal(err, serr)
		}
		if _, kept := cache.Get("x"); kept || c.ConnectionState().DidResume {
			t.Errorf("ticket kept: %v, resumed: %v", kept, c.ConnectionState().DidResume)
		}
		_, _ = a.Close(), b.Close()
	}
}

func TestClientNeedsExpectation(t *testing.T) {
	ca := newAuthority(t, "root")
	a, b := pair(t)
	defer func() { _ = b.Close() }()
	if _, _, err := Client(t.Context(), a, ca.issue(t, idA, nil), nil); err == nil {
		t.Fatal("no expectation, yet a handshake")
	}
	c, _ := shake(t, ca.issue(t, idA, nil), ca.issue(t, idB, nil), identity.MustParse(idA))
	for _, part := range []string{idA, idB, "not the expected"} {
		if c.err == nil || !strings.Contains(c.err.Error(), part) {
			t.Errorf("error %v does not name %s", c.err, part)
		}
	}
	other := newAuthority(t, "other")
	c, _ = shake(t, ca.issue(t, idA, nil), other.issue(t, idB, nil), identity.MustParse(idB))
	if pe, ok := errors.AsType[*PeerError](c.err); !ok {
		t.Errorf("server of other roots: %v", c.err)
	} else if _, ok := errors.AsType[x509.UnknownAuthorityError](pe); !ok {
		t.Errorf("cause %v", pe.Err)
	}
}

func TestServerRefuses(t *testing.T) {
	ca, other := newAuthority(t, "root"), newAuthority(t, "other")
	srv := ca.issue(t, idB, nil)
	for name, tc := range map[string]struct {
		cert *Certificate
		want string
	}{
		"other roots":        {other.issue(t, idA, nil), "unknown authority"},
		"other trust domain": {ca.issue(t, "spiffe://evil/ns/a/sa/a", nil), "no identity of our trust domain: presented [spiffe://evil/ns/a/sa/a], expected [spiffe://td/ns/*/sa/*]"},
		"no identity":        {ca.issue(t, "", nil), "no identity"},
		"foreign URI":        {ca.issue(t, "https://td/ns/a/sa/a", nil), "no identity"},
		"expired":            {ca.issue(t, idA, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), "expired"},
		"not yet valid":      {ca.issue(t, idA, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "not yet valid"},
		"servers only":       {ca.issue(t, idA, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), "incompatible key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.cert.Pool = ca.issue(t, idA, nil).Pool // the client itself is content
			c, s := shake(t, tc.cert, srv, identity.MustParse(idB))
			if s.err == nil || !strings.Contains(s.err.Error(), tc.want) {
				t.Errorf("server error %v, want %q", s.err, tc.want)
			}
			if c.err == nil {
				t.Error("client did not notice")
			}
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		err := raw(t, srv, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("server error %v", err)
		}
	})
}

// raw runs a foreign client against Server and returns Server's error.
func raw(t *testing.T, srv *Certificate, cfg *tls.Config) error {
	t.Helper()
	a, b := pair(t)
	done := make(chan error, 1)
	go func() { _, _, err := Server(context.Background(), b, srv); done <- err }()
	c := tls.Client(a, cfg)
	if c.Handshake() == nil {
		go func() { _, _ = c.Read(make([]byte, 1)) }()
	}
	err := <-done
	_ = a.Close()
	return err
}

func TestOnlyTLS13(t *testing.T) {
	ca := newAuthority(t, "root")
	cert := ca.issue(t, idA, nil)
	err := raw(t, ca.issue(t, idB, nil), &tls.Config{
		InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert.TLS},
	})
	if err == nil || !strings.Contains(err.Error(), "unsupported versions") {
		t.Errorf("TLS 1.2: %v", err)
	}
}

func TestALPN(t *testing.T) {
	ca := newAuthority(t, "root")
	cert := ca.issue(t, idA, nil)
	for offer, ok := range map[string]bool{"h2": true, "http/1.1": false, "": true} {
		cfg := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert.TLS}}
		if offer != "" {
			cfg.NextProtos = []string{offer}
		}
		if err := raw(t, ca.issue(t, idB, nil), cfg); (err == nil) != ok {
			t.Errorf("client offering %q: %v", offer, err)
		}
	}
}

func TestCertificateLayout(t *testing.T) {
	ca, second := newAuthority(t, "root"), newAuthority(t, "second")
	good := ca.issue(t, idA, nil)
	key := good.TLS.PrivateKey.(*ecdsa.PrivateKey)
	leaf := string(good.ChainPEM)
	if _, err := NewCertificate(key, nil); !errors.Is(err, ErrEmptyChain) {
		t.Errorf("empty: %v", err)
	}
	if _, err := NewCertificate(key, []string{leaf}); !errors.Is(err, ErrNoRoots) {
		t.Errorf("one element: %v", err)
	}
	broken := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
	c, err := NewCertificate(key, []string{leaf, ca.pem, broken + ca.pem + second.pem})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Roots) != 2 || len(c.BadRoots) != 1 || len(c.Chain) != 2 || c.ID.String() != idA {
		t.Errorf("roots %d, bad %d, chain %d, id %v", len(c.Roots), len(c.BadRoots), len(c.Chain), c.ID)
	}
	for name, chain := range map[string][]string{
		"broken leaf": {broken, ca.pem}, "no PEM": {"x", ca.pem}, "no usable root": {leaf, broken}, "other key": {string(second.issue(t, idA, nil).ChainPEM), ca.pem},
	} {
		if _, err := NewCertificate(key, chain); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestRequest(t *testing.T) {
	_, text, err := NewRequest(identity.MustParse(idA))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(text))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil || csr.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		t.Errorf("signature %v %v", csr.SignatureAlgorithm, err)
	}
	if len(csr.Subject.Names) != 0 || len(csr.Extensions) != 1 || !csr.Extensions[0].Critical ||
		len(csr.URIs) != 1 || csr.URIs[0].String() != idA {
		t.Errorf("subject %v, extensions %v, URIs %v", csr.Subject, csr.Extensions, csr.URIs)
	}
	if _, _, err := NewRequest(identity.ID{}); err == nil {
		t.Error("a request for nobody")
	}
}

func BenchmarkHandshake(b *testing.B) {
	ca := newAuthority(b, "root")
	cl, srv := ca.issue(b, idA, nil), ca.issue(b, idB, nil)
	for b.Loop() {
		shake(b, cl, srv, identity.MustParse(idB))
	}
}
