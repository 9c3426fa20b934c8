package cluster

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/lab/labdns"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/manifest"
)

func testWorld(t *testing.T) *world {
	t.Helper()
	store, err := filestore.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(store)
	if err := w.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}); err != nil {
		t.Fatal(err)
	}
	return w
}

func decodeAll(t *testing.T, yaml string) []manifest.Object {
	t.Helper()
	objects, err := manifest.Decode("test", strings.NewReader(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestWorldIgnoresOldEvents(t *testing.T) {
	w := testWorld(t)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "shop"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}}}
	if err := w.put(p); err != nil {
		t.Fatal(err)
	}
	old := p.DeepCopy()
	if err := w.PatchPod("shop", "a", p.UID, func(p *corev1.Pod) { p.Spec.NodeName = "node-1" }); err != nil {
		t.Fatal(err)
	}
	node := func() string {
		o, ok := w.get(podKey("shop", "a"))
		if !ok {
			return "gone"
		}
		return o.(*corev1.Pod).Spec.NodeName
	}
	late := []filestore.Event{{Key: podKey("shop", "a"), Object: old}}
	if err := w.observe(late); err != nil || node() != "node-1" {
		t.Errorf("a late notice undid our own write: %q %v", node(), err)
	}
	if err := w.RemovePod("shop", "a", "another uid"); err != nil || node() != "node-1" {
		t.Errorf("a pod of the same name was removed: %v", err)
	}
	if err := w.RemovePod("shop", "a", p.UID); err != nil {
		t.Fatal(err)
	}
	if err := w.observe(late); err != nil || node() != "gone" {
		t.Errorf("a late notice brought a deleted pod back: %v", err)
	}
	bad := filestore.Event{Key: podKey("shop", "b"), Err: fmt.Errorf("torn file")}
	if err := w.observe([]filestore.Event{bad}); err == nil {
		t.Error("a file that cannot be read is silent")
	}
}

func TestRemoveForgetsWhatItOwns(t *testing.T) {
	w := testWorld(t)
	owner := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "owner", Namespace: "shop"}}
	if err := w.put(owner); err != nil {
		t.Fatal(err)
	}
	child := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "child", Namespace: "shop", OwnerReferences: []metav1.OwnerReference{{
		APIVersion: "v1", Kind: "ServiceAccount", Name: "owner", UID: owner.UID,
	}}}}
	if err := w.put(child); err != nil {
		t.Fatal(err)
	}
	if err := w.remove(manifest.KeyOf(owner)); err != nil {
		t.Fatal(err)
	}
	if left := len(w.list()); left != 1 {
		t.Errorf("%d objects are left, want the namespace alone", left)
	}
}

func TestApplyRefusesWhole(t *testing.T) {
	w := testWorld(t)
	a := newApplier(w)
	const good = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: good, namespace: shop}\n---\n"
	for name, yaml := range map[string]string{
		"namespace":  "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: x, namespace: nope}\n",
		"image":      "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: shop}\nspec: {containers: [{name: a, image: x}]}\n",
		"selector":   "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x, namespace: shop}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: a, command: [x]}]}}}\n",
		"foreign":    "apiVersion: v1\nkind: Node\nmetadata: {name: node-9}\n",
		"controller": "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: x, namespace: shop}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: a, command: [x]}]}}}\n",
	} {
		before := len(w.list())
		if _, err := a.apply(decodeAll(t, good+yaml)); err == nil {
			t.Errorf("%s: taken", name)
		}
		if after := len(w.list()); after != before {
			t.Errorf("%s: %d objects before, %d after", name, before, after)
		}
	}
}

// TestApplyDecidesIdentityItself: a uid is a directory's name and the pod's name to all components, an age decides between
// policies, and a pod with somebody else's address in its status would take that one's place in the mesh.
func TestApplyDecidesIdentityItself(t *testing.T) {
	w := testWorld(t)
	if _, err := newApplier(w).apply(decodeAll(t, `
apiVersion: v1
kind: Pod
metadata:
  name: imposter
  namespace: shop
  uid: ../../../tmp/x
  creationTimestamp: "1970-01-02T00:00:00Z"
  annotations: {lab.marrowmesh.io/netns: /proc/1/ns/net}
spec: {nodeName: node-9, containers: [{name: a, command: [x]}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}]}
`)); err != nil {
		t.Fatal(err)
	}
	o, ok := w.get(manifest.Key{Kind: "Pod", Namespace: "shop", Name: "imposter"})
	if !ok {
		t.Fatal("not stored")
	}
	p := o.(*corev1.Pod)
	if p.Status.PodIP != "" || len(p.Status.PodIPs) != 0 || p.Status.Phase != "" {
		t.Errorf("the manifest decided the status: %+v", p.Status)
	}
	if p.UID == "" || strings.Contains(string(p.UID), "/") || p.CreationTimestamp.Year() == 1970 || len(p.Annotations) != 0 {
		t.Errorf("the manifest decided uid %q, age %v, annotations %v", p.UID, p.CreationTimestamp, p.Annotations)
	}
}

