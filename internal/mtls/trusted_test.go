package mtls

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
)

// TestClientTrusting: not knowing who answers does not mean that anybody may.
func TestClientTrusting(t *testing.T) {
	ca, other := newAuthority(t, "root"), newAuthority(t, "other")
	mine, nobody := ca.issue(t, idA, nil), ca.issue(t, "", nil)
	for name, tc := range map[string]struct {
		client, server *Certificate
		want           string // empty: it is trusted
	}{
		"of our trust domain": {mine, ca.issue(t, idB, nil), ""},
		"other trust domain":  {mine, ca.issue(t, "spiffe://evil/ns/b/sa/b", nil), "no identity of our trust domain: presented [spiffe://evil/ns/b/sa/b], expected [spiffe://td/ns/*/sa/*]"},
		"other roots":         {mine, other.issue(t, idB, nil), "unknown authority"},
		"no identity":         {mine, ca.issue(t, "", nil), "no identity of our trust domain"},
		"foreign URI":         {mine, ca.issue(t, "https://td/ns/b/sa/b", nil), "no identity of our trust domain"},
		"expired":             {mine, ca.issue(t, idB, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), "expired"},
		"clients only":        {mine, ca.issue(t, idB, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), "incompatible key usage"},
		"we have none":        {nobody, ca.issue(t, idB, nil), "our own certificate names no identity"},
		"neither has any":     {nobody, ca.issue(t, "", nil), "our own certificate names no identity"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			defer func() { _, _ = a.Close(), b.Close() }()
			tc.server.Pool = tc.client.Pool // the server is content
			go serve(b, tc.server)
			_, id, err := ClientTrusting(t.Context(), a, tc.client)
			switch {
			case tc.want == "" && (err != nil || id.String() != idB):
				t.Fatalf("%v, %v", id, err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Fatalf("%v, %v; want %q", id, err, tc.want)
			}
			if _, werr := a.Write([]byte("x")); err != nil && werr == nil {
				t.Error("the refused connection stayed open")
			}
		})
	}
}

// TestServerWithoutIdentity: who has no trust domain can tell nobody apart, so nobody is let in.
func TestServerWithoutIdentity(t *testing.T) {
	ca := newAuthority(t, "root")
	nobody, peer := ca.issue(t, "", nil), ca.issue(t, idB, nil)
	a, b := pair(t)
	defer func() { _, _ = a.Close(), b.Close() }()
	go func() {
		// A peer that does not care who answers.
		c := tls.Client(a, &tls.Config{Certificates: []tls.Certificate{peer.TLS}, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		_ = c.HandshakeContext(context.Background())
	}()
	if _, id, err := Server(t.Context(), b, nobody); err == nil || !strings.Contains(err.Error(), "names no identity") {
		t.Fatalf("%v, %v; want a refusal", id, err)
	}
}

func serve(c net.Conn, cert *Certificate) {
	_, _, _ = Server(context.Background(), c, cert)
}

// TestIntermediates: a chain is presented whole and followed to the root.
func TestIntermediates(t *testing.T) {
	root, middle := newAuthority(t, "root"), newAuthority(t, "middle")
	signed, err := x509.CreateCertificate(rand.Reader, middle.cert, root.cert, middle.key.Public(), root.key)
	if err != nil {
		t.Fatal(err)
	}
	short := middle.issue(t, idB, nil)
	key := short.TLS.PrivateKey.(crypto.Signer)
	whole, err := NewCertificate(key, []string{encode(short.Leaf.Raw), encode(signed), root.pem})
	if err != nil {
		t.Fatal(err)
	}
	client, expect := root.issue(t, idA, nil), identity.MustParse(idB)
	if c, s := shake(t, client, whole, expect); c.err != nil || s.err != nil {
		t.Errorf("client %v, server %v", c.err, s.err)
	}
	// Without the link in between there is no way to the root.
	cut, err := NewCertificate(key, []string{encode(short.Leaf.Raw), root.pem})
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := shake(t, client, cut, expect); c.err == nil {
		t.Error("a chain with a gap was accepted")
	}
}
