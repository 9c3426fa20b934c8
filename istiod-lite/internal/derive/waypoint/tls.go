package waypoint

import (
	"fmt"
	"net/netip"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	networkingapi "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
)

// systemRoots is where the roots of the machine are, in Istio's images and in ours.
const systemRoots = "/etc/ssl/certs/ca-certificates.crt"

// SecretType is the type of what clusters need to speak TLS.
const SecretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

const (
	secretPrefix    = "kubernetes://"
	configMapPrefix = "configmap://"
	rootsSuffix     = "-cacert"
)

// transport is what is spoken to a cluster's endpoints: in a tunnel, the PROXY header first, then TLS. An error means that it cannot
// be spoken as asked; then nothing is.
func (d *derivation) transport(c *clusterv3.Cluster, o *httpv3.HttpProtocolOptions, want clusterWant, policy *networkingapi.TrafficPolicy) error {
	inner := rawBuffer()
	if originatesTLS(policy) {
		ctx, err := d.upstreamTLS(o, want, policy.GetTls())
		if err != nil {
			return err
		}
		inner = tlsSocket(ctx)
	}
	if p := policy.GetProxyProtocol(); p != nil {
		version := corev3.ProxyProtocolConfig_V1
		if p.GetVersion() == networkingapi.TrafficPolicy_ProxyProtocol_V2 {
			version = corev3.ProxyProtocolConfig_V2
		}
		inner = &corev3.TransportSocket{
			Name: "envoy.transport_sockets.upstream_proxy_protocol",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&proxyprotocolv3.ProxyProtocolUpstreamTransport{
				Config: &corev3.ProxyProtocolConfig{Version: version}, TransportSocket: inner,
			})},
		}
	}
	c.TransportSocket = internalUpstream(inner)
	return nil
}

// originatesTLS says that a DestinationRule asks the waypoint to speak TLS to the endpoints. DISABLE and ISTIO_MUTUAL mean the tunnel.
func originatesTLS(policy *networkingapi.TrafficPolicy) bool {
	mode := policy.GetTls().GetMode()
	return mode == networkingapi.ClientTLSSettings_SIMPLE || mode == networkingapi.ClientTLSSettings_MUTUAL
}

func (d *derivation) upstreamTLS(o *httpv3.HttpProtocolOptions, want clusterWant, t *networkingapi.ClientTLSSettings) (*tlsv3.UpstreamTlsContext, error) {
	ctx := &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{}, Sni: t.GetSni()}
	if want.http && o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil {
		ctx.CommonTlsContext.AlpnProtocols = []string{"h2"}
	}
	if t.GetMode() == networkingapi.ClientTLSSettings_MUTUAL {
		if err := d.ownCertificate(ctx.GetCommonTlsContext(), t); err != nil {
			return nil, err
		}
	}
	names := altNames(t.GetSubjectAltNames())
	auto := &corev3.UpstreamHttpProtocolOptions{}
	switch {
	case t.GetSni() != "":
		if len(names) == 0 {
			names = altNames([]string{t.GetSni()})
		}
	case want.http:
		auto.AutoSni, auto.AutoSanValidation = true, len(names) == 0 && !t.GetInsecureSkipVerify().GetValue()
		o.UpstreamHttpProtocolOptions = auto
	case !strings.Contains(want.service.Hostname, "*"):
		if ctx.Sni = want.service.Hostname; len(names) == 0 {
			names = altNames([]string{ctx.GetSni()})
		}
	}
	if t.GetInsecureSkipVerify().GetValue() {
		return ctx, nil
	}
	v := &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: names}
	if t.GetCaCrl() != "" {
		v.Crl = fileSource(t.GetCaCrl())
	}
	credential := t.GetCredentialName()
	if credential == "" {
		v.TrustedCa = fileSource(systemRoots)
		if t.GetCaCertificates() != "" {
			v.TrustedCa = fileSource(t.GetCaCertificates())
		}
		ctx.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}
		return ctx, nil
	}
	name := credentialSecret(credential) + rootsSuffix
	if err := d.wantSecret(name, true); err != nil {
		return nil, err
	}
	ctx.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: v, ValidationContextSdsSecretConfig: sdsSecret(name),
		},
	}
	return ctx, nil
}

