package ambient_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ambient"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
)

// world serves a text, with helpers to look at the outcome.
type world struct {
	t        *testing.T
	pipeline *ambient.Pipeline
	messages map[string]proto.Message
	cond     map[string][]ambient.Condition
	problems []error
}

func newWorld(t *testing.T, text string) *world {
	w := &world{
		t: t, pipeline: ambient.NewPipeline(ambient.Config{}), messages: map[string]proto.Message{}, cond: map[string][]ambient.Condition{},
	}
	w.apply(text)
	return w
}

func (w *world) apply(text string) {
	w.t.Helper()
	w.events(decode(w.t, text))
}

func (w *world) remove(keys ...manifest.Key) {
	var batch []source.Event
	for _, k := range keys {
		batch = append(batch, source.Event{Key: k})
	}
	w.events(batch)
}

func (w *world) events(batch []source.Event) {
	c := w.pipeline.Apply(batch)
	for _, r := range slices.Concat(c.Addresses.Updated, c.Authorizations.Updated) {
		w.messages[r.Name] = r.Message
	}
	for _, n := range slices.Concat(c.Addresses.Removed, c.Authorizations.Removed) {
		delete(w.messages, n)
	}
	for _, o := range c.Conditions {
		w.cond[o.Object.String()] = o.Conditions
	}
	w.problems = c.Problems
}

func (w *world) service(name string) *workload.Service {
	w.t.Helper()
	a, ok := w.messages[name].(*workload.Address)
	if !ok || a.GetService() == nil {
		w.t.Fatalf("no service %s among %v", name, w.messages)
	}
	return a.GetService()
}

func (w *world) workload(name string) *workload.Workload {
	w.t.Helper()
	a, ok := w.messages[name].(*workload.Address)
	if !ok || a.GetWorkload() == nil {
		w.t.Fatalf("no workload %s among %v", name, w.messages)
	}
	return a.GetWorkload()
}

