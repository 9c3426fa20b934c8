package upstream

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// TLS says how a cluster's endpoints are spoken to over TLS, inside a tunnel or without one.
type TLS struct {
	Name      string // that is asked for and, with MatchName, has to be in the certificate; empty = of the request, with FromHost
	FromHost  bool   // ask for the name that the request's authority has
	MatchName bool
	ALPN      []string
	Roots     Source // none = nothing is verified
	Cert      Source // of this side; none = none
	Key       Source
	CRL       Source
	System    bool      // verify by the machine's own roots
	Names     []AltName // one of them has to be in the certificate; none = any certificate of the roots
	Min, Max  uint16
}

// Source is where PEM text comes from; at most one field is set.
type Source struct {
	File   string
	Inline string
	Secret string // name of a secret
}

func (s Source) none() bool { return s == Source{} }

// AltName is what a certificate may call its owner.
type AltName struct {
	Kind tlsv3.SubjectAltNameMatcher_SanType
	Text match.String
	DNS  string // of an exact DNS name, for which wildcards in the certificate count
}

func compileTLS(p *tlsv3.UpstreamTlsContext) (*TLS, error) {
	if err := strict.Only(p, "common_tls_context", "sni", "auto_host_sni", "auto_sni_san_validation", "max_session_keys"); err != nil {
		return nil, err
	}
	if p.GetAutoHostSni() {
		return nil, fmt.Errorf("auto_host_sni: %w", strict.ErrUnsupported)
	}
	c := p.GetCommonTlsContext()
	if err := strict.Only(c, "tls_params", "tls_certificates", "tls_certificate_sds_secret_configs", "validation_context",
		"combined_validation_context", "validation_context_sds_secret_config", "alpn_protocols"); err != nil {
		return nil, err
	}
	t := &TLS{Name: p.GetSni(), MatchName: p.GetAutoSniSanValidation(), ALPN: c.GetAlpnProtocols(), Min: tls.VersionTLS12, Max: tls.VersionTLS13}
	if err := t.versions(c.GetTlsParams()); err != nil {
		return nil, fmt.Errorf("tls_params: %w", err)
	}
	if err := t.own(c); err != nil {
		return nil, err
	}
	switch v := c.GetValidationContextType().(type) {
	case nil:
	case *tlsv3.CommonTlsContext_ValidationContext:
		return t, t.validation(v.ValidationContext)
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		t.Roots = Source{Secret: v.ValidationContextSdsSecretConfig.GetName()}
	case *tlsv3.CommonTlsContext_CombinedValidationContext:
		if err := t.validation(v.CombinedValidationContext.GetDefaultValidationContext()); err != nil {
			return nil, err
		}
		t.Roots = Source{Secret: v.CombinedValidationContext.GetValidationContextSdsSecretConfig().GetName()}
	default:
		return nil, fmt.Errorf("validation context %T: %w", v, strict.ErrUnsupported)
	}
	return t, t.foreign(t.Roots)
}

// foreign refuses the mesh's own secrets: who the endpoints are is then the tunnel's affair.
func (t *TLS) foreign(s Source) error {
	if s.Secret == "default" || s.Secret == "ROOTCA" {
		return fmt.Errorf("secret %q, the mesh's own, outside a tunnel: %w", s.Secret, strict.ErrUnsupported)
	}
	return nil
}

func (t *TLS) versions(p *tlsv3.TlsParameters) error {
	if err := strict.Only(p, "tls_minimum_protocol_version", "tls_maximum_protocol_version"); err != nil {
		return err
	}
	number := func(v tlsv3.TlsParameters_TlsProtocol, auto uint16) (uint16, error) {
		switch v {
		case tlsv3.TlsParameters_TLS_AUTO:
			return auto, nil
		case tlsv3.TlsParameters_TLSv1_2:
			return tls.VersionTLS12, nil
		case tlsv3.TlsParameters_TLSv1_3:
			return tls.VersionTLS13, nil
		case tlsv3.TlsParameters_TLSv1_0, tlsv3.TlsParameters_TLSv1_1:
		}
		return 0, fmt.Errorf("%v: %w", v, strict.ErrUnsupported)
	}
	var err error
	if t.Min, err = number(p.GetTlsMinimumProtocolVersion(), t.Min); err != nil {
		return err
	}
	t.Max, err = number(p.GetTlsMaximumProtocolVersion(), t.Max)
	return err
}

