package caclient

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	capb "github.com/marrowmesh/marrow/api/ca"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
)

// Client calls istio.v1.auth.IstioCertificateService. It is safe for concurrent use.
type Client struct {
	rpc capb.IstioCertificateServiceClient
}

// New returns a client on a channel of xds.DialControlPlane, which adds the
// token and cluster headers to each call.
func New(conn grpc.ClientConnInterface) *Client {
	return &Client{rpc: capb.NewIstioCertificateServiceClient(conn)}
}

// Fetch gets a certificate for id. With impersonate the caller asks on behalf of
// a pod of its node (Istio's metadata field ImpersonatedIdentity); without, id
// must be the caller's own. ttl is a wish; zero leaves it to the authority.
func (c *Client) Fetch(ctx context.Context, id identity.ID, impersonate bool, ttl time.Duration) (*mtls.Certificate, error) {
	key, csr, err := mtls.NewRequest(id)
	if err != nil {
		return nil, fmt.Errorf("certificate request for %s: %w", id, err)
	}
	req := &capb.IstioCertificateRequest{Csr: csr, ValidityDuration: int64(ttl / time.Second)}
	if impersonate {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(id.String())}}
	}
	resp, err := c.rpc.CreateCertificate(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", id, err)
	}
	cert, err := mtls.NewCertificate(key, resp.GetCertChain())
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: the authority's answer: %w", id, err)
	}
	if cert.ID != id {
		return nil, fmt.Errorf("certificate for %s: the authority answered with one for %q", id, cert.ID)
	}
	return cert, nil
}
