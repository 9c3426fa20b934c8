package table

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Versions of TLS on the wire.
const (
	tls12 = 0x0303
	tls13 = 0x0304
)

// CompileEdge compiles a listener with a socket of its own.
func CompileEdge(p *listenerv3.Listener) (*Edge, error) {
	if err := strict.Only(p, "name", "address", "additional_addresses", "stat_prefix", "filter_chains", "listener_filters",
		"listener_filters_timeout", "access_log", "per_connection_buffer_limit_bytes", "traffic_direction", "enable_reuse_port",
		"metadata", "connection_balance_config"); err != nil {
		return nil, err
	}
	at := p.GetAddress().GetSocketAddress()
	switch at.GetAddress() {
	case "0.0.0.0", "::":
	default:
		return nil, fmt.Errorf("address %q: only the wildcard address is listened at: %w", at.GetAddress(), strict.ErrUnsupported)
	}
	if n := at.GetPortValue(); n == 0 || n > 65535 {
		return nil, fmt.Errorf("address: %d is no port", n)
	}
	e := &Edge{Name: p.GetName(), Port: uint16(at.GetPortValue()), Wait: p.GetListenerFiltersTimeout().AsDuration(), Chains: map[string]*EdgeChain{}}
	for _, a := range p.GetAdditionalAddresses() {
		if s := a.GetAddress().GetSocketAddress(); s.GetPortValue() != at.GetPortValue() || s.GetAddress() != "0.0.0.0" && s.GetAddress() != "::" {
			return nil, fmt.Errorf("additional_addresses: %s:%d: %w", s.GetAddress(), s.GetPortValue(), strict.ErrUnsupported)
		}
	}
	if err := e.compileFilters(p.GetListenerFilters()); err != nil {
		return nil, err
	}
	for _, fc := range p.GetFilterChains() {
		c, err := compileEdgeChain(fc)
		if err != nil {
			return nil, fmt.Errorf("chain %q: %w", fc.GetName(), err)
		}
		if c.Name == "" || e.Chains[c.Name] != nil {
			return nil, fmt.Errorf("chain name %q is empty or there twice", c.Name)
		}
		if (c.Transport == "tls" || len(c.Names) > 0) && !e.Looks {
			return nil, fmt.Errorf("chain %q is chosen by TLS, but no tls_inspector looks for it", c.Name)
		}
		e.Chains[c.Name], e.order = c, append(e.order, c)
	}
	for _, c := range e.order {
		// A policy that asks for the name is not to be got around because nobody looked.
		e.Looks = e.Looks || c.TCP != nil && c.TCP.Named
	}
	return e, nil
}

func (e *Edge) compileFilters(list []*listenerv3.ListenerFilter) error {
	for _, f := range list {
		if f.GetFilterDisabled() != nil {
			return fmt.Errorf("listener filter %q: filter_disabled: %w", f.GetName(), strict.ErrUnsupported)
		}
		switch u := f.GetTypedConfig().GetTypeUrl(); u[strings.LastIndexByte(u, '/')+1:] {
		case "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":
			if err := strict.Unpack(f.GetTypedConfig(), &tlsinspectorv3.TlsInspector{}, "initial_read_buffer_size"); err != nil {
				return fmt.Errorf("listener filter %q: %w", f.GetName(), err)
			}
			e.Looks = true
		case "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol":
			if e.Looks {
				return fmt.Errorf("listener filter %q has to come before those that look at the client's own bytes", f.GetName())
			}
			if err := strict.Unpack(f.GetTypedConfig(), &proxyprotocolv3.ProxyProtocol{}); err != nil {
				return fmt.Errorf("listener filter %q: %w", f.GetName(), err)
			}
			e.Proxy = true
		default:
			return fmt.Errorf("listener filter %q, type %s: %w", f.GetName(), u, strict.ErrUnsupported)
		}
	}
	return nil
}

func compileEdgeChain(p *listenerv3.FilterChain) (*EdgeChain, error) {
	if err := strict.Only(p, "name", "filters", "filter_chain_match", "transport_socket", "metadata"); err != nil {
		return nil, err
	}
	m := p.GetFilterChainMatch()
	if err := strict.Only(m, "server_names", "transport_protocol"); err != nil {
		return nil, err
	}
	out := &EdgeChain{Transport: m.GetTransportProtocol()}
	switch out.Transport {
	case "", "tls", "raw_buffer":
	default:
		return nil, fmt.Errorf("transport_protocol %q: %w", out.Transport, strict.ErrUnsupported)
	}
	for _, n := range m.GetServerNames() {
		n = strings.ToLower(n)
		if n == "" || strings.Contains(n[1:], "*") || n[0] == '*' && (len(n) < 2 || n[1] != '.') {
			return nil, fmt.Errorf("server name %q is neither a name nor *.suffix", n)
		}
		out.Names = append(out.Names, n)
	}
	plain := &listenerv3.FilterChain{Name: p.GetName(), Filters: p.GetFilters()}
	c, err := compileChainOf(plain, (*EdgeChain).manager, out)
	if err != nil {
		return nil, err
	}
	out.Chain = *c
	if s := p.GetTransportSocket(); s != nil {
		if out.TLS, err = compileEdgeTLS(s.GetTypedConfig()); err != nil {
			return nil, fmt.Errorf("transport socket: %w", err)
		}
	}
	return out, nil
}

