package mtls

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
)

// TestVerifiedOnce: a chain that was verified is remembered by the certificate
// whose roots it was verified against, for the usage that was asked.
func TestVerifiedOnce(t *testing.T) {
	ca := newAuthority(t, "root")
	mine, peer := ca.issue(t, idA, nil), ca.issue(t, idB, nil)
	server, client := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	if err := verifyChain(mine, peer.Chain, server, nil); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if !mine.verified.has(keyOf(peer.Chain, server), now) {
		t.Error("forgotten")
	}
	if mine.verified.has(keyOf(peer.Chain, client), now) {
		t.Error("remembered for another usage")
	}
	if mine.verified.has(keyOf(append(peer.Chain[:1:1], ca.cert), server), now) {
		t.Error("another chain is taken for this one")
	}
	if mine.verified.has(keyOf(peer.Chain, server), peer.Leaf.NotAfter.Add(time.Second)) ||
		mine.verified.has(keyOf(peer.Chain, server), peer.Leaf.NotBefore.Add(-time.Second)) {
		t.Error("remembered beyond its time")
	}
}

// TestVerifiedExpires: what was verified is not accepted any more when it, or
// what is above it, has expired.
func TestVerifiedExpires(t *testing.T) {
	ca := newAuthority(t, "root")
	mine := ca.issue(t, idA, nil)
	soon := time.Now().Add(1500 * time.Millisecond).Truncate(time.Second).Add(time.Second)
	peer := ca.issue(t, idB, func(c *x509.Certificate) { c.NotAfter = soon })
	if err := verifyChain(mine, peer.Chain, x509.ExtKeyUsageServerAuth, nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(soon.Add(10 * time.Millisecond)))
	if err := verifyChain(mine, peer.Chain, x509.ExtKeyUsageServerAuth, nil); err == nil {
		t.Error("still accepted")
	}
	// A root's end counts as well.
	ways := [][]*x509.Certificate{{{NotAfter: soon.Add(time.Hour)}, {NotAfter: soon}}}
	if s := validity(ways); !s.to.Equal(soon) {
		t.Errorf("valid to %v", s.to)
	}
}

// TestNewRootsForget: with other roots nothing of the old is remembered.
func TestNewRootsForget(t *testing.T) {
	old, other := newAuthority(t, "root"), newAuthority(t, "other")
	mine, peer := old.issue(t, idA, nil), old.issue(t, idB, nil)
	expect := identity.MustParse(idB)
	if c, s := shake(t, mine, peer, expect); c.err != nil || s.err != nil {
		t.Fatal(c.err, s.err)
	}
	rotated := other.issue(t, idA, nil)
	if c, _ := shake(t, rotated, peer, expect); c.err == nil {
		t.Error("a peer of the old roots is still accepted")
	}
	if c, s := shake(t, mine, peer, expect); c.err != nil || s.err != nil {
		t.Errorf("the old certificate: %v, %v", c.err, s.err)
	}
}

// TestRefusedIsNotRemembered, and what is remembered says nothing about the
// identity.
func TestRefusedIsNotRemembered(t *testing.T) {
	ca, other := newAuthority(t, "root"), newAuthority(t, "other")
	mine, stranger, peer := ca.issue(t, idA, nil), other.issue(t, idB, nil), ca.issue(t, idB, nil)
	for range 2 {
		if err := verifyServer(mine, stranger.Chain, []identity.ID{stranger.ID}); err == nil {
			t.Error("accepted")
		}
		if err := verifyServer(mine, peer.Chain, []identity.ID{mine.ID}); err == nil {
			t.Error("accepted as somebody else")
		}
	}
}

// TestVerifiedIsBounded: old and then any chains make room.
func TestVerifiedIsBounded(t *testing.T) {
	var v chains
	now := time.Now()
	live := span{now.Add(-time.Hour), now.Add(time.Hour)}
	for i := range 3 * maxVerified {
		s := live
		if i%2 == 0 {
			s.to = now.Add(-time.Minute)
		}
		v.add(chainKey{byte(i), byte(i >> 8)}, s, now)
	}
	if len(v.seen) > maxVerified || len(v.seen) < maxVerified/2 {
		t.Errorf("%d remembered", len(v.seen))
	}
}

func BenchmarkVerify(b *testing.B) {
	ca := newAuthority(b, "root")
	mine, peer := ca.issue(b, idA, nil), ca.issue(b, idB, nil)
	for _, remembered := range []bool{false, true} {
		name := "first"
		if remembered {
			name = "again"
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if !remembered {
					mine.verified.seen = nil
				}
				if err := verifyChain(mine, peer.Chain, x509.ExtKeyUsageServerAuth, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
