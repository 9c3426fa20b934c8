package intake

import (
	"context"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// secrets takes what clusters need to speak TLS to their endpoints. This proxy's own certificate does not come this way.
func (in *Intake) secrets(_ context.Context, up []xds.Resource, removed []string) []xds.Reject {
	in.mu.Lock()
	defer in.mu.Unlock()
	good, rejects := judge(in, SecretType, up, removed, func() *tlsv3.Secret { return &tlsv3.Secret{} }, compileSecret)
	in.ups.ApplySecrets(good, removed)
	in.keepSecrets(good, removed)
	return rejects
}

func compileSecret(name string, p *tlsv3.Secret) (upstream.Secret, error) {
	fail := func(err error) (upstream.Secret, error) {
		return upstream.Secret{}, fmt.Errorf("secret %q: %w", name, err)
	}
	if p.GetName() != name {
		return fail(fmt.Errorf("it is named %q", p.GetName()))
	}
	switch t := p.GetType().(type) {
	case *tlsv3.Secret_TlsCertificate:
		if err := strict.Only(t.TlsCertificate, "certificate_chain", "private_key"); err != nil {
			return fail(err)
		}
		return upstream.Secret{Chain: text(t.TlsCertificate.GetCertificateChain()), Key: text(t.TlsCertificate.GetPrivateKey())}, nil
	case *tlsv3.Secret_ValidationContext:
		if err := strict.Only(t.ValidationContext, "trusted_ca", "crl"); err != nil {
			return fail(err)
		}
		return upstream.Secret{Roots: text(t.ValidationContext.GetTrustedCa()), CRL: text(t.ValidationContext.GetCrl())}, nil
	default:
		return fail(fmt.Errorf("type %T: %w", t, strict.ErrUnsupported))
	}
}

// text is what stands in the resource itself; a secret that points elsewhere is none.
func text(p *corev3.DataSource) string {
	if s := p.GetInlineString(); s != "" {
		return s
	}
	return string(p.GetInlineBytes())
}
