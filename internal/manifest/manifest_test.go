package manifest_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
)

const shop = `# a comment before the first document
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: all, namespace: shop}
spec:
  selector: {}
  rules: [{}, {from: [{source: {principals: ["*"]}}], when: [{key: destination.port, values: ["80"]}]}]
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec:
  hosts: [cart]
  http: [{timeout: 1m, route: [{destination: {host: cart, port: {number: 80}}, weight: 10}]}]
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: cart}
  spec: {ports: [{port: 80, targetPort: http}]}
- apiVersion: gateway.networking.k8s.io/v1beta1
  kind: HTTPRoute
  metadata: {name: cart, namespace: shop}
  spec: {parentRefs: [{name: cart, kind: Service, group: ""}]}
`

func decode(t *testing.T, text string) []manifest.Object {
	t.Helper()
	objects, err := manifest.Decode("shop.yaml", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestDecode(t *testing.T) {
	var keys []string
	for _, o := range decode(t, shop) {
		keys = append(keys, o.GetObjectKind().GroupVersionKind().Version+" "+manifest.KeyOf(o).String())
	}
	want := []string{
		"v1 Namespace/shop",
		"v1 AuthorizationPolicy.security.istio.io/shop/all",
		"v1 VirtualService.networking.istio.io/shop/cart",
		"v1 Service/default/cart",
		"v1 HTTPRoute.gateway.networking.k8s.io/shop/cart",
	}
	if d := cmp.Diff(want, keys); d != "" {
		t.Error(d)
	}
}

func TestEncodeRoundTrips(t *testing.T) {
	for _, o := range decode(t, shop) {
		raw, err := manifest.Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		for _, noise := range []string{"creationTimestamp", "status"} {
			if strings.Contains(string(raw), noise) {
				t.Errorf("%s: %s in\n%s", manifest.KeyOf(o), noise, raw)
			}
		}
		back := decode(t, string(raw))
		if d := cmp.Diff([]manifest.Object{o}, back, protocmp.Transform()); d != "" {
			t.Errorf("%s: %s", manifest.KeyOf(o), d)
		}
		again, err := manifest.Encode(back[0])
		if err != nil || string(again) != string(raw) {
			t.Errorf("%s: encoding differs the second time (%v)", manifest.KeyOf(o), err)
		}
	}
	policy := decode(t, shop)[1].(*clientsecurity.AuthorizationPolicy)
	if policy.Spec.GetSelector() == nil || len(policy.Spec.GetRules()) != 2 {
		t.Errorf("an empty selector and an empty rule mean something, got %v", &policy.Spec)
	}
}

func TestUnknownFieldIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ object, field string }{
		"metadata":     {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, lables: {}}", "metadata.lables"},
		"top":          {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspecc: {}", "specc"},
		"core":         {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, imge: b}]}", "spec.containers[0].imge"},
		"gateway":      {"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a}\nspec: {listeners: [{naem: x}]}", "spec.listeners[0].naem"},
		"istio top":    {"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nsepc: {}", "sepc"},
		"istio meta":   {"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {nam: a}", "metadata.nam"},
		"istio":        {"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {rules: [{form: []}]}", "spec.rules[0].form"},
		"istio deep":   {"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {http: [{route: [{destination: {hots: b}}]}]}", "spec.http[0].route[0].destination.hots"},
		"istio map":    {"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mod: STRICT}}}", "spec.portLevelMtls[80].mod"},
		"istio status": {"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [a.b]}\nstatus: {adresses: []}", "status.adresses"},
	} {
		t.Run(name, func(t *testing.T) {
			objects, err := manifest.Decode("f.yaml", strings.NewReader("---\n"+c.object))
			if len(objects) != 0 || err == nil {
				t.Fatalf("accepted %v, %v", objects, err)
			}
			e, ok := errors.AsType[*manifest.Error](err)
			if !ok || e.Field != c.field || e.Source != "f.yaml" || e.Document != 1 || e.Key.Kind == "" {
				t.Errorf("got %#v, want field %s", e, c.field)
			}
		})
	}
}

