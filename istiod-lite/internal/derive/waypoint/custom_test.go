package waypoint

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	meshapi "istio.io/api/mesh/v1alpha1"
	securityapi "istio.io/api/security/v1beta1"
	"sigs.k8s.io/yaml"
)

const customServices = `
service web.shop 10.96.0.1 80/http,9090/tcp
service plain.shop 10.96.0.4 80/http
service authz.shop 10.96.0.9 9000/tcp,8000/http foreign
endpoint web.shop 127.0.0.2
endpoint plain.shop 127.0.0.2
endpoint authz.shop 127.0.0.8 plain
`

const customMesh = `
extensionProviders:
- name: grpc
  envoyExtAuthzGrpc: {service: shop/authz.shop.svc.cluster.local, port: 9000, timeout: 0.5s}
- name: http
  envoyExtAuthzHttp:
    service: authz.shop.svc.cluster.local
    port: 8000
    timeout: 2s
    pathPrefix: /check
    failOpen: true
    clearRouteCache: true
    statusOnError: "503"
    includeRequestHeadersInCheck: [x-ask, "x-a-*", "*-b"]
    includeAdditionalHeadersInCheck: {x-fixed: "1"}
    includeRequestBodyInCheck: {maxRequestBytes: 64, allowPartialMessage: true, packAsBytes: true}
    headersToUpstreamOnAllow: [x-user]
    headersToDownstreamOnAllow: [x-ok]
    headersToDownstreamOnDeny: [x-why]
- name: elsewhere
  envoyExtAuthzGrpc: {service: nowhere.example, port: 9000}
- name: other-port
  envoyExtAuthzGrpc: {service: authz.shop.svc.cluster.local, port: 1}
- name: bad-status
  envoyExtAuthzGrpc: {service: authz.shop.svc.cluster.local, port: 9000, statusOnError: many}
- name: bad-prefix
  envoyExtAuthzHttp: {service: authz.shop.svc.cluster.local, port: 8000, pathPrefix: check}
- name: bad-list
  envoyExtAuthzHttp: {service: authz.shop.svc.cluster.local, port: 8000, headersToUpstreamOnAllow: ["*"]}
- name: bad-body
  envoyExtAuthzHttp: {service: authz.shop.svc.cluster.local, port: 8000, includeRequestBodyInCheck: {}}
- name: bad-timeout
  envoyExtAuthzHttp: {service: authz.shop.svc.cluster.local, port: 8000, timeout: 0s}
- name: traces
  zipkin: {service: authz.shop.svc.cluster.local, port: 9000}
- {name: twice, envoyExtAuthzGrpc: {service: authz.shop.svc.cluster.local, port: 9000}}
- {name: twice, envoyExtAuthzGrpc: {service: authz.shop.svc.cluster.local, port: 9000}}
`

func customPolicy(provider, rules string) string {
	return `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: c, namespace: shop}
spec:
  action: CUSTOM
  provider: {name: ` + provider + `}
  targetRefs: [{group: "", kind: Service, name: web}]
  rules: ` + rules + "\n"
}

func withMesh(t *testing.T, text string) func(*Input) {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	m := &meshapi.MeshConfig{}
	if err := m.UnmarshalJSON(raw); err != nil {
		t.Fatal(err)
	}
	return func(in *Input) { in.Mesh.Config = m }
}

func deriveCustom(t *testing.T, objects string) (Resources, []Finding) {
	t.Helper()
	in := parseWorld(t, []byte(customServices), []byte(objects))
	withMesh(t, customMesh)(&in)
	return Derive(in)
}

// filtersOf are the HTTP filters of a chain.
func filtersOf(t *testing.T, r Resources, chain string) []*hcmv3.HttpFilter {
	t.Helper()
	i := slices.IndexFunc(r.Listeners[MainInternal].GetFilterChains(), func(c *listenerv3.FilterChain) bool { return c.GetName() == chain })
	m := &hcmv3.HttpConnectionManager{}
	if err := r.Listeners[MainInternal].GetFilterChains()[i].GetFilters()[0].GetTypedConfig().UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	return m.GetHttpFilters()
}

const webHTTP = "inbound-vip|80|http|web.shop.svc.cluster.local"