// ownCertificate says where the waypoint's certificate for these endpoints is.
func (d *derivation) ownCertificate(c *tlsv3.CommonTlsContext, t *networkingapi.ClientTLSSettings) error {
	credential := t.GetCredentialName()
	switch {
	case strings.HasPrefix(credential, configMapPrefix):
		return fmt.Errorf("tls.credentialName %q: a ConfigMap holds no key; mode MUTUAL needs a Secret", credential)
	case credential != "":
		name := credentialSecret(credential)
		if err := d.wantSecret(name, false); err != nil {
			return err
		}
		c.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{sdsSecret(name)}
	case t.GetClientCertificate() == "" || t.GetPrivateKey() == "":
		return fmt.Errorf("tls: mode MUTUAL needs credentialName, or clientCertificate and privateKey")
	default:
		c.TlsCertificates = []*tlsv3.TlsCertificate{{
			CertificateChain: fileSource(t.GetClientCertificate()), PrivateKey: fileSource(t.GetPrivateKey()),
		}}
	}
	return nil
}

func fileSource(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

func credentialSecret(credential string) string {
	if strings.HasPrefix(credential, configMapPrefix) || strings.HasPrefix(credential, backendTLSPrefix) {
		return credential
	}
	return secretPrefix + strings.TrimPrefix(credential, secretPrefix)
}

func sdsSecret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: adsSource()}
}

// altNames are matchers of the kind that each name looks like.
func altNames(names []string) []*tlsv3.SubjectAltNameMatcher {
	var out []*tlsv3.SubjectAltNameMatcher
	for _, n := range names {
		kind := tlsv3.SubjectAltNameMatcher_DNS
		if _, err := netip.ParseAddr(n); err == nil {
			kind = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
		} else if strings.Contains(n, "://") {
			kind = tlsv3.SubjectAltNameMatcher_URI
		} else if strings.Contains(n, "@") {
			kind = tlsv3.SubjectAltNameMatcher_EMAIL
		}
		out = append(out, &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: exact(n)})
	}
	return out
}

// wantSecret has a secret sent, if there is one. Only the waypoint's own namespace counts: who writes a rule elsewhere must not be
// able to use what they cannot read.
func (d *derivation) wantSecret(name string, roots bool) error {
	if d.secrets[name] != nil {
		return nil
	}
	data, err := d.credential(name)
	if err != nil {
		return err
	}
	pick := func(keys ...string) []byte {
		for _, k := range keys {
			if len(data[k]) > 0 {
				return data[k]
			}
		}
		return nil
	}
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	s := &tlsv3.Secret{Name: name}
	if roots {
		ca := pick("cacert", "ca.crt")
		if ca == nil {
			return fmt.Errorf("tls.credentialName: %s has no roots under cacert or ca.crt", strings.TrimSuffix(name, rootsSuffix))
		}
		s.Type = &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(ca)}}
	} else {
		chain, key := pick("cert", corev1.TLSCertKey), pick("key", corev1.TLSPrivateKeyKey)
		if chain == nil || key == nil {
			return fmt.Errorf("tls.credentialName: %s has no certificate and key under tls.crt and tls.key, or cert and key", name)
		}
		s.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(chain), PrivateKey: inline(key)}}
	}
	d.secrets[name] = s
	return nil
}

// credential finds what a name stands for.
func (d *derivation) credential(name string) (map[string][]byte, error) {
	if path, ok := strings.CutPrefix(name, backendTLSPrefix); ok {
		at, object, _ := strings.Cut(strings.TrimSuffix(path, rootsSuffix), "/")
		ca, err := d.in.BackendTLS.roots(at, object)
		return map[string][]byte{"ca.crt": ca}, err
	}
	namespace := d.in.Gateway.Namespace
	if path, ok := strings.CutPrefix(name, configMapPrefix); ok {
		at, object, _ := strings.Cut(strings.TrimSuffix(path, rootsSuffix), "/")
		for _, c := range d.in.ConfigMaps {
			if at == namespace && c.Namespace == at && c.Name == object {
				return map[string][]byte{"ca.crt": []byte(c.Data["ca.crt"]), "cacert": []byte(c.Data["cacert"])}, nil
			}
		}
		return nil, fmt.Errorf("tls.credentialName: there is no ConfigMap %s in the waypoint's namespace %s", path, namespace)
	}
	object := strings.TrimPrefix(name, secretPrefix)
	for _, n := range []string{object, strings.TrimSuffix(object, rootsSuffix)} {
		for _, s := range d.in.Secrets {
			if s.Namespace == namespace && s.Name == n {
				return s.Data, nil
			}
		}
	}
	return nil, fmt.Errorf("tls.credentialName: there is no Secret %s in the waypoint's namespace %s", object, namespace)
}