func TestWrongValuesAreRefused(t *testing.T) {
	policy := "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\nspec: "
	peer := "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: b}\nspec: "
	entry := "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, namespace: b}\nspec: "
	vs := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: b}\nspec: "
	dr := "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: b}\nspec: "
	gw := "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: b}\nspec: "
	route := "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a, namespace: b}\nspec: "
	for text, want := range map[string]string{
		policy + "{action: REFUSE}": "spec.action: value REFUSE is unknown; want one of ALLOW, DENY",
		policy + "{action: DENY}":   "spec.rules: is empty",
		policy + "{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {namespaces: [a]}}]}]}":          "spec.rules[0].from[0].source.namespaces: cannot be used with action CUSTOM",
		policy + "{action: CUSTOM, provider: {name: x}, rules: [{when: [{key: source.principal, values: [a]}]}]}": "spec.rules[0].when[0].key",
		policy + "{provider: {name: x}}":                                       "spec.provider: belongs to action CUSTOM",
		policy + "{selector: {matchLabels: {a: '*'}}}":                         "wildcards are not supported",
		policy + "{selector: {}, targetRefs: [{kind: Service, name: a}]}":      "spec.selector: excludes targetRefs",
		policy + "{targetRefs: [{kind: Pod, name: a}]}":                        "spec.targetRefs[0].kind",
		policy + "{rules: [{from: [{}]}]}":                                     "spec.rules[0].from[0].source: is missing",
		policy + "{rules: [{from: [{source: {}}]}]}":                           "spec.rules[0].from[0].source: has no field",
		policy + "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}]}":    "spec.rules[0].from[0].source.ipBlocks[0]",
		policy + "{rules: [{from: [{source: {namespaces: ['']}}]}]}":           "namespaces[0]: is empty",
		policy + "{rules: [{from: [{source: {serviceAccounts: ['a/*']}}]}]}":   "has a wildcard",
		policy + "{rules: [{to: [{operation: {ports: ['70000']}}]}]}":          "spec.rules[0].to[0].operation.ports[0]",
		policy + "{rules: [{to: [{operation: {ports: [80]}}]}]}":               "is the number 80, want a string",
		policy + "{rules: [{when: [{key: source.ipp, values: [a]}]}]}":         "attribute \"source.ipp\" is unknown",
		policy + "{rules: [{when: [{key: source.ip}]}]}":                       "neither values nor notValues",
		policy + "{rules: {}}":                                                 "spec.rules: is an object, want a list",
		peer + "{mtls: {mode: strict}}":                                        "spec.mtls.mode: value strict is unknown",
		peer + "{portLevelMtls: {80: {mode: STRICT}}}":                         "spec.portLevelMtls: needs a selector",
		peer + "{selector: {matchLabels: {a: b}}, portLevelMtls: {70000: {}}}": "spec.portLevelMtls[70000]: is no port",
		entry + "{}":             "spec.hosts: is empty",
		entry + "{hosts: ['*']}": "would catch every name",
		entry + "{hosts: [a.b], addresses: [10.0.0.300]}":                               "spec.addresses[0]",
		entry + "{hosts: [a.b], resolution: NONE, endpoints: [{address: 1.1.1.1}]}":     "no effect with resolution NONE",
		entry + "{hosts: [a.b], ports: [{number: 80, name: a}, {number: 80, name: a}]}": "port names are unique",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a/b}":                              "metadata.name: value \"a/b\"",
		"apiVersion: v1\nkind: Pod\nmetadata: {}":                                       "metadata.name: is empty",
		"apiVersion: v1\nkind: Poddy\nmetadata: {name: a}":                              "is not a kind that is read here",
		"apiVersion: v2\nkind: Pod\nmetadata: {name: a}":                                "Pod has no version \"v2\"; use v1",
		"kind: Pod":                     "no apiVersion",
		"just text":                     "is no object",
		"a: b\na: c":                    "is not valid YAML",
		"a: [":                          "is not valid YAML",
		vs + "{hosts: [a]}":             "spec: has no http, tcp or tls routes",
		vs + "{hosts: [a], http: [{}]}": "spec.http[0]: has 0 of route, redirect",
		vs + "{hosts: [a], http: [{route: [{}]}]}":                                                                                   "spec.http[0].route[0].destination.host: is empty",
		vs + "{hosts: [a], http: [{route: [{destination: {host: b}}, {destination: {host: c}}]}]}":                                   "no weight above 0",
		vs + "{hosts: [a], http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: b}}]}]}":                               "spec.http[0].match[0].uri.regex",
		vs + "{hosts: [a], http: [{fault: {abort: {httpStatus: 99}}, route: [{destination: {host: b}}]}]}":                           "spec.http[0].fault.abort.httpStatus: value 99",
		vs + "{hosts: [a], http: [{fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}, route: [{destination: {host: b}}]}]}": "delay.percentage.value: value 101",
		vs + "{hosts: [a], http: [{timeout: soon, route: [{destination: {host: b}}]}]}":                                              "soon",
		vs + "{hosts: [a], http: [{match: [{uri: {exact: /, prefix: /}}], route: [{destination: {host: b}}]}]}":                      "spec.http[0].match[0].uri.prefix: excludes exact",
		dr + "{}": "spec.host: is empty",
		dr + "{host: a, subsets: [{name: x}, {name: x}]}":                                                                         "names are unique",
		gw + "{gatewayClassName: c, listeners: [{name: a, port: 0, protocol: HBONE}]}":                                            "spec.listeners[0].port: value 0",
		gw + "{gatewayClassName: c, listeners: [{name: a, port: 1, protocol: HBONE, allowedRoutes: {namespaces: {from: Some}}}]}": "namespaces.from: value Some is unknown",
		route + "{rules: [{matches: [{path: {type: Prefix, value: /}}]}]}":                                                        "spec.rules[0].matches[0].path.type: value Prefix is unknown",
		route + "{rules: [{matches: [{path: {value: a}}]}]}":                                                                      "does not begin with a slash",
		route + "{rules: [{matches: [{method: get}]}]}":                                                                           "spec.rules[0].matches[0].method: value get",
		route + "{rules: [{filters: [{type: RequestRedirect}]}]}":                                                                 "does not have its field",
		route + "{rules: [{backendRefs: [{name: a}]}]}":                                                                           "spec.rules[0].backendRefs[0].port: is missing",
		route + "{rules: [{timeouts: {request: 1 day}}]}":                                                                         "spec.rules[0].timeouts.request",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 70000}]}":                                      "spec.ports[0].port: value 70000",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}, {port: 81, name: b}]}":                    "several ports need names",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{image: b}]}":                                        "spec.containers[0].name: is empty",
	} {
		objects, err := manifest.Decode("f.yaml", strings.NewReader(text))
		if len(objects) != 0 || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
}