// TestCustomProviders: every field of a provider reaches the filter that stands first in the chains of the policy's target.
func TestCustomProviders(t *testing.T) {
	r, findings := deriveCustom(t, customPolicy("http", `[{to: [{operation: {paths: [/a]}}]}]`))
	if len(findings) > 0 {
		t.Errorf("findings %v", findings)
	}
	fs := filtersOf(t, r, webHTTP)
	if fs[0].GetName() != "marrow.ext_authz.rbac.http" || fs[1].GetName() != "marrow.ext_authz.http" || fs[2].GetName() != rbacAudit {
		t.Errorf("order: %s %s %s", fs[0].GetName(), fs[1].GetName(), fs[2].GetName())
	}
	f := &httpauthzv3.ExtAuthz{}
	if err := fs[1].GetTypedConfig().UnmarshalTo(f); err != nil {
		t.Fatal(err)
	}
	h := f.GetHttpService()
	const cluster = "ext-authz|8000|http|authz.shop.svc.cluster.local"
	for name, ok := range map[string]bool{
		"timeout":         h.GetServerUri().GetTimeout().AsDuration() == 2*time.Second,
		"cluster":         h.GetServerUri().GetCluster() == cluster && r.Clusters[cluster] != nil && r.Endpoints[cluster] != nil,
		"path prefix":     h.GetPathPrefix() == "/check",
		"fail open":       f.GetFailureModeAllow(),
		"clear route":     f.GetClearRouteCache(),
		"status on error": f.GetStatusOnError().GetCode() == 503,
		"headers": len(f.GetAllowedHeaders().GetPatterns()) == 3 && f.GetAllowedHeaders().GetPatterns()[1].GetPrefix() == "x-a-" &&
			f.GetAllowedHeaders().GetPatterns()[2].GetSuffix() == "-b",
		"added":     h.GetAuthorizationRequest().GetHeadersToAdd()[0].GetKey() == "x-fixed",
		"body":      f.GetWithRequestBody().GetMaxRequestBytes() == 64 && f.GetWithRequestBody().GetAllowPartialMessage() && f.GetWithRequestBody().GetPackAsBytes(),
		"upstream":  h.GetAuthorizationResponse().GetAllowedUpstreamHeaders().GetPatterns()[0].GetExact() == "x-user",
		"on allow":  h.GetAuthorizationResponse().GetAllowedClientHeadersOnSuccess().GetPatterns()[0].GetExact() == "x-ok",
		"on deny":   h.GetAuthorizationResponse().GetAllowedClientHeaders().GetPatterns()[0].GetExact() == "x-why",
		"condition": f.GetFilterEnabledMetadata().GetPath()[0].GetKey() == "istio_ext_authz_http_shadow_effective_policy_id",
	} {
		if !ok {
			t.Errorf("%s: %v", name, f)
		}
	}
	per := &httprbacv3.RBACPerRoute{}
	if err := r.Routes[webHTTP].GetVirtualHosts()[0].GetTypedPerFilterConfig()["marrow.ext_authz.rbac.http"].UnmarshalTo(per); err != nil {
		t.Fatal(err)
	}
	if per.GetRbac().GetShadowRules().GetPolicies()["istio-ext-authz-http-ns[shop]-policy[c]-rule[0]"] == nil || per.GetRbac().GetRules() != nil {
		t.Errorf("per route: %v", per)
	}
	if len(filtersOf(t, r, "inbound-vip|80|http|plain.shop.svc.cluster.local")) != len(fs)-2 {
		t.Error("another service's chain asks too")
	}

	r, _ = deriveCustom(t, customPolicy("grpc", `[{}]`))
	const grpc = "ext-authz|9000|grpc|authz.shop.svc.cluster.local"
	o := &httpv3.HttpProtocolOptions{}
	if err := r.Clusters[grpc].GetTypedExtensionProtocolOptions()[httpOptionsKey].UnmarshalTo(o); err != nil || o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() == nil {
		t.Errorf("the provider's cluster does not speak HTTP/2: %v %v", err, o)
	}
	if err := filtersOf(t, r, webHTTP)[1].GetTypedConfig().UnmarshalTo(f); err != nil || f.GetGrpcService().GetEnvoyGrpc().GetClusterName() != grpc ||
		f.GetGrpcService().GetTimeout().AsDuration() != time.Second/2 || f.GetTransportApiVersion() != corev3.ApiVersion_V3 {
		t.Errorf("%v %v", err, f)
	}
}

