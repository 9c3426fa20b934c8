package mtls

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
)

// TestVerifyEqualsHandshake asks Verify and a real handshake about the same certificates.
func TestVerifyEqualsHandshake(t *testing.T) {
	ca, other := newAuthority(t, "root"), newAuthority(t, "other")
	expired := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	}
	early := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }
	only := func(u x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }
	}
	a, b := ca.issue(t, idA, nil), ca.issue(t, idB, nil)
	for _, tc := range []struct {
		name           string
		client, server *Certificate
		expect         string
		refuses        string // client, server or empty
	}{
		{"both are what they should be", a, b, idB, ""},
		{"the same certificate on both sides", a, a, idA, ""},
		{"another identity is expected", a, b, idA, "client"},
		{"the server is of another root", a, other.issue(t, idB, nil), idB, "client"},
		{"the server has expired", a, ca.issue(t, idB, expired), idB, "client"},
		{"the server is not valid yet", a, ca.issue(t, idB, early), idB, "client"},
		{"the server is no server", a, ca.issue(t, idB, only(x509.ExtKeyUsageClientAuth)), idB, "client"},
		{"the server has no identity", a, ca.issue(t, "", nil), idB, "client"},
		{"the client has expired", ca.issue(t, idA, expired), b, idB, "server"},
		{"the client is not valid yet", ca.issue(t, idA, early), b, idB, "server"},
		{"the client is no client", ca.issue(t, idA, only(x509.ExtKeyUsageServerAuth)), b, idB, "server"},
		{"the client is of another trust domain", ca.issue(t, "spiffe://evil/ns/a/sa/a", nil), b, idB, "server"},
		{"the client has no identity", ca.issue(t, "", nil), b, idB, "server"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expect := identity.MustParse(tc.expect)
			id, err := Verify(tc.client, tc.server, []identity.ID{expect})
			switch local, ok := errors.AsType[*LocalError](err); {
			case tc.refuses == "" && (err != nil || id != tc.client.ID):
				t.Errorf("%v, %v", id, err)
			case tc.refuses != "" && (!ok || local.ByServer != (tc.refuses == "server") || !id.IsZero()):
				t.Errorf("%v, %v, want a refusal by the %s", id, err, tc.refuses)
			}
			_, s := shake(t, tc.client, tc.server, expect)
			if (s.err == nil) != (err == nil) || s.id != id {
				t.Errorf("handshake: %v, %v; Verify: %v, %v", s.id, s.err, id, err)
			}
			// Again, by what was remembered.
			if again, err2 := Verify(tc.client, tc.server, []identity.ID{expect}); again != id || (err2 == nil) != (err == nil) {
				t.Errorf("again: %v, %v", again, err2)
			}
		})
	}
	for name, pair := range map[string][2]*Certificate{"client": {nil, b}, "server": {a, nil}} {
		if _, err := Verify(pair[0], pair[1], []identity.ID{b.ID}); err == nil {
			t.Errorf("no certificate of the %s: accepted", name)
		}
	}
	if _, err := Verify(a, b, nil); err == nil {
		t.Error("accepted although nobody is expected")
	}
}