func TestApplyKeepsWhatOthersSet(t *testing.T) {
	w := testWorld(t)
	a := newApplier(w)
	labels := func() string {
		return fmt.Sprint(w.Namespace("web").Labels)
	}
	apply := func(yaml string) lab.Change {
		t.Helper()
		changes, err := a.apply(decodeAll(t, yaml))
		if err != nil {
			t.Fatal(err)
		}
		return changes[0]
	}
	apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: web, labels: {mine: one, ours: two}}\n")
	if _, err := a.label(lab.LabelRequest{Ref: lab.Ref{Kind: "Namespace", Name: "web"}, Set: map[string]string{"theirs": "three"}}); err != nil {
		t.Fatal(err)
	}
	if ch := apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: web, labels: {ours: two}}\n"); ch.Action != "configured" {
		t.Errorf("%+v", ch)
	}
	if got := labels(); got != "map[kubernetes.io/metadata.name:web ours:two theirs:three]" {
		t.Error(got)
	}
	if ch := apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: web, labels: {ours: two}}\n"); ch.Action != "unchanged" {
		t.Errorf("%+v", ch)
	}
}

// sink takes Services for the network and the DNS.
type sink struct {
	services []fabric.Service
	records  labdns.Records
}

func (s *sink) SetServices(list []fabric.Service) error { s.services = list; return nil }
func (s *sink) SetRecords(r labdns.Records)             { s.records = r }

// TestRounds lets the controller bring a Deployment and its Service up, with a
// kubelet that makes every pod ready at once.
func TestRounds(t *testing.T) {
	w := testWorld(t)
	for _, name := range []string{"node-1", "node-2"} {
		if err := w.put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{plan.HostnameLabel: name}}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := newApplier(w).apply(decodeAll(t, `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: pods, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: a, command: [x]}]}}
`)); err != nil {
		t.Fatal(err)
	}
	next := 1
	kubelet := func(pods []*corev1.Pod) {
		for _, p := range pods {
			if p.Spec.NodeName == "" || p.Status.PodIP != "" {
				continue
			}
			next++
			if err := w.PatchPod(p.Namespace, p.Name, p.UID, func(p *corev1.Pod) {
				p.Status.PodIP = fmt.Sprintf("10.244.1.%d", next)
				p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var out sink
	c := &controller{
		world: w, net: &out, names: &out, sync: kubelet, said: map[string]bool{}, note: t.Logf,
		ranges: plan.Ranges{V4: netip.MustParsePrefix("10.96.0.0/16")},
	}
	for range 6 {
		c.round()
	}
	s := w.snapshot()
	if len(s.pods) != 2 || s.pods[0].Spec.NodeName == s.pods[1].Spec.NodeName {
		t.Fatalf("%d pods", len(s.pods))
	}
	for _, svc := range out.services {
		if svc.Name == "shop/web" && (len(svc.VIPs) != 1 || len(svc.Ports[0].Endpoints) != 2 || svc.Ports[0].Endpoints[0].Port() != 8080) {
			t.Errorf("%+v", svc)
		}
	}
	if len(out.records.Pods) != 2 {
		t.Errorf("%+v", out.records)
	}
	for _, n := range out.records.Services {
		if want := map[string]int{"web": 1, "pods": 2}[n.Name]; len(n.Addrs) != want {
			t.Errorf("%s has the addresses %v", n.Name, n.Addrs)
		}
	}
	o, _ := w.get(manifest.Key{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "web"})
	if d := o.(*appsv1.Deployment); !settled(d) {
		t.Errorf("%+v", d.Status)
	}
	// The namespace's end takes all of it.
	a := newApplier(w)
	if _, err := a.remove([]lab.Ref{{Kind: "Namespace", Name: "shop"}}); err != nil {
		t.Fatal(err)
	}
	for _, p := range w.snapshot().pods {
		if p.DeletionTimestamp == nil || plan.IsReady(p) {
			t.Errorf("pod %s is not ending", p.Name)
		}
		if err := w.RemovePod(p.Namespace, p.Name, p.UID); err != nil {
			t.Fatal(err)
		}
	}
	c.round()
	if w.Namespace("shop") != nil {
		t.Error("the namespace is still there")
	}
}
