package ambient_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ambient"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
)

// served is what a client has after it applied all changes.
type served struct {
	resources  map[string]string // type and name -> bytes
	conditions map[manifest.Key][]ambient.Condition
}

func newServed() *served {
	return &served{resources: map[string]string{}, conditions: map[manifest.Key][]ambient.Condition{}}
}

// apply follows a batch and says what is wrong with it.
func (s *served) apply(c ambient.Changes) error {
	for _, d := range []ambient.Delta{c.Addresses, c.Authorizations} {
		for _, r := range d.Updated {
			k := r.Body.GetTypeUrl() + " " + r.Name
			if s.resources[k] == string(r.Body.GetValue()) {
				return fmt.Errorf("%s did not change", k)
			}
			s.resources[k] = string(r.Body.GetValue())
		}
	}
	for url, removed := range map[string][]string{
		ambient.AddressType: c.Addresses.Removed, ambient.AuthorizationType: c.Authorizations.Removed,
	} {
		for _, n := range removed {
			if _, ok := s.resources[url+" "+n]; !ok {
				return fmt.Errorf("%s was never there", n)
			}
			delete(s.resources, url+" "+n)
		}
	}
	for _, o := range c.Conditions {
		s.conditions[o.Object] = o.Conditions
	}
	return nil
}

// kit builds objects from a few names, so that they meet.
func kit() []string {
	var out []string
	for _, ns := range []string{"a", "b", "istio-system"} {
		for _, labels := range []string{"{}", "{istio.io/use-waypoint: w}", "{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}", "{topology.istio.io/network: n1}"} {
			out = append(out, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+", labels: "+labels+"}")
		}
		for _, app := range []string{"x", "z"} {
			pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p-" + app + ", namespace: " + ns + ", uid: u-" + app + ", labels: {app: " + app + ", v: '1'}}\n" +
				"spec: {nodeName: n1, serviceAccountName: s, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}\n"
			out = append(out,
				pod+"status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}",
				pod+"status: {podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}]}",
				pod+"status: {phase: Succeeded, podIP: 10.0.0.2}",
				"apiVersion: v1\nkind: Service\nmetadata: {name: s-"+app+", namespace: "+ns+"}\nspec: {clusterIP: 10.1.0.1, selector: {app: "+app+"}, ports: [{port: 80, targetPort: http}]}",
				"apiVersion: v1\nkind: Service\nmetadata: {name: s-"+app+", namespace: "+ns+", labels: {istio.io/use-waypoint: w}}\nspec: {clusterIP: 10.1.0.1, selector: {v: '1'}, ports: [{port: 80, name: http}]}",
				"apiVersion: v1\nkind: Service\nmetadata: {name: s-"+app+", namespace: "+ns+"}\nspec: {clusterIP: None, ports: [{port: 80, name: http}]}",
				"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e-"+app+", namespace: "+ns+", labels: {kubernetes.io/service-name: s-"+app+"}}\naddressType: IPv4\nports: [{name: http, port: 80}]\n"+
					"endpoints: [{addresses: [10.9.0.1]}, {addresses: [10.0.0.1], targetRef: {kind: Pod, namespace: "+ns+", name: p-"+app+", uid: u-"+app+"}}]",
				"apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: we-"+app+", namespace: "+ns+"}\nspec: {address: 10.2.0.1, labels: {app: "+app+"}, network: n1}",
				"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: se-"+app+", namespace: "+ns+", creationTimestamp: '2026-01-0"+map[string]string{"x": "1", "z": "2"}[app]+"T00:00:00Z'}\n"+
					"spec: {hosts: [h.example.com, s-x.a.svc.cluster.local], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.3.0.1}, {address: 10.3.0.2, network: n1}]}",
				"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: se-"+app+", namespace: "+ns+", labels: {istio.io/use-waypoint: w}}\n"+
					"spec: {hosts: [h.example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: "+app+"}}}",
				"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: pa-"+app+", namespace: "+ns+"}\nspec: {mtls: {mode: STRICT}}",
				"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: pa-"+app+", namespace: "+ns+"}\nspec: {selector: {matchLabels: {app: "+app+"}}, portLevelMtls: {80: {mode: PERMISSIVE}}}",
				"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: ap-"+app+", namespace: "+ns+"}\nspec: {selector: {matchLabels: {app: "+app+"}}}",
				"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: ap-"+app+", namespace: "+ns+"}\nspec: {targetRefs: [{kind: Service, group: '', name: s-x}, {kind: Gateway, group: gateway.networking.k8s.io, name: w}]}",
			)
		}
		gw := "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: " + ns + ", labels: {istio.io/waypoint-for: all, topology.istio.io/network: n1}}\nspec: {gatewayClassName: "
		listeners := ", listeners: [{name: m, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}"
		out = append(out, gw+"istio-waypoint"+listeners,
			gw+"istio-waypoint"+listeners+"\nstatus: {addresses: [{type: IPAddress, value: 10.4.0.1}]}",
			gw+"istio-remote"+listeners+"\nstatus: {addresses: [{type: IPAddress, value: 10.4.0.1}]}")
	}
	for _, mesh := range []string{"''", "'rootNamespace: a'", "'trustDomain: corp'", "'discoverySelectors: [{matchExpressions: [{key: istio.io/use-waypoint, operator: Exists}]}]'", "'serviceEntryVisibility: {defaultVisibility: NAMESPACE}'"} {
		out = append(out, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: "+mesh+"}")
	}
	return append(out, "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}",
		"apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z2}}")
}

type fataler interface{ Fatal(...any) }