// TestBadCustomDenies: what a provider that is not there should have judged is refused, and its author is told.
func TestBadCustomDenies(t *testing.T) {
	for _, name := range []string{"missing", "elsewhere", "other-port", "bad-status", "bad-prefix", "bad-list", "bad-body", "bad-timeout", "traces", "twice"} {
		r, findings := deriveCustom(t, customPolicy(name, `[{to: [{operation: {paths: [/a]}}]}]`))
		per := &httprbacv3.RBACPerRoute{}
		if err := r.Routes[webHTTP].GetVirtualHosts()[0].GetTypedPerFilterConfig()[rbacDeny].UnmarshalTo(per); err != nil {
			t.Fatal(err)
		}
		if per.GetRbac().GetRules().GetPolicies()["ns[shop]-policy[c]-rule[0]-deny-due-to-bad-CUSTOM-action"] == nil {
			t.Errorf("%s: not denied: %v", name, per)
		}
		if len(findings) != 1 || !strings.Contains(findings[0].Message, name) {
			t.Errorf("%s: findings %v", name, findings)
		}
	}
	// A token is not known yet when the provider is asked: where such a rule gets past admission, it is asked more often.
	in := parseWorld(t, []byte(customServices), nil)
	withMesh(t, customMesh)(&in)
	for _, rule := range []*securityapi.Rule{
		when("request.auth.claims[a]", "b"), from(&securityapi.Source{RequestPrincipals: []string{"*"}}), from(&securityapi.Source{NotRequestPrincipals: []string{"*"}}),
	} {
		p := onePolicy(securityapi.AuthorizationPolicy_CUSTOM, rule)
		p.Spec.ActionDetail = &securityapi.AuthorizationPolicy_Provider{Provider: &securityapi.AuthorizationPolicy_ExtensionProvider{Name: "grpc"}}
		d := newDerivation(in)
		c := d.compilePolicy(p)
		if c.kind != customKind || !matchesEverything(c.http["istio-ext-authz-grpc-ns[shop]-policy[p]-rule[0]"]) || len(d.findings) == 0 {
			t.Errorf("%v: %v %v", rule, c.http, d.findings)
		}
	}
}

// TestClientIdentity: the annotation puts the header first in every HTTP chain; without it nothing is there.
func TestClientIdentity(t *testing.T) {
	for v, want := range map[string]bool{"": false, "true": true, "TRUE": true, "1": false, "yes": false} {
		if AsksClientIdentity(map[string]string{AnnotationClientIdentity: v}) != want {
			t.Errorf("annotation %q", v)
		}
	}
	in := parseWorld(t, []byte(customServices), nil)
	in.ClientIdentity = true
	r, _ := Derive(in)
	if n := filtersOf(t, r, webHTTP)[0].GetName(); n != "marrow.xfcc_client_identity" {
		t.Errorf("the first filter is %s", n)
	}
	in.ClientIdentity = false
	r, _ = Derive(in)
	if n := filtersOf(t, r, webHTTP)[0].GetName(); n == "marrow.xfcc_client_identity" {
		t.Error("it is there unasked")
	}
}

// TestGuideForCustom: what docs/security.md shows is derived as it says.
func TestGuideForCustom(t *testing.T) {
	raw, err := os.ReadFile("../../../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(name string) string {
		_, rest, _ := strings.Cut(string(raw), "<!-- "+name+" -->\n```yaml\n")
		text, _, ok := strings.Cut(rest, "```")
		if !ok {
			t.Fatalf("no example %s", name)
		}
		return text
	}
	in := parseWorld(t, []byte(customServices), []byte(block("policy")))
	withMesh(t, block("mesh"))(&in)
	r, findings := Derive(in)
	if len(findings) > 0 || filtersOf(t, r, webHTTP)[1].GetName() != "marrow.ext_authz.ext-authz" {
		t.Errorf("findings %v, filters %v", findings, filtersOf(t, r, webHTTP)[:2])
	}
}
