package ambient_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ambient"
)

const (
	cartPod = `
apiVersion: v1
kind: Pod
metadata: {name: cart-0, namespace: shop, uid: u, labels: {app: cart}}
spec: {serviceAccountName: cart, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.1.1, podIPs: [{ip: 10.0.1.1}], conditions: [{type: Ready, status: 'True'}]}
`
	proxyPod = `
apiVersion: v1
kind: Pod
metadata: {name: way-0, namespace: shop, uid: w, labels: {gateway.networking.k8s.io/gateway-name: way}}
spec: {serviceAccountName: way-account, containers: [{name: c}]}
status: {podIP: 10.0.1.9, podIPs: [{ip: 10.0.1.9}], conditions: [{type: Ready, status: 'True'}]}
`
	guarded = "shop/marrow_waypoint_required_cart"
)

func cart(labels, ports string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop, labels: {" + labels + "}}\n" +
		"spec: {clusterIP: 10.1.0.1, selector: {app: cart}, ports: [" + ports + "]}\n"
}

func targeting(ns, annotations, spec string, refs ...string) string {
	return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: " + ns + ", annotations: {" + annotations + "}}\n" +
		"spec: {targetRefs: [" + strings.Join(refs, ", ") + "], " + spec + "}\n"
}

const (
	refCart   = "{kind: Service, group: '', name: cart}"
	refWay    = "{kind: Gateway, group: gateway.networking.k8s.io, name: way}"
	refClass  = "{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}"
	useWay    = "istio.io/use-waypoint: way"
	plainPort = "{port: 80, targetPort: 8080}"
	allowGet  = "rules: [{to: [{operation: {methods: [GET]}}]}]"
)