// own reads this side's certificate.
func (t *TLS) own(c *tlsv3.CommonTlsContext) error {
	if n := len(c.GetTlsCertificates()) + len(c.GetTlsCertificateSdsSecretConfigs()); n > 1 {
		return fmt.Errorf("%d certificates, want one at most: %w", n, strict.ErrUnsupported)
	}
	for _, s := range c.GetTlsCertificateSdsSecretConfigs() {
		t.Cert = Source{Secret: s.GetName()}
		t.Key = t.Cert
		return t.foreign(t.Cert)
	}
	for _, p := range c.GetTlsCertificates() {
		if err := strict.Only(p, "certificate_chain", "private_key"); err != nil {
			return err
		}
		var err error
		if t.Cert, err = sourceOf(p.GetCertificateChain()); err != nil {
			return fmt.Errorf("certificate_chain: %w", err)
		}
		if t.Key, err = sourceOf(p.GetPrivateKey()); err != nil {
			return fmt.Errorf("private_key: %w", err)
		}
	}
	return nil
}

func (t *TLS) validation(p *tlsv3.CertificateValidationContext) error {
	if err := strict.Only(p, "trusted_ca", "system_root_certs", "match_typed_subject_alt_names", "crl", "trust_chain_verification"); err != nil {
		return fmt.Errorf("validation_context: %w", err)
	}
	if v := p.GetTrustChainVerification(); v != tlsv3.CertificateValidationContext_VERIFY_TRUST_CHAIN {
		return fmt.Errorf("trust_chain_verification %v: %w", v, strict.ErrUnsupported)
	}
	t.System = p.GetSystemRootCerts() != nil
	var err error
	if t.Roots, err = sourceOf(p.GetTrustedCa()); err != nil {
		return fmt.Errorf("trusted_ca: %w", err)
	}
	if t.CRL, err = sourceOf(p.GetCrl()); err != nil {
		return fmt.Errorf("crl: %w", err)
	}
	for _, m := range p.GetMatchTypedSubjectAltNames() {
		text, err := match.CompileString(m.GetMatcher())
		if err != nil {
			return fmt.Errorf("match_typed_subject_alt_names: %w", err)
		}
		a := AltName{Kind: m.GetSanType(), Text: text}
		switch a.Kind {
		case tlsv3.SubjectAltNameMatcher_DNS:
			a.DNS = m.GetMatcher().GetExact()
		case tlsv3.SubjectAltNameMatcher_URI, tlsv3.SubjectAltNameMatcher_EMAIL, tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
		default:
			return fmt.Errorf("match_typed_subject_alt_names.san_type %v: %w", a.Kind, strict.ErrUnsupported)
		}
		t.Names = append(t.Names, a)
	}
	return nil
}

func sourceOf(p *corev3.DataSource) (Source, error) {
	switch s := p.GetSpecifier().(type) {
	case nil:
		return Source{}, nil
	case *corev3.DataSource_Filename:
		return Source{File: s.Filename}, nil
	case *corev3.DataSource_InlineString:
		return Source{Inline: s.InlineString}, nil
	case *corev3.DataSource_InlineBytes:
		return Source{Inline: string(s.InlineBytes)}, nil
	default:
		return Source{}, fmt.Errorf("data source %T: %w", s, strict.ErrUnsupported)
	}
}

// serverName is the name to ask for; an address is not one.
func (t *TLS) serverName(authority string) string {
	if t.Name != "" || !t.FromHost {
		return t.Name
	}
	name := authority
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, ']') {
		name = name[:i]
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return ""
	}
	return name
}

// SecretNames are the secrets that the clusters' TLS needs, in order and each once.
func SecretNames(cs []*Config) []string {
	var names []string
	for _, c := range cs {
		if c.TLS == nil {
			continue
		}
		for _, s := range []Source{c.TLS.Cert, c.TLS.Roots} {
			if s.Secret != "" {
				names = append(names, s.Secret)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