func TestGoodObjectsStand(t *testing.T) {
	broken := strings.Replace(shop, "selector: {}", "selektor: {}", 1)
	objects, err := manifest.Decode("shop.yaml", strings.NewReader(broken))
	if len(objects) != 4 {
		t.Errorf("got %d objects, want the 4 good ones", len(objects))
	}
	want := "shop.yaml: document 2 (line 7): AuthorizationPolicy.security.istio.io/shop/all: spec.selektor: unknown field; remove it or correct its name"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestEveryKindKnowsItself(t *testing.T) {
	for group, kinds := range map[string]string{
		"":                       "Namespace ServiceAccount Pod Service ConfigMap Secret Node Endpoints",
		manifest.GroupApps:       "Deployment ReplicaSet DaemonSet StatefulSet",
		manifest.GroupDiscovery:  "EndpointSlice",
		manifest.GroupGateway:    "Gateway GatewayClass HTTPRoute GRPCRoute TCPRoute TLSRoute UDPRoute ReferenceGrant BackendTLSPolicy ListenerSet",
		manifest.GroupNetworking: "VirtualService DestinationRule Gateway ServiceEntry WorkloadEntry WorkloadGroup Sidecar EnvoyFilter ProxyConfig",
		manifest.GroupSecurity:   "AuthorizationPolicy PeerAuthentication RequestAuthentication",
		manifest.GroupTelemetry:  "Telemetry",
		manifest.GroupExtensions: "WasmPlugin",
	} {
		for kind := range strings.FieldsSeq(kinds) {
			o, ok := manifest.New(group, kind)
			if !ok {
				t.Errorf("%s of %q is not known", kind, group)
				continue
			}
			if got := manifest.KeyOf(o); got.Group != group || got.Kind != kind {
				t.Errorf("%s of %q calls itself %v", kind, group, got)
			}
			o.SetName("x")
			if manifest.Namespaced(group, kind) {
				o.SetNamespace("y")
			}
			raw, err := manifest.Encode(o)
			if err != nil {
				t.Error(err)
			}
			gvk := o.GetObjectKind().GroupVersionKind()
			if !strings.Contains(string(raw), "apiVersion: "+gvk.GroupVersion().String()+"\n") || !strings.Contains(string(raw), "kind: "+kind+"\n") {
				t.Errorf("%s is written as\n%s", kind, raw)
			}
		}
	}
}

func TestKeyOfNeedsNoTypeMeta(t *testing.T) {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b"}}
	if got := manifest.KeyOf(o).String(); got != "Pod/a/b" {
		t.Error(got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(shop)
	f.Add("--- # x\na: [\n---\n")
	f.Add("apiVersion: v1\nkind: List\nitems: [1, null, {kind: List, items: []}]")
	f.Add("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {portLevelMtls: {80: null}}")
	f.Fuzz(func(t *testing.T, text string) {
		objects, _ := manifest.Decode("fuzz", strings.NewReader(text))
		for _, o := range objects {
			raw, err := manifest.Encode(o)
			if err != nil {
				t.Fatalf("decoded but not encoded: %v", err)
			}
			if _, err := manifest.Decode("again", strings.NewReader(string(raw))); err != nil {
				t.Fatalf("encoded but not decoded: %v\n%s", err, raw)
			}
		}
	})
}
