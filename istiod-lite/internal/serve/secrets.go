package serve

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/istiod-lite/internal/publish"
)

// Names of the secrets that Istio's proxies ask for.
const (
	CertificateSecret = "default"
	RootSecret        = "ROOTCA"
)

// Issuer makes keys and certificates; the certificate authority.
type Issuer interface {
	IssueKey(id identity.ID, ttl time.Duration, now time.Time) (chainPEM, keyPEM []byte, err error)
	Roots() []byte
}

// Secrets makes SDS secrets when they are first asked for and renews them while
// somebody follows them. A proxy that fetches its certificate from the authority
// never causes one.
type Secrets struct {
	issuer Issuer
	store  *publish.Store
	ttl    time.Duration

	mu   sync.Mutex
	live map[identity.ID]*secretState
}

// secretState is one identity's secret while subscriptions last.
type secretState struct {
	users   int
	made    bool
	renewAt time.Time
	serial  int
}

// NewSecrets returns an empty room of secrets that live for ttl.
func NewSecrets(issuer Issuer, store *publish.Store, ttl time.Duration) *Secrets {
	return &Secrets{issuer: issuer, store: store, ttl: ttl, live: map[identity.ID]*secretState{}}
}

func secretScope(id identity.ID) string { return "secret/" + id.String() }

func (s *Secrets) subscribe(store *publish.Store, id identity.ID, scope string) xds.Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[id] == nil {
		s.live[id] = &secretState{}
	}
	s.live[id].users++
	return &secretSubscription{Subscription: store.Subscribe(scope, secretScope(id)), secrets: s, id: id}
}

// secretSubscription makes the identity's secrets when they are first looked at.
type secretSubscription struct {
	xds.Subscription
	secrets *Secrets
	id      identity.ID
	once    sync.Once
}

func (s *secretSubscription) Get(url, name string) (xds.Resource, bool) {
	if url == xds.SecretType {
		s.secrets.ensure(s.id, time.Now())
	}
	return s.Subscription.Get(url, name)
}

func (s *secretSubscription) List(url string) []xds.Resource {
	if url == xds.SecretType {
		s.secrets.ensure(s.id, time.Now())
	}
	return s.Subscription.List(url)
}

func (s *secretSubscription) Close() {
	s.once.Do(func() {
		s.Subscription.Close()
		s.secrets.release(s.id)
	})
}

func (s *Secrets) release(id identity.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.live[id]
	if st.users--; st.users > 0 {
		return
	}
	delete(s.live, id)
	s.store.Publish(publish.Change{Scope: secretScope(id), URL: xds.SecretType, Removed: []string{CertificateSecret, RootSecret}})
}

// ensure makes the secrets of id if there are none or they are due.
func (s *Secrets) ensure(id identity.ID, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.live[id]
	if st == nil || (st.made && now.Before(st.renewAt)) {
		return
	}
	// A failure leaves what is published in force and is tried again at the next look or tick.
	if err := s.make(id, st, now); err == nil {
		st.made, st.renewAt = true, now.Add(s.ttl/2)
	}
}

func (s *Secrets) make(id identity.ID, st *secretState, now time.Time) error {
	chain, key, err := s.issuer.IssueKey(id, s.ttl, now)
	if err != nil {
		return err
	}
	st.serial++
	cert := &tlsv3.Secret{Name: CertificateSecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chain), PrivateKey: inline(key),
	}}}
	root := &tlsv3.Secret{Name: RootSecret, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		TrustedCa: inline(s.issuer.Roots()),
	}}}
	change := publish.Change{Scope: secretScope(id), URL: xds.SecretType}
	for _, sec := range []*tlsv3.Secret{cert, root} {
		body, err := anypb.New(sec)
		if err != nil {
			return err
		}
		change.Updated = append(change.Updated, xds.Resource{Name: sec.GetName(), Version: fmt.Sprintf("%d/%d", now.Unix(), st.serial), Body: body})
	}
	s.store.Publish(change)
	return nil
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// Run renews what is due, until ctx ends.
func (s *Secrets) Run(ctx context.Context) error {
	tick := time.NewTicker(min(time.Minute, max(s.ttl/20, time.Second)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			s.mu.Lock()
			var due []identity.ID
			for id, st := range s.live {
				if st.made && !now.Before(st.renewAt) {
					due = append(due, id)
				}
			}
			s.mu.Unlock()
			for _, id := range due {
				s.ensure(id, now)
			}
		}
	}
}