// manager reads what only a connection manager at the border says, and takes it out of the message.
func (c *EdgeChain) manager(m *hcmv3.HttpConnectionManager, h *HTTPChain) error {
	h.Edge = m.GetUseRemoteAddress().GetValue()
	h.TrustedHops = m.GetXffNumTrustedHops()
	c.Head = m.GetRequestHeadersTimeout().AsDuration()
	c.Streams = m.GetHttp2ProtocolOptions().GetMaxConcurrentStreams().GetValue()
	switch m.GetForwardClientCertDetails() {
	case hcmv3.HttpConnectionManager_SANITIZE:
	case hcmv3.HttpConnectionManager_SANITIZE_SET:
		d := m.GetSetCurrentClientCertDetails()
		if err := strict.Only(d, "subject", "uri", "dns"); err != nil {
			return err
		}
		h.ClientCert = &ClientCert{Subject: d.GetSubject().GetValue(), URI: d.GetUri(), DNS: d.GetDns()}
	default:
		return fmt.Errorf("forward_client_cert_details %v: %w", m.GetForwardClientCertDetails(), strict.ErrUnsupported)
	}
	m.UseRemoteAddress, m.XffNumTrustedHops, m.ForwardClientCertDetails, m.SetCurrentClientCertDetails = nil, 0, 0, nil
	return nil
}

func compileEdgeTLS(a *anypb.Any) (*EdgeTLS, error) {
	p := &tlsv3.DownstreamTlsContext{}
	if err := strict.Unpack(a, p, "common_tls_context", "require_client_certificate"); err != nil {
		return nil, err
	}
	c := p.GetCommonTlsContext()
	if err := strict.Only(c, "tls_params", "tls_certificate_sds_secret_configs", "combined_validation_context", "alpn_protocols"); err != nil {
		return nil, err
	}
	out := &EdgeTLS{ALPN: c.GetAlpnProtocols()}
	for _, s := range c.GetTlsCertificateSdsSecretConfigs() {
		if s.GetName() == "default" || s.GetName() == "ROOTCA" {
			return nil, fmt.Errorf("secret %q, the mesh's own, at the border: %w", s.GetName(), strict.ErrUnsupported)
		}
		out.Certificates = append(out.Certificates, s.GetName())
	}
	if len(out.Certificates) == 0 {
		return nil, errors.New("has no certificate")
	}
	if err := out.params(c.GetTlsParams()); err != nil {
		return nil, fmt.Errorf("tls_params: %w", err)
	}
	v := c.GetCombinedValidationContext()
	if v == nil {
		if p.GetRequireClientCertificate().GetValue() {
			return nil, errors.New("require_client_certificate without a validation context would let anybody in")
		}
		return out, nil
	}
	if err := strict.Only(v, "default_validation_context", "validation_context_sds_secret_config"); err != nil {
		return nil, err
	}
	var err error
	out.Client, err = compileClient(v.GetDefaultValidationContext())
	if err != nil {
		return nil, err
	}
	out.Client.Roots = v.GetValidationContextSdsSecretConfig().GetName()
	out.Client.Required = p.GetRequireClientCertificate().GetValue()
	if out.Client.Roots == "" || out.Client.Roots == "ROOTCA" {
		return nil, fmt.Errorf("clients' roots %q: want a secret that is not the mesh's own", out.Client.Roots)
	}
	return out, nil
}

