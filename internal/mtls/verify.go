package mtls

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
)

func verifyServer(cert *Certificate, chain []*x509.Certificate, expect []identity.ID) error {
	want := texts(expect)
	if err := verifyChain(cert, chain, x509.ExtKeyUsageServerAuth, want); err != nil {
		return err
	}
	for _, u := range chain[0].URIs {
		if id, err := identity.Parse(u.String()); err == nil && slices.Contains(expect, id) {
			return nil
		}
	}
	return &PeerError{Reason: "its identity is not the expected one", Presented: presented(chain), Expected: want}
}

func verifyClient(cert *Certificate, chain []*x509.Certificate) error {
	return verifyDomain(cert, chain, x509.ExtKeyUsageClientAuth)
}

// verifyDomain accepts any identity of our own trust domain. Without an identity
// of our own there is no domain to compare with, so nobody is accepted; Istio's
// ztunnel leaves the check out then.
func verifyDomain(cert *Certificate, chain []*x509.Certificate, use x509.ExtKeyUsage) error {
	if cert.ID.IsZero() {
		return &PeerError{Reason: "our own certificate names no identity, so no peer can be of our trust domain", Presented: presented(chain)}
	}
	want := []string{identity.Scheme + cert.ID.TrustDomain() + "/ns/*/sa/*"}
	if err := verifyChain(cert, chain, use, want); err != nil {
		return err
	}
	for _, u := range chain[0].URIs {
		if id, err := identity.Parse(u.String()); err == nil && id.TrustDomain() == cert.ID.TrustDomain() {
			return nil
		}
	}
	return &PeerError{Reason: "no identity of our trust domain", Presented: presented(chain), Expected: want}
}

func verifyChain(cert *Certificate, chain []*x509.Certificate, usage x509.ExtKeyUsage, want []string) error {
	if len(chain) == 0 {
		return &PeerError{Reason: "no certificate", Expected: want}
	}
	now := time.Now()
	key := keyOf(chain, usage)
	if cert.verified.has(key, now) {
		return nil
	}
	opts := x509.VerifyOptions{
		Roots:         cert.Pool,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
		CurrentTime:   now,
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	ways, err := chain[0].Verify(opts)
	if err != nil {
		return &PeerError{Reason: "its certificate is not valid here", Presented: presented(chain), Expected: want, Err: err}
	}
	cert.verified.add(key, validity(ways), now)
	return nil
}

// maxVerified bounds the chains that one certificate remembers.
const maxVerified = 256

// chains remembers which chains were verified against the roots of the
// Certificate it is part of, and for how long that stays true. New roots come
// with a new Certificate, whose memory is empty.
type chains struct {
	mu   sync.Mutex
	seen map[chainKey]span
}

// chainKey is the hash of all certificates that a peer presented, and of what
// they are to be good for.
type chainKey [sha256.Size]byte

// span is the time in which every certificate of a chain is valid.
type span struct{ from, to time.Time }

func (s span) covers(t time.Time) bool { return !t.Before(s.from) && !t.After(s.to) }

func keyOf(chain []*x509.Certificate, usage x509.ExtKeyUsage) chainKey {
	h := sha256.New()
	size := func(n int) { _, _ = h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) }
	size(int(usage))
	for _, c := range chain {
		size(len(c.Raw))
		_, _ = h.Write(c.Raw)
	}
	return chainKey(h.Sum(nil))
}

// validity is the time in which all of the ways to a root hold.
func validity(ways [][]*x509.Certificate) span {
	var s span
	for _, way := range ways {
		for _, c := range way {
			if s.from.IsZero() || c.NotBefore.After(s.from) {
				s.from = c.NotBefore
			}
			if s.to.IsZero() || c.NotAfter.Before(s.to) {
				s.to = c.NotAfter
			}
		}
	}
	return s
}

func (v *chains) has(key chainKey, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.seen[key]
	return ok && s.covers(now)
}

func (v *chains) add(key chainKey, s span, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.seen == nil {
		v.seen = map[chainKey]span{}
	}
	if len(v.seen) >= maxVerified {
		v.evict(now)
	}
	v.seen[key] = s
}

// evict makes room: for all that is out of date, or for any one.
func (v *chains) evict(now time.Time) {
	for k, s := range v.seen {
		if !s.covers(now) {
			delete(v.seen, k)
		}
	}
	for k := range v.seen {
		if len(v.seen) < maxVerified {
			return
		}
		delete(v.seen, k)
	}
}

func presented(chain []*x509.Certificate) []string {
	var out []string
	for _, u := range chain[0].URIs {
		out = append(out, u.String())
	}
	return out
}

func texts(ids []identity.ID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = id.String()
	}
	return out
}
