package ingress

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	meshapi "istio.io/api/mesh/v1alpha1"
	networkingapi "istio.io/api/networking/v1alpha3"
	"sigs.k8s.io/yaml"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// istioTLS reads the settings of a server that ends TLS.
func (d *derivation) istioTLS(g *gateway, s *networkingapi.ServerTLSSettings) (*waypoint.EdgeTLS, error) {
	out := &waypoint.EdgeTLS{Min: version(s.GetMinProtocolVersion()), Max: version(s.GetMaxProtocolVersion()), Ciphers: s.GetCipherSuites()}
	credentials := s.GetCredentialNames()
	if s.GetCredentialName() != "" {
		credentials = append([]string{s.GetCredentialName()}, credentials...)
	}
	if len(s.GetTlsCertificates()) > 0 || s.GetServerCertificate() != "" {
		return nil, errors.New("tls: certificates from files are not supported; put them into a Secret and name it by credentialName")
	}
	if len(credentials) == 0 {
		return nil, fmt.Errorf("tls.credentialName is missing; mode %s needs a Secret of namespace %s", s.GetMode(), g.key.Namespace)
	}
	for _, c := range slices.Compact(credentials) {
		name, problem := d.keyPair(g, g.key.Namespace, c)
		if problem != "" {
			return nil, errors.New("tls.credentialName: " + problem)
		}
		out.Certificates = append(out.Certificates, name)
	}
	switch s.GetMode() {
	case networkingapi.ServerTLSSettings_SIMPLE:
		return out, nil
	case networkingapi.ServerTLSSettings_MUTUAL, networkingapi.ServerTLSSettings_OPTIONAL_MUTUAL:
		roots, problem := d.clientRoots(g, g.key.Namespace, credentials[0], s.GetCaCertCredentialName())
		if problem != "" {
			return nil, errors.New("tls: clients' certificates: " + problem)
		}
		out.Client = &waypoint.EdgeClient{
			Roots: roots, Names: s.GetSubjectAltNames(), SPKI: s.GetVerifyCertificateSpki(), Hashes: s.GetVerifyCertificateHash(),
			Optional: s.GetMode() == networkingapi.ServerTLSSettings_OPTIONAL_MUTUAL, Insecure: s.GetInsecureSkipVerify().GetValue(),
		}
		return out, nil
	default:
		return nil, fmt.Errorf("tls.mode %s is not supported; use SIMPLE, MUTUAL, OPTIONAL_MUTUAL or PASSTHROUGH", s.GetMode())
	}
}

func version(v networkingapi.ServerTLSSettings_TLSProtocol) waypoint.TLSVersion {
	switch v {
	case networkingapi.ServerTLSSettings_TLSV1_0:
		return waypoint.TLS10
	case networkingapi.ServerTLSSettings_TLSV1_1:
		return waypoint.TLS11
	case networkingapi.ServerTLSSettings_TLSV1_2:
		return waypoint.TLS12
	case networkingapi.ServerTLSSettings_TLSV1_3:
		return waypoint.TLS13
	default:
		return waypoint.TLSAuto
	}
}

const proxyConfig = "proxy.istio.io/config"

// topology is what stands in front of a gateway: the first of the annotations that says so, else the mesh's default.
func (d *derivation) topology(annotations ...map[string]string) waypoint.Topology {
	t := d.in.Topology
	for _, a := range annotations {
		text, ok := a[proxyConfig]
		if !ok {
			continue
		}
		raw, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			continue
		}
		c := &meshapi.ProxyConfig{}
		if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, c) == nil && c.GetGatewayTopology() != nil {
			t = c.GetGatewayTopology()
		}
	}
	out := waypoint.Topology{TrustedHops: t.GetNumTrustedProxies(), ProxyProtocol: t.GetProxyProtocol() != nil}
	if t.GetForwardClientCertDetails() == meshapi.ForwardClientCertDetails_SANITIZE {
		out.ForwardCert = waypoint.Sanitize
	}
	return out
}