func compileClient(p *tlsv3.CertificateValidationContext) (*EdgeClient, error) {
	if err := strict.Only(p, "match_typed_subject_alt_names", "verify_certificate_spki", "verify_certificate_hash", "trust_chain_verification"); err != nil {
		return nil, err
	}
	out := &EdgeClient{Insecure: p.GetTrustChainVerification() == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED}
	for _, m := range p.GetMatchTypedSubjectAltNames() {
		text, err := match.CompileString(m.GetMatcher())
		if err != nil {
			return nil, fmt.Errorf("match_typed_subject_alt_names: %w", err)
		}
		switch m.GetSanType() {
		case tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI:
			out.Names = append(out.Names, ClientName{URI: m.GetSanType() == tlsv3.SubjectAltNameMatcher_URI, Text: text})
		default:
			return nil, fmt.Errorf("match_typed_subject_alt_names.san_type %v: %w", m.GetSanType(), strict.ErrUnsupported)
		}
	}
	for _, s := range p.GetVerifyCertificateSpki() {
		if b, err := base64.StdEncoding.DecodeString(s); err != nil || len(b) != 32 {
			return nil, fmt.Errorf("verify_certificate_spki %q is no base64 of SHA-256", s)
		}
		out.SPKI = append(out.SPKI, s)
	}
	for _, s := range p.GetVerifyCertificateHash() {
		h := strings.ToLower(strings.ReplaceAll(s, ":", ""))
		if b, err := hex.DecodeString(h); err != nil || len(b) != 32 {
			return nil, fmt.Errorf("verify_certificate_hash %q is no hexadecimal SHA-256", s)
		}
		out.Hashes = append(out.Hashes, h)
	}
	return out, nil
}

func (t *EdgeTLS) params(p *tlsv3.TlsParameters) error {
	if err := strict.Only(p, "tls_minimum_protocol_version", "tls_maximum_protocol_version", "cipher_suites", "ecdh_curves"); err != nil {
		return err
	}
	number := func(v tlsv3.TlsParameters_TlsProtocol, auto uint16) (uint16, error) {
		switch v {
		case tlsv3.TlsParameters_TLS_AUTO:
			return auto, nil
		case tlsv3.TlsParameters_TLSv1_2:
			return tls12, nil
		case tlsv3.TlsParameters_TLSv1_3:
			return tls13, nil
		case tlsv3.TlsParameters_TLSv1_0, tlsv3.TlsParameters_TLSv1_1:
		}
		return 0, fmt.Errorf("%v is known to be unsound: %w", v, strict.ErrUnsupported)
	}
	var err error
	least := p.GetTlsMinimumProtocolVersion()
	switch least {
	case tlsv3.TlsParameters_TLSv1_0, tlsv3.TlsParameters_TLSv1_1:
		// Who would be content with less is served from here on. A refusal would hold up everything else on the same port.
		least = tlsv3.TlsParameters_TLSv1_2
	case tlsv3.TlsParameters_TLS_AUTO, tlsv3.TlsParameters_TLSv1_2, tlsv3.TlsParameters_TLSv1_3:
	}
	if t.Min, err = number(least, tls12); err != nil {
		return err
	}
	if t.Max, err = number(p.GetTlsMaximumProtocolVersion(), tls13); err != nil {
		return err
	}
	if t.Min > t.Max {
		return errors.New("the minimum is above the maximum")
	}
	for _, c := range p.GetCipherSuites() {
		name := cipherName(c)
		switch {
		case name != "":
			t.Ciphers = append(t.Ciphers, name)
		case !unsound(c):
			return fmt.Errorf("cipher suite %q: %w", c, strict.ErrUnsupported)
		}
	}
	if len(p.GetCipherSuites()) > 0 && len(t.Ciphers) == 0 {
		return fmt.Errorf("cipher suites %q: none has forward secrecy and authenticated encryption: %w", p.GetCipherSuites(), strict.ErrUnsupported)
	}
	for _, c := range p.GetEcdhCurves() {
		switch c {
		case "X25519", "P-256", "P-384", "P-521", "X25519MLKEM768":
			t.Curves = append(t.Curves, c)
		default:
			return fmt.Errorf("curve %q: %w", c, strict.ErrUnsupported)
		}
	}
	return nil
}

// cipherName turns OpenSSL's name of a suite into the standard one. Only suites with forward secrecy and authenticated
// encryption have one here.
func cipherName(openssl string) string {
	return map[string]string{
		"ECDHE-ECDSA-AES128-GCM-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
		"ECDHE-RSA-AES128-GCM-SHA256":   "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
		"ECDHE-ECDSA-AES256-GCM-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
		"ECDHE-RSA-AES256-GCM-SHA384":   "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
		"ECDHE-ECDSA-CHACHA20-POLY1305": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
		"ECDHE-RSA-CHACHA20-POLY1305":   "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
	}[openssl]
}

// unsound says that a suite is one that Envoy knows and that nobody is served by here. The others of its list are.
func unsound(openssl string) bool {
	switch openssl {
	case "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA", "DES-CBC3-SHA", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA",
		"ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA":
		return true
	}
	return false
}
