package waypoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const edgeServices = `
service web.shop 10.96.0.1 80/http foreign
endpoint web.shop 10.244.1.1
endpoint web.shop 10.244.1.2 plain
service bank.vault 10.96.0.2 80/http foreign
`

const edgeObjects = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: shop}
spec:
  parentRefs: [{name: front}]
  rules:
    - {matches: [{path: {value: /bank}}], backendRefs: [{name: bank, namespace: vault, port: 80}]}
    - backendRefs: [{name: web, port: 80}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-selector, namespace: shop}
spec: {selector: {matchLabels: {istio: ingress}}, action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: others, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}
`

func edgeInput(t *testing.T) Input {
	t.Helper()
	in := parseWorld(t, []byte(edgeServices), []byte(edgeObjects))
	in.Gateway.Name, in.Labels = "front", map[string]string{"istio": "ingress"}
	routes := []*gatewayv1.HTTPRoute{in.HTTPRoutes[0]}
	in.HTTPRoutes = nil
	host := &EdgeHTTP{Hosts: []EdgeHost{{Domain: "*.example.com", HTTPRoutes: routes}, {Domain: "old.example.com", Redirect: true}}}
	certificate := testSecrets(t)[0].GetTlsCertificate()
	chain, key := certificate.GetCertificateChain().GetInlineBytes(), certificate.GetPrivateKey().GetInlineBytes()
	in.Edge = &Edge{
		Topology:  Topology{TrustedHops: 1, ProxyProtocol: true},
		Permitted: func(string, string, string, string) bool { return false },
		Secrets:   []EdgeSecret{{Name: "kubernetes://shop/cert", Chain: chain, Key: key}, {Name: "kubernetes://shop/cert-roots", Roots: chain}},
		Ports: []EdgePort{
			{Number: 80, Target: 8080, Servers: []EdgeServer{{Name: "http.80", HTTP: host}}},
			{Number: 443, Target: 8443, Servers: []EdgeServer{
				{Name: "https.443.a", SNI: []string{"*.example.com"}, HTTP: host, TLS: &EdgeTLS{
					Certificates: []string{"kubernetes://shop/cert"}, HTTP: true, Min: TLS13,
					Client: &EdgeClient{Roots: "kubernetes://shop/cert-roots", Names: []string{"client.example.com"}},
				}},
				{Name: "tls.443.b", SNI: []string{"raw.example.com"}, TCP: &EdgeTCP{Passthrough: true, Backends: []EdgeBackend{
					{Host: "web.shop.svc.cluster.local", Port: 80, Weight: 9}, {Host: "nowhere", Port: 1, Weight: 1},
				}}},
			}},
			{Number: 9000, Target: 9000, Servers: []EdgeServer{{Name: "tcp.9000", TCP: &EdgeTCP{}}}},
		},
	}
	return in
}

// TestEdge: routes are bound by host, foreign backends need a grant, policies of the gateway's pods apply and others do not.
func TestEdge(t *testing.T) {
	r, findings := Derive(edgeInput(t))
	if r.Listeners[ConnectTerminate] != nil || r.Listeners[MainInternal] != nil || r.Listeners["0.0.0.0_8443"] == nil || r.Clusters[Encap] != nil {
		t.Errorf("listeners %v", names(r))
	}
	text := asYAML(t, r.Routes["https.443.a"])
	for _, want := range []string{"'*.example.com'", "outbound|80||web.shop.svc.cluster.local", "cluster: UnknownService", "httpsRedirect: true", "blackhole:443", "policy[by-selector]", "ignorePortInHostMatching: true"} {
		if !strings.Contains(text, want) {
			t.Errorf("routes have no %s:\n%s", want, text)
		}
	}
	if strings.Contains(text, "policy[others]") || strings.Contains(text, "bank.vault") {
		t.Errorf("routes hold what is not this gateway's:\n%s", text)
	}
	refused := false
	for _, f := range findings {
		refused = refused || f.Reason == string(gatewayv1.RouteReasonRefNotPermitted)
	}
	if !refused {
		t.Errorf("findings %+v", findings)
	}
}

// TestIngressUsesWaypoint: a service that asks for it is reached through its waypoint's pods, and never around one without pods.
func TestIngressUsesWaypoint(t *testing.T) {
	in := edgeInput(t)
	in.Services[0].Waypoint = []Endpoint{{Workload: testWorkload("wp", "shop", "10.244.3.3"), Healthy: true}}
	const cluster = "outbound|80||web.shop.svc.cluster.local"
	r, _ := Derive(in)
	e := r.Endpoints[cluster].GetEndpoints()
	if len(e) != 1 || len(e[0].GetLbEndpoints()) != 1 {
		t.Fatalf("endpoints %v", r.Endpoints[cluster])
	}
	to := e[0].GetLbEndpoints()[0].GetMetadata().GetFilterMetadata()[originalDstKey].GetFields()
	if to["local"].GetStringValue() != "10.96.0.1:80" || to["waypoint"].GetStringValue() != "10.244.3.3:15008" {
		t.Errorf("metadata %v", to)
	}
	in.Services[0].Waypoint = []Endpoint{}
	r, _ = Derive(in)
	if n := len(r.Endpoints[cluster].GetEndpoints()[0].GetLbEndpoints()); n != 0 {
		t.Errorf("%d endpoints around a waypoint without pods", n)
	}
}

// TestEnvoyAcceptsEdge lets a stock Envoy judge the resources of a gateway.
func TestEnvoyAcceptsEdge(t *testing.T) {
	envoy := envoyProgram(t)
	r, _ := Derive(edgeInput(t))
	b := static(t, r)
	raw, err := protojson.Marshal(b)
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
}