const (
	gatewayText = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`
	readyText   = gatewayText + "status: {addresses: [{type: Hostname, value: way.shop.svc.cluster.local}]}\n"
	serviceText = `
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: way}}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
`
)

func TestServiceConditions(t *testing.T) {
	canary := strings.NewReplacer("istio.io/use-waypoint: way", "istio.io/use-waypoint: way, istio.io/use-waypoint-canary: next").Replace(serviceText)
	for name, c := range map[string]struct {
		text, reason, message string
		bound                 bool
	}{
		"bound":     {readyText + "---" + serviceText, "WaypointAccepted", "Successfully attached to waypoint shop/way", true},
		"not ready": {gatewayText + "---" + serviceText, "WaypointIsNotReady", "waypoint shop/way does not exist or has no address yet", false},
		"absent":    {serviceText, "WaypointIsNotReady", "waypoint shop/way does not exist", false},
		"denied": {
			readyText + "---" + strings.Replace(strings.Replace(serviceText, "namespace: shop", "namespace: out", 1), "use-waypoint: way", "use-waypoint: way, istio.io/use-waypoint-namespace: shop", 1),
			"AttachmentDenied", "waypoint shop/way does not allow namespace out", false,
		},
		"wrong traffic": {
			strings.Replace(readyText, "namespace: shop}", "namespace: shop, labels: {istio.io/waypoint-for: workload}}", 1) + "---" + serviceText,
			"UnsupportedTrafficType", "waypoint shop/way is for workload traffic, not for service traffic", false,
		},
		"canary is not ready": {
			readyText + "---" + canary, "WaypointAccepted",
			"Successfully attached to waypoint shop/way. Canary waypoint not attached: waypoint shop/next does not exist", true,
		},
		"canary is the primary": {
			readyText + "---" + strings.Replace(canary, "canary: next", "canary: way", 1), "WaypointAccepted", "Canary waypoint not attached: it is the primary", true,
		},
		"canary weight": {
			readyText + "---" + strings.Replace(canary, "labels:", "annotations: {istio.io/use-waypoint-canary-weight: lots}, labels:", 1),
			"WaypointAccepted", `weight "lots" is no integer from 0 to 100`, true,
		},
		"ingress": {
			readyText + "---" + strings.Replace(serviceText, "use-waypoint: way", "use-waypoint: way, istio.io/ingress-use-waypoint: 'true'", 1),
			"WaypointAccepted", "Ingress traffic will traverse the waypoint", true,
		},
		"ingress not": {
			readyText + "---" + strings.Replace(serviceText, "use-waypoint: way", "use-waypoint: way, istio.io/ingress-use-waypoint: 'no'", 1),
			"WaypointAccepted", "Ingress traffic is not using the waypoint", true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.text)
			ns := "shop"
			if strings.Contains(c.text, "namespace: out") {
				ns = "out"
			}
			got := w.cond["Service/"+ns+"/cart"]
			if len(got) != 1 || got[0].Type != "istio.io/WaypointBound" || got[0].True != c.bound || got[0].Reason != c.reason ||
				!strings.Contains(got[0].Message, c.message) {
				t.Errorf("got %+v", got)
			}
			if bound := w.service(ns+"/cart."+ns+".svc.cluster.local").GetWaypoint() != nil; bound != c.bound {
				t.Errorf("bound: %v", bound)
			}
		})
	}
}

// TestWaypointComesAndGoes follows one binding: named but not there is direct, not refused.
func TestWaypointComesAndGoes(t *testing.T) {
	const host = "shop/cart.shop.svc.cluster.local"
	w := newWorld(t, serviceText)
	if w.service(host).GetWaypoint() != nil {
		t.Error("bound to a waypoint that does not exist")
	}
	w.apply(readyText)
	if w.service(host).GetWaypoint().GetHostname().GetHostname() != "way.shop.svc.cluster.local" {
		t.Errorf("not bound: %v", w.service(host))
	}
	w.remove(manifest.Key{Group: manifest.GroupGateway, Kind: "Gateway", Namespace: "shop", Name: "way"})
	if w.service(host).GetWaypoint() != nil || w.cond["Service/shop/cart"][0].True {
		t.Error("still bound")
	}
	w.apply(strings.Replace(serviceText, "use-waypoint: way", "use-waypoint: none", 1))
	if len(w.cond["Service/shop/cart"]) != 0 {
		t.Errorf("conditions are left: %v", w.cond)
	}
}

func TestWorkloadEntryConditions(t *testing.T) {
	ns := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: way}}\n---"
	entry := "\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 10.0.0.9}\n"
	const key = "WorkloadEntry.networking.istio.io/shop/vm"
	if got := newWorld(t, ns+readyText+"---"+entry).cond[key]; len(got) != 0 {
		t.Errorf("a namespace's waypoint for services is no error for workloads: %+v", got)
	}
	own := strings.Replace(entry, "namespace: shop}", "namespace: shop, labels: {istio.io/use-waypoint: way}}", 1)
	got := newWorld(t, readyText+"---"+own).cond[key]
	if len(got) != 1 || got[0].Reason != "UnsupportedTrafficType" {
		t.Errorf("own label: %+v", got)
	}
}

func TestPolicyConditions(t *testing.T) {
	policy := func(spec string) string {
		return "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop, generation: 3}\nspec: " + spec + "\n"
	}
	ref := func(names ...string) string {
		var refs []string
		for _, n := range names {
			kind, name, _ := strings.Cut(n, "/")
			group := map[string]string{"Gateway": manifest.GroupGateway, "GatewayClass": manifest.GroupGateway, "ServiceEntry": manifest.GroupNetworking}[kind]
			refs = append(refs, "{group: '"+group+"', kind: "+kind+", name: "+name+"}")
		}
		return policy("{targetRefs: [" + strings.Join(refs, ", ") + "]}")
	}
	all := readyText + "---" + serviceText + "---" + strings.Replace(strings.Replace(serviceText, "cart", "bare", 1), "use-waypoint: way", "use-waypoint: none", 1)
	for name, c := range map[string]struct {
		spec    string
		want    ambient.Condition
		message string
	}{
		"accepted":     {policy("{rules: [{}]}"), ambient.Condition{Type: "ZtunnelAccepted", True: true, Reason: "Accepted"}, "attached to ztunnel"},
		"audit":        {policy("{action: AUDIT, rules: [{}]}"), ambient.Condition{Type: "ZtunnelAccepted", Reason: "UnsupportedValue"}, "AUDIT"},
		"no labels":    {policy("{selector: {}, action: DENY, rules: [{}]}"), ambient.Condition{Type: "ZtunnelAccepted", True: true, Reason: "UnsupportedValue"}, "not in force"},
		"http in deny": {policy("{action: DENY, rules: [{to: [{operation: {paths: [/a], methods: [GET]}}]}]}"), ambient.Condition{Type: "ZtunnelAccepted", True: true, Reason: "UnsupportedValue"}, "(methods, paths): they are left out of the DENY rules"},
		"http only":    {policy("{rules: [{to: [{operation: {paths: [/a]}}]}]}"), ambient.Condition{Type: "ZtunnelAccepted", True: true, Reason: "UnsupportedValue"}, "nothing is allowed"},
		"http some":    {policy("{rules: [{to: [{operation: {paths: [/a]}}]}, {}]}"), ambient.Condition{Type: "ZtunnelAccepted", True: true, Reason: "UnsupportedValue"}, "so less is allowed"},
		"bound":        {ref("Service/cart"), ambient.Condition{Type: "WaypointAccepted", True: true, Reason: "Accepted"}, "bound to Service.core:shop/cart"},
		"gateway":      {ref("Gateway/way"), ambient.Condition{Type: "WaypointAccepted", True: true, Reason: "Accepted"}, "bound to Gateway.gateway.networking.k8s.io:shop/way"},
		"no target":    {ref("Service/none"), ambient.Condition{Type: "WaypointAccepted", Reason: "TargetNotFound"}, "Service.core:shop/none"},
		"not bound":    {ref("Service/bare"), ambient.Condition{Type: "WaypointAccepted", Reason: "AncestorNotBound"}, "Service.core:shop/bare"},
		"class":        {ref("GatewayClass/istio-waypoint"), ambient.Condition{Type: "WaypointAccepted", Reason: "Invalid"}, "root namespace"},
		"partly":       {ref("Service/cart", "Service/none"), ambient.Condition{Type: "WaypointAccepted", True: true, Reason: "PartiallyInvalid"}, "Invalid targetRefs: Service.core:shop/none"},
		"none of two":  {ref("Service/bare", "Service/none"), ambient.Condition{Type: "WaypointAccepted", Reason: "Invalid"}, "Invalid targetRefs: Service.core:shop/bare, Service.core:shop/none"},
	} {
		t.Run(name, func(t *testing.T) {
			got := newWorld(t, all+c.spec).cond["AuthorizationPolicy.security.istio.io/shop/p"]
			if len(got) != 1 || !strings.Contains(got[0].Message, c.message) {
				t.Fatalf("got %+v, want message %q", got, c.message)
			}
			c.want.Message, c.want.ObservedGeneration = got[0].Message, 3
			if d := cmp.Diff(c.want, got[0]); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestEntryConditions(t *testing.T) {
	entry := "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: shop}\nspec: {hosts: ['*.example.com'], resolution: DYNAMIC_DNS, ports: [{number: 80, name: http}]}\n"
	const key = "ServiceEntry.networking.istio.io/shop/e"
	got := newWorld(t, readyText+entry).cond[key]
	if len(got) != 1 || got[0].Type != "istio.io/WaypointMissing" || !got[0].True {
		t.Errorf("wildcard without waypoint: %+v", got)
	}
	got = newWorld(t, readyText+strings.Replace(entry, "namespace: shop}", "namespace: shop, labels: {istio.io/use-waypoint: way}}", 1)).cond[key]
	if len(got) != 1 || got[0].Type != "istio.io/WaypointBound" || !got[0].True {
		t.Errorf("wildcard with waypoint: %+v", got)
	}
	mesh := "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'serviceEntryVisibility: {defaultVisibility: VISIBILITY}'}\n"
	for visibility, want := range map[string]string{"NAMESPACE": "Namespace", "PUBLIC": "Public"} {
		w := newWorld(t, strings.Replace(mesh, "VISIBILITY}", visibility+"}", 1)+entry)
		got := w.cond[key]
		if len(got) != 2 || got[0].Type != "istio.io/VisibilityApplied" || got[0].Reason != want {
			t.Errorf("%s: %+v", visibility, got)
		}
		if v := w.service("shop/*.example.com").GetVisibility() == workload.Visibility_NAMESPACE; v != (visibility == "NAMESPACE") {
			t.Errorf("%s: %v", visibility, w.messages)
		}
	}
	if w := newWorld(t, strings.Replace(mesh, "VISIBILITY}", "NONE}", 1)+entry); len(w.messages) != 0 {
		t.Errorf("hidden entries are sent: %v", w.messages)
	}
}

// TestBadMeshSettingsKeepTheLastGood: refusing them must not fall back to defaults, which may be more open.
func TestBadMeshSettingsKeepTheLastGood(t *testing.T) {
	mesh := func(text string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: '" + text + "'}\n"
	}
	w := newWorld(t, mesh("trustDomain: corp"))
	for text, want := range map[string]string{
		"trustDomain: [": "not valid YAML", "trustDomain: {}": "mesh", "discoverySelectors: [{matchExpressions: [{key: a, operator: Maybe}]}]": "discoverySelectors[0]",
	} {
		w.apply(mesh(text))
		if len(w.problems) != 1 || !strings.Contains(w.problems[0].Error(), want) {
			t.Errorf("%s: problems %v", text, w.problems)
		}
		if got := w.pipeline.Mesh().TrustDomain; got != "corp" {
			t.Errorf("%s: trust domain %s", text, got)
		}
	}
	w.apply(mesh("{trustDomain: other, newSetting: 1}"))
	if len(w.problems) != 1 || !strings.Contains(w.problems[0].Error(), "mesh.newSetting: unknown field") {
		t.Errorf("unknown setting: %v", w.problems)
	}
	if got := w.pipeline.Mesh().TrustDomain; got != "other" {
		t.Errorf("the known settings beside an unknown one do not count: %s", got)
	}
	w.remove(manifest.Key{Kind: "ConfigMap", Namespace: "istio-system", Name: "istio"})
	if got := w.pipeline.Mesh().TrustDomain; got != "cluster.local" {
		t.Errorf("without ConfigMap: %s", got)
	}
}

func TestOldestPeerAuthenticationWins(t *testing.T) {
	peer := func(name, created, mode string) string {
		return "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: " + name + ", namespace: shop, creationTimestamp: '" + created + "'}\nspec: {mtls: {mode: " + mode + "}}\n"
	}
	const uid = "Kubernetes//Pod/shop/p-1"
	w := newWorld(t, podText("shop", 1, "True")+"\n"+peer("a", "2026-01-02T00:00:00Z", "STRICT")+peer("z", "2026-01-01T00:00:00Z", "PERMISSIVE"))
	if got := w.workload(uid).GetAuthorizationPolicies(); len(got) != 0 {
		t.Errorf("the younger one counts: %v", got)
	}
	w.remove(manifest.Key{Group: manifest.GroupSecurity, Kind: "PeerAuthentication", Namespace: "shop", Name: "z"})
	if got := w.workload(uid).GetAuthorizationPolicies(); !slices.Equal(got, []string{"istio-system/istio_converted_static_strict"}) {
		t.Errorf("after the removal: %v", got)
	}
	w.remove(manifest.Key{Group: manifest.GroupSecurity, Kind: "PeerAuthentication", Namespace: "shop", Name: "a"})
	if _, ok := w.messages["istio-system/istio_converted_static_strict"].(*security.Authorization); ok {
		t.Error("the fixed policy is left without any PeerAuthentication")
	}
}

// TestNetworkChangeRekeysEverything: the label of the system namespace is part of every address.
func TestNetworkChangeRekeysEverything(t *testing.T) {
	w := newWorld(t, podText("shop", 1, "True")+"\n---"+serviceText)
	w.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: east}}")
	if got := w.workload("Kubernetes//Pod/shop/p-1").GetNetwork(); got != "east" {
		t.Errorf("workload on %q", got)
	}
	if got := w.service("shop/cart.shop.svc.cluster.local").GetAddresses()[0].GetNetwork(); got != "east" {
		t.Errorf("service on %q", got)
	}
}

// TestPresetsAreNotShared: a change for one service must not leak into another's traffic preference.
func TestPresetsAreNotShared(t *testing.T) {
	svc := func(name, more string) string {
		return "---\napiVersion: v1\nkind: Service\nmetadata: {name: " + name + ", namespace: shop}\nspec: {clusterIP: 10.0.0.1, trafficDistribution: PreferClose" + more + "}\n"
	}
	w := newWorld(t, svc("a", ", publishNotReadyAddresses: true")+svc("b", ""))
	if got := w.service("shop/b.shop.svc.cluster.local").GetLoadBalancing().GetHealthPolicy(); got != workload.LoadBalancing_ONLY_HEALTHY {
		t.Errorf("health policy %v came from another service", got)
	}
}

// TestPodsOfSlicesNeedTheRightUID: an endpoint that names a pod of the past must not join its successor.
func TestPodsOfSlicesNeedTheRightUID(t *testing.T) {
	svc := "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: raw, namespace: shop}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80, name: http}]}\n"
	slice := func(uid string) string {
		return "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: raw-1, namespace: shop, labels: {kubernetes.io/service-name: raw}}\naddressType: IPv4\nports: [{name: http, port: 80}]\n" +
			"endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, namespace: shop, name: p-1, uid: " + uid + "}}]\n"
	}
	pod := strings.Replace(podText("shop", 1, "True"), "name: p-1,", "name: p-1, uid: now,", 1)
	if got := newWorld(t, pod+svc+slice("past")).workload("Kubernetes//Pod/shop/p-1").GetServices(); len(got) != 0 {
		t.Errorf("joined by a slice about another pod: %v", got)
	}
	if got := newWorld(t, pod+svc+slice("now")).workload("Kubernetes//Pod/shop/p-1").GetServices(); len(got) != 1 {
		t.Errorf("not joined: %v", got)
	}
}

func TestRevision(t *testing.T) {
	text := "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop, labels: {istio.io/rev: other}}\nspec: {}\n"
	for revision, want := range map[string]int{"": 1, "other": 1, "mine": 0} {
		c := ambient.NewPipeline(ambient.Config{Revision: revision}).Apply(decode(t, text))
		if got := len(c.Authorizations.Updated); got != want {
			t.Errorf("revision %q: %d policies", revision, got)
		}
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add("trustDomain: corp\nrootNamespace: a")
	f.Add("discoverySelectors: [{matchLabels: {a: b}, matchExpressions: [{key: team, operator: In, values: [red]}]}]")
	f.Add("serviceEntryVisibility: {defaultVisibility: NONE, policies: [{visibility: PUBLIC, matchingRules: [{namespaceSelector: {matchLabels: {a: b}}}, {}]}]}")
	f.Fuzz(func(t *testing.T, text string) {
		s, _, err := ambient.ParseSettings(ambient.Config{}, text)
		if err == nil && (s.RootNamespace == "" || s.TrustDomain == "") {
			t.Errorf("settings without root namespace or trust domain: %+v", s)
		}
	})
}
