package waypoint

import (
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
)

// viaWaypoint lets an endpoint's metadata name another next hop than the endpoint itself: its service's waypoint.
func viaWaypoint(c *clusterv3.Cluster) {
	c.GetOriginalDstLbConfig().MetadataKey = &metadatav3.MetadataKey{
		Key:  originalDstKey,
		Path: []*metadatav3.MetadataKey_PathSegment{{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: waypointHop}}},
	}
}

// waypointHop is the metadata of an endpoint that is reached through a waypoint.
const waypointHop = "waypoint"

func edgeTLS(t *EdgeTLS) *tlsv3.DownstreamTlsContext {
	c := &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsVersion(t.Min, tlsv3.TlsParameters_TLSv1_2),
			TlsMaximumProtocolVersion: tlsVersion(t.Max, tlsv3.TlsParameters_TLSv1_3),
			CipherSuites:              t.Ciphers,
			EcdhCurves:                t.Curves,
		},
	}
	if t.HTTP {
		c.AlpnProtocols = []string{"h2", "http/1.1"}
	}
	for _, name := range t.Certificates {
		c.TlsCertificateSdsSecretConfigs = append(c.TlsCertificateSdsSecretConfigs, &tlsv3.SdsSecretConfig{Name: name, SdsConfig: adsSource()})
	}
	out := &tlsv3.DownstreamTlsContext{CommonTlsContext: c, RequireClientCertificate: boolValue(false)}
	if t.Client == nil {
		return out
	}
	out.RequireClientCertificate = boolValue(!t.Client.Optional)
	v := &tlsv3.CertificateValidationContext{VerifyCertificateSpki: t.Client.SPKI, VerifyCertificateHash: t.Client.Hashes}
	for _, n := range t.Client.Names {
		kind := tlsv3.SubjectAltNameMatcher_DNS
		if strings.Contains(n, "://") {
			kind = tlsv3.SubjectAltNameMatcher_URI
		}
		v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: exact(n)})
	}
	if t.Client.Insecure {
		v.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	}
	c.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         v,
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: t.Client.Roots, SdsConfig: adsSource()},
		},
	}
	return out
}

func tlsVersion(v TLSVersion, auto tlsv3.TlsParameters_TlsProtocol) tlsv3.TlsParameters_TlsProtocol {
	switch v {
	case TLS10:
		return tlsv3.TlsParameters_TLSv1_0
	case TLS11:
		return tlsv3.TlsParameters_TLSv1_1
	case TLS12:
		return tlsv3.TlsParameters_TLSv1_2
	case TLS13:
		return tlsv3.TlsParameters_TLSv1_3
	case TLSAuto:
	}
	return auto
}