// TestGuards: traffic that would pass by the waypoint whose policies it has to meet is refused at the workload (goal R8).
func TestGuards(t *testing.T) {
	const (
		onlyProxies = `rules:{matches:{not_principals:{exact:"cluster.local/ns/shop/sa/way-account"} destination_ports:8080}}`
		nobody      = `rules:{matches:{destination_ports:8080}}`
		noProxyYet  = nobody
	)
	bound := cart(useWay, plainPort)
	for name, c := range map[string]struct {
		objects []string
		want    string // the group; empty = there is no guard
	}{
		"no policy":                         {[]string{bound, readyText, proxyPod}, ""},
		"policy of the service":             {[]string{bound, readyText, proxyPod, targeting("shop", "", allowGet, refCart)}, onlyProxies},
		"a refusing one":                    {[]string{bound, readyText, proxyPod, targeting("shop", "", "action: DENY, "+allowGet, refCart)}, onlyProxies},
		"policy of the waypoint":            {[]string{bound, readyText, proxyPod, targeting("shop", "", allowGet, refWay)}, onlyProxies},
		"policy of all waypoints":           {[]string{bound, readyText, proxyPod, targeting("istio-system", "", allowGet, refClass)}, onlyProxies},
		"of all, not from the root":         {[]string{bound, readyText, proxyPod, targeting("shop", "", allowGet, refClass)}, ""},
		"of another waypoint":               {[]string{bound, readyText, proxyPod, targeting("shop", "", allowGet, strings.Replace(refWay, "way}", "other}", 1))}, ""},
		"of another service":                {[]string{bound, readyText, proxyPod, targeting("shop", "", allowGet, strings.Replace(refCart, "cart", "pay", 1))}, ""},
		"one that only watches":             {[]string{bound, readyText, proxyPod, targeting("shop", "", "action: AUDIT, "+allowGet, refCart)}, ""},
		"dry run":                           {[]string{bound, readyText, proxyPod, targeting("shop", "istio.io/dry-run: 'true'", allowGet, refCart)}, ""},
		"no such waypoint":                  {[]string{bound, targeting("shop", "", allowGet, refCart)}, nobody},
		"no such waypoint, its policy":      {[]string{bound, targeting("shop", "", allowGet, refWay)}, nobody},
		"a waypoint without address":        {[]string{bound, gatewayText, proxyPod, targeting("shop", "", allowGet, refCart)}, nobody},
		"a waypoint without proxies":        {[]string{bound, readyText, targeting("shop", "", allowGet, refCart)}, noProxyYet},
		"none named":                        {[]string{cart("", plainPort), readyText, proxyPod, targeting("shop", "", allowGet, refCart)}, nobody},
		"none wanted":                       {[]string{cart("istio.io/use-waypoint: none", plainPort), readyText, proxyPod, targeting("shop", "", allowGet, refCart)}, ""},
		"optional for the service":          {[]string{cart(useWay+", policy.marrow.io/waypoint-optional: 'true'", plainPort), targeting("shop", "", allowGet, refCart)}, ""},
		"optional for the namespace":        {[]string{bound, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {policy.marrow.io/waypoint-optional: 'true'}}\n", targeting("shop", "", allowGet, refCart)}, ""},
		"the service knows better":          {[]string{cart(useWay+", policy.marrow.io/waypoint-optional: 'false'", plainPort), "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {policy.marrow.io/waypoint-optional: 'true'}}\n", targeting("shop", "", allowGet, refCart)}, nobody},
		"ports by name":                     {[]string{cart(useWay, "{port: 80, targetPort: http}"), readyText, proxyPod, targeting("shop", "", allowGet, refCart)}, `rules:{matches:{not_principals:{exact:"cluster.local/ns/shop/sa/way-account"}}}`},
		"ports by name, no waypoint at all": {[]string{cart(useWay, "{port: 80, targetPort: http}"), targeting("shop", "", allowGet, refCart)}, `rules:{matches:{principals:{presence:{}}} matches:{not_principals:{presence:{}}}}`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, strings.Join(append(c.objects, cartPod), "\n---\n"))
			guard, _ := w.messages[guarded].(*security.Authorization)
			if attached := slices.Contains(w.workload("Kubernetes//Pod/shop/cart-0").GetAuthorizationPolicies(), guarded); attached != (c.want != "") || (guard != nil) != attached {
				t.Fatalf("attached is %v, the guard %v; want %q", attached, guard, c.want)
			}
			if guard == nil {
				return
			}
			want := &security.Authorization{}
			if err := prototext.Unmarshal([]byte(`name:"marrow_waypoint_required_cart" namespace:"shop" scope:WORKLOAD_SELECTOR action:DENY groups:{`+c.want+"}"), want); err != nil {
				t.Fatal(err)
			}
			if got := guard.String(); got != want.String() {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// TestGuardFollows: a guard opens when the waypoint comes, closes when it goes, and ends with the policy.
func TestGuardFollows(t *testing.T) {
	w := newWorld(t, strings.Join([]string{cart(useWay, plainPort), cartPod, targeting("shop", "", allowGet, refCart)}, "\n---\n"))
	admitted := func() int {
		a, _ := w.messages[guarded].(*security.Authorization)
		if a == nil {
			return -1
		}
		return len(a.GetGroups()[0].GetRules()[0].GetMatches()[0].GetNotPrincipals())
	}
	step := func(what string, want int) {
		t.Helper()
		if got := admitted(); got != want {
			t.Errorf("%s: %d identities are let in, want %d", what, got, want)
		}
	}
	gateway := manifest.Key{Group: manifest.GroupGateway, Kind: "Gateway", Namespace: "shop", Name: "way"}
	step("no waypoint", 0)
	w.apply(readyText)
	step("no proxy", 0)
	w.apply(proxyPod)
	step("waypoint", 1)
	w.apply(strings.NewReplacer("way-0", "way-1", "way-account", "other", "uid: w", "uid: v").Replace(proxyPod))
	step("two accounts", 2)
	w.remove(gateway)
	step("waypoint gone", 0)
	w.remove(manifest.Key{Group: manifest.GroupSecurity, Kind: "AuthorizationPolicy", Namespace: "shop", Name: "p"})
	step("policy gone", -1)
	if got := w.workload("Kubernetes//Pod/shop/cart-0").GetAuthorizationPolicies(); len(got) != 0 {
		t.Errorf("still attached: %v", got)
	}
}

// TestUnguarded: whoever wants Istio's own behaviour gets it.
func TestUnguarded(t *testing.T) {
	p := ambient.NewPipeline(ambient.Config{Unguarded: true})
	if c := p.Apply(decode(t, strings.Join([]string{cart(useWay, plainPort), cartPod, targeting("shop", "", allowGet, refCart)}, "\n---\n"))); len(c.Authorizations.Updated) > 0 {
		t.Errorf("%v", c.Authorizations.Updated)
	}
}
