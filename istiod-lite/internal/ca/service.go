package ca

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capb "github.com/marrowmesh/marrow/api/ca"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/istiod-lite/internal/authn"
)

// Pods answers what the node check needs to know.
type Pods interface {
	// Pod finds a pod by namespace and name: its UID, service account and node.
	Pod(namespace, name string) (uid, serviceAccount, node string, ok bool)
	// OnNode reports whether a pod that has not ended runs on the node as the service account.
	OnNode(node, namespace, serviceAccount string) bool
}

// Authenticator tells who makes a call.
type Authenticator interface {
	Caller(ctx context.Context) (authn.Caller, error)
}

// ServiceConfig configures a [Service].
type ServiceConfig struct {
	Authority     *Authority
	Authenticator Authenticator
	Pods          Pods
	TrustDomain   string
	// TrustedNodeAccounts ("namespace/name") may ask for the identities of pods on
	// their own node; empty turns that off. Istio's CA_TRUSTED_NODE_ACCOUNTS.
	TrustedNodeAccounts []string
	// OnIssue is told the outcome of each call; nil ignores.
	OnIssue func(caller authn.Caller, id identity.ID, err error)
}

// Service implements istio.v1.auth.IstioCertificateService.
type Service struct {
	capb.UnimplementedIstioCertificateServiceServer
	cfg ServiceConfig
}

// NewService returns the service to be registered with a gRPC server.
func NewService(cfg ServiceConfig) *Service { return &Service{cfg: cfg} }

// CreateCertificate signs the caller's key for the caller's identity, or for the
// one named in metadata field ImpersonatedIdentity.
func (s *Service) CreateCertificate(ctx context.Context, req *capb.IstioCertificateRequest) (*capb.IstioCertificateResponse, error) {
	caller, err := s.cfg.Authenticator.Caller(ctx)
	if err != nil {
		s.report(caller, identity.ID{}, err)
		return nil, status.Error(codes.Unauthenticated, "request authenticate failure")
	}
	id, err := s.identityFor(caller, req)
	if err != nil {
		s.report(caller, id, err)
		// The caller learns no more than that: which pods run where is not its business.
		return nil, status.Error(codes.Unauthenticated, "request impersonation authentication failure")
	}
	chain, err := s.cfg.Authority.SignCSR(req.GetCsr(), id, seconds(req.GetValidityDuration()), time.Now())
	s.report(caller, id, err)
	switch {
	case errors.Is(err, ErrBadRequest):
		return nil, status.Errorf(codes.InvalidArgument, "CSR signing error (%v)", err)
	case err != nil:
		return nil, status.Errorf(codes.Internal, "CSR signing error (%v)", err)
	}
	return &capb.IstioCertificateResponse{CertChain: chain}, nil
}

// seconds is n seconds, or the longest duration there is: a product that wrapped around would ask for some other life.
func seconds(n int64) time.Duration {
	if n > int64(math.MaxInt64/time.Second) {
		return math.MaxInt64
	}
	return time.Duration(max(n, 0)) * time.Second
}

func (s *Service) report(caller authn.Caller, id identity.ID, err error) {
	if s.cfg.OnIssue != nil {
		s.cfg.OnIssue(caller, id, err)
	}
}

// identityFor decides which identity this call may have.
func (s *Service) identityFor(caller authn.Caller, req *capb.IstioCertificateRequest) (identity.ID, error) {
	asked, impersonates := req.GetMetadata().GetFields()["ImpersonatedIdentity"]
	if !impersonates {
		return caller.Identity, nil
	}
	id, err := identity.Parse(asked.GetStringValue())
	if err != nil {
		return identity.ID{}, fmt.Errorf("ImpersonatedIdentity: %w", err)
	}
	return id, s.mayImpersonate(caller, id)
}

// mayImpersonate applies Istio's node check; see Pods.
func (s *Service) mayImpersonate(caller authn.Caller, id identity.ID) error {
	account := caller.Identity.Namespace() + "/" + caller.Identity.ServiceAccount()
	trusted := false
	for _, a := range s.cfg.TrustedNodeAccounts {
		trusted = trusted || a == account
	}
	if !trusted {
		return fmt.Errorf("service account %s may not ask for other identities (CA_TRUSTED_NODE_ACCOUNTS)", account)
	}
	if id.TrustDomain() != s.cfg.TrustDomain {
		return fmt.Errorf("identity %s is of another trust domain than this mesh's %s", id, s.cfg.TrustDomain)
	}
	uid, sa, node, ok := s.cfg.Pods.Pod(caller.Identity.Namespace(), caller.PodName)
	switch {
	case !ok:
		return fmt.Errorf("the caller's pod %s/%s does not exist", caller.Identity.Namespace(), caller.PodName)
	case uid != caller.PodUID:
		return fmt.Errorf("the caller's pod %s/%s has UID %s, the token says %s", caller.Identity.Namespace(), caller.PodName, uid, caller.PodUID)
	case sa != caller.Identity.ServiceAccount():
		return fmt.Errorf("the caller's pod %s/%s runs as %s, the token says %s", caller.Identity.Namespace(), caller.PodName, sa, caller.Identity.ServiceAccount())
	case node == "" || !s.cfg.Pods.OnNode(node, id.Namespace(), id.ServiceAccount()):
		return fmt.Errorf("no pod of %s/%s runs on the caller's node %q", id.Namespace(), id.ServiceAccount(), node)
	}
	return nil
}