func decode(t fataler, text string) []source.Event {
	objects, err := manifest.Decode("test", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var out []source.Event
	for _, o := range objects {
		out = append(out, source.Event{Key: manifest.KeyOf(o), Object: o})
	}
	return out
}

func TestIncrementalEqualsScratch(t *testing.T) {
	var parts []source.Event
	for _, text := range kit() {
		parts = append(parts, decode(t, text)...)
	}
	rapid.Check(t, func(t *rapid.T) {
		p := ambient.NewPipeline(ambient.Config{})
		have := newServed()
		world := map[manifest.Key]manifest.Object{}
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			var batch []source.Event
			for range rapid.IntRange(1, 15).Draw(t, "events") {
				e := parts[rapid.IntRange(0, len(parts)-1).Draw(t, "part")]
				if rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
					e.Object = nil
					delete(world, e.Key)
				} else {
					world[e.Key] = e.Object
				}
				batch = append(batch, e)
			}
			if err := have.apply(p.Apply(batch)); err != nil {
				t.Fatal(err)
			}
			want := scratch(t, world)
			if d := cmp.Diff(want.resources, have.resources); d != "" {
				t.Fatalf("resources (-scratch +incremental):\n%s", d)
			}
			maps.DeleteFunc(have.conditions, func(k manifest.Key, c []ambient.Condition) bool { return len(c) == 0 })
			maps.DeleteFunc(want.conditions, func(k manifest.Key, c []ambient.Condition) bool { return len(c) == 0 })
			if d := cmp.Diff(want.conditions, have.conditions); d != "" {
				t.Fatalf("conditions (-scratch +incremental):\n%s", d)
			}
		}
	})
}

// scratch serves a world from nothing, in a random order: what is served must not depend on it.
func scratch(t fataler, world map[manifest.Key]manifest.Object) *served {
	var all []source.Event
	for k, o := range world {
		all = append(all, source.Event{Key: k, Object: o})
	}
	slices.SortFunc(all, func(a, b source.Event) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	s := newServed()
	if err := s.apply(ambient.NewPipeline(ambient.Config{}).Apply(all)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSameInputSameBytes(t *testing.T) {
	world := map[manifest.Key]manifest.Object{}
	for _, text := range kit() {
		for _, e := range decode(t, text) {
			world[e.Key] = e.Object
		}
	}
	want := scratch(t, world)
	for range 20 {
		if d := cmp.Diff(want.resources, scratch(t, world).resources); d != "" {
			t.Fatal(d)
		}
	}
}

// bigMesh has n pods over some services and namespaces.
func bigMesh(t fataler, n int) []source.Event {
	var all []source.Event
	for i := range n {
		ns := fmt.Sprintf("ns-%d", i%10)
		all = append(all, decode(t, podText(ns, i, "True"))...)
		if i < 100 {
			all = append(all, decode(t, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: s-%d, namespace: %s}\nspec: {clusterIP: 10.1.0.1, selector: {app: a%d}, ports: [{port: 80}]}", i%100/10, ns, i%100/10))...)
		}
	}
	for i := range 10 {
		all = append(all, decode(t, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-%d}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: ns-%d}\nspec: {selector: {matchLabels: {app: a1}}}", i, i))...)
	}
	return append(all, decode(t, "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}")...)
}

func podText(ns string, i int, ready string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: p-%d, namespace: %s, labels: {app: a%d, version: v1}}\nspec: {nodeName: n1, containers: [{name: c}]}\n"+
		"status: {podIP: 10.0.%d.%d, conditions: [{type: Ready, status: '%s'}]}", i, ns, i%100/10, i/256, i%256, ready)
}

func TestOnePodChangeIsOneRun(t *testing.T) {
	for _, n := range []int{100, 1000} {
		p := ambient.NewPipeline(ambient.Config{})
		p.Apply(bigMesh(t, n))
		before := p.Runs()
		c := p.Apply(decode(t, podText("ns-5", 55, "False")))
		if len(c.Addresses.Updated) != 1 || len(c.Addresses.Removed) != 0 {
			t.Errorf("%d pods: changes %v", n, c.Addresses)
		}
		if runs := p.Runs() - before; runs > 3 {
			t.Errorf("%d pods: %d runs for one pod, want the same few for any number of pods", n, runs)
		}
	}
}

func TestOneServiceChangeRunsItsPodsOnly(t *testing.T) {
	p := ambient.NewPipeline(ambient.Config{})
	p.Apply(bigMesh(t, 1000))
	before := p.Runs()
	c := p.Apply(decode(t, "apiVersion: v1\nkind: Service\nmetadata: {name: s-5, namespace: ns-5}\nspec: {clusterIP: 10.1.0.1, selector: {app: a5}, ports: [{port: 81}]}"))
	if n := len(c.Addresses.Updated); n != 11 {
		t.Errorf("%d resources changed, want the service and its 10 pods", n)
	}
	if runs := p.Runs() - before; runs > 20 {
		t.Errorf("%d runs for a service of 10 pods", runs)
	}
}

func BenchmarkOnePodOf10000(b *testing.B) {
	p := ambient.NewPipeline(ambient.Config{})
	p.Apply(bigMesh(b, 10000))
	changes := [][]source.Event{decode(b, podText("ns-5", 55, "False")), decode(b, podText("ns-5", 55, "True"))}
	for i := 0; b.Loop(); i++ {
		if n := len(p.Apply(changes[i%2]).Addresses.Updated); n != 1 {
			b.Fatal(n)
		}
	}
}

func BenchmarkStartWith10000Pods(b *testing.B) {
	all := bigMesh(b, 10000)
	for b.Loop() {
		if n := len(ambient.NewPipeline(ambient.Config{}).Apply(all).Addresses.Updated); n < 10000 {
			b.Fatal(n)
		}
	}
}
