package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Scheme starts the text form of every identity.
const Scheme = "spiffe://"

// ErrNoIdentity reports a certificate without any SPIFFE ID of the mesh's form.
var ErrNoIdentity = errors.New("certificate has no SPIFFE identity of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")

// ID is one workload identity. It is comparable; the zero value is nobody.
type ID struct {
	trustDomain    string
	namespace      string
	serviceAccount string
}

// New builds an identity from its three parts; each must be non-empty and use SPIFFE's characters.
func New(trustDomain, namespace, serviceAccount string) (ID, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return ID{}, fmt.Errorf("identity: trust domain %q: %w", trustDomain, err)
	}
	// TrustDomainFromString also takes whole IDs; only a bare name is a trust domain here.
	if td.Name() != trustDomain {
		return ID{}, fmt.Errorf("identity: trust domain %q: give the bare name %q", trustDomain, td.Name())
	}
	if err := spiffeid.ValidatePathSegment(namespace); err != nil {
		return ID{}, fmt.Errorf("identity: namespace %q: %w", namespace, err)
	}
	if err := spiffeid.ValidatePathSegment(serviceAccount); err != nil {
		return ID{}, fmt.Errorf("identity: service account %q: %w", serviceAccount, err)
	}
	return ID{trustDomain: trustDomain, namespace: namespace, serviceAccount: serviceAccount}, nil
}

// Parse reads the text form spiffe://<td>/ns/<ns>/sa/<sa>.
func Parse(s string) (ID, error) {
	id, err := spiffeid.FromString(s)
	if err != nil {
		return ID{}, fmt.Errorf("identity %q: %w", s, err)
	}
	return fromSPIFFE(id)
}

func fromSPIFFE(id spiffeid.ID) (ID, error) {
	rest, ok := strings.CutPrefix(id.Path(), "/ns/")
	if !ok {
		return ID{}, badPath(id)
	}
	ns, sa, ok := strings.Cut(rest, "/sa/")
	if !ok || ns == "" || sa == "" || strings.Contains(ns, "/") || strings.Contains(sa, "/") {
		return ID{}, badPath(id)
	}
	return ID{trustDomain: id.TrustDomain().Name(), namespace: ns, serviceAccount: sa}, nil
}

func badPath(id spiffeid.ID) error {
	return fmt.Errorf("identity %q: path %q is not /ns/<namespace>/sa/<service account>", id.String(), id.Path())
}

// MustParse is Parse for constants and tests; it panics on malformed text.
func MustParse(s string) ID {
	id, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return id
}

// FromCertificate returns the first URI SAN that is an identity of the mesh; ErrNoIdentity if there is none.
// It does not verify the certificate.
func FromCertificate(c *x509.Certificate) (ID, error) {
	if c == nil {
		return ID{}, ErrNoIdentity
	}
	for _, u := range c.URIs {
		sid, err := spiffeid.FromURI(u)
		if err != nil {
			continue
		}
		if id, err := fromSPIFFE(sid); err == nil {
			return id, nil
		}
	}
	return ID{}, ErrNoIdentity
}

// String is the text form, or "" for nobody.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return Scheme + id.Principal()
}

// Principal is the text form without "spiffe://": what policies compare with. It is "" for nobody.
func (id ID) Principal() string {
	if id.IsZero() {
		return ""
	}
	return id.trustDomain + "/ns/" + id.namespace + "/sa/" + id.serviceAccount
}

// TrustDomain is the authority part.
func (id ID) TrustDomain() string { return id.trustDomain }

// Namespace is the Kubernetes namespace part.
func (id ID) Namespace() string { return id.namespace }

// ServiceAccount is the Kubernetes service account part.
func (id ID) ServiceAccount() string { return id.serviceAccount }

// IsZero says that this is nobody.
func (id ID) IsZero() bool { return id == ID{} }
