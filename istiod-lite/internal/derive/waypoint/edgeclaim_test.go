package waypoint

import (
	"fmt"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/internal/manifest"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

const claimObjects = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: classic, namespace: shop}
spec:
  hosts: [claims.test]
  gateways: [classic]
  http:
    - {match: [{headers: {"@request.auth.claims.a.b": {exact: x}}}], directResponse: {status: 201}}
    - {match: [{headers: {"@request.auth.claims[https://a.b][c]": {prefix: "y"}}}], directResponse: {status: 202}}
    - {match: [{withoutHeaders: {"@request.auth.claims.d": {}}}], directResponse: {status: 203}}
    - {match: [{headers: {"@request.auth.claims": {exact: x}}}], directResponse: {status: 204}}
    - {match: [{headers: {"@request.auth.claims.a..b": {exact: x}}}], directResponse: {status: 204}}
    - {match: [{headers: {"@request.auth.claims[a": {exact: x}}}], directResponse: {status: 204}}
    - match: [{uri: {prefix: /leaf}}]
      delegate: {name: leaf}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: leaf, namespace: shop}
spec:
  http: [{directResponse: {status: 206}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: front, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]
  jwtRules: [{issuer: i, jwks: '{"keys":[{"kty":"OKP","kid":"demo","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'}]
`

// TestClaimsChooseRoutes: at a gateway a route may depend on a claim, and is chosen again once tokens are verified; a claim that is named
// wrongly takes its route away. A waypoint has no such routes.
func TestClaimsChooseRoutes(t *testing.T) {
	list, err := manifest.Decode("claims.yaml", strings.NewReader(claimObjects))
	if err != nil {
		t.Fatal(err)
	}
	in := edgeInput(t)
	for _, o := range list {
		switch o := o.(type) {
		case *networkingv1.VirtualService:
			in.VirtualServices = append(in.VirtualServices, o)
		case *securityv1.RequestAuthentication:
			in.Authentications = append(in.Authentications, o)
		}
	}
	in.Edge.Ports[0].Servers[0].HTTP = &EdgeHTTP{Owner: []string{"shop/classic"}, Hosts: []EdgeHost{{Domain: "claims.test", VirtualServices: in.VirtualServices[:1]}}}
	r, findings := Derive(in)
	if m := asYAML(t, r.Listeners["0.0.0.0_8080"]); !strings.Contains(m, "clearRouteCache: true") {
		t.Errorf("routes are not chosen again:\n%s", m)
	}
	text := asYAML(t, r.Routes["http.80"])
	for want, n := range map[string]int{
		"dynamicMetadata:": 3, "status: 201": 1, "status: 202": 1, "status: 203": 1, "status: 204": 0, "status: 206": 1,
		"key: https://a.b": 1, "invert: true": 1, "presentMatch: true": 1,
	} {
		if got := strings.Count(text, want); got != n {
			t.Errorf("%q stands there %d times, want %d:\n%s", want, got, n, text)
		}
	}
	problems := ""
	for _, f := range findings {
		problems += f.Message + "\n"
	}
	for _, want := range []string{"names no claim", "claim without a name", "is not [<claim>]"} {
		if !strings.Contains(problems, want) {
			t.Errorf("nobody says %q:\n%s", want, problems)
		}
	}
	inside := parseWorld(t, []byte(strings.ReplaceAll(edgeServices, " foreign", "")), []byte(strings.NewReplacer("gateways: [classic]", "", "claims.test", "web").Replace(claimObjects)))
	_, findings = Derive(inside)
	if !strings.Contains(fmt.Sprint(findings), "only at a gateway") {
		t.Errorf("a waypoint takes claims: %v", findings)
	}
}
