package app

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/istiod-lite/internal/config"
	"github.com/marrowmesh/marrow/istiod-lite/internal/publish"
	"github.com/marrowmesh/marrow/istiod-lite/internal/serve"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source/file"
	"github.com/marrowmesh/marrow/istiod-lite/internal/status"
)

// plane is the control plane without its servers, on a real store.
type plane struct {
	store  *filestore.Store
	served *publish.Store
	pods   *podIndex
}

func start(t *testing.T) plane {
	t.Helper()
	store, err := filestore.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := plane{store: store, served: publish.New(), pods: newPodIndex()}
	st := status.NewWriter(store, nil)
	cfg := config.Config{ClusterID: "Kubernetes", ClusterDomain: "cluster.local", RootNamespace: "istio-system", TrustDomain: "cluster.local"}
	eng := newEngine(cfg, obs.Discard(), store, p.served, st, p.pods)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = st.Run(ctx); done <- struct{}{} }()
	go func() {
		_ = file.New(store).Run(ctx, func(b source.Batch) error { return eng.handle(b) })
		done <- struct{}{}
	}()
	t.Cleanup(func() { cancel(); <-done; <-done })
	return p
}

// eventually waits for what other goroutines do through the file system.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("never happened: " + what)
		}
	}
}

func (p plane) apply(t *testing.T, text string) {
	t.Helper()
	objects, err := manifest.Decode("test", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if err := p.store.Put(o); err != nil {
			t.Fatal(err)
		}
	}
}

func (p plane) names(scope, url string) string {
	var names []string
	for _, r := range p.served.List(scope, url) {
		names = append(names, r.Name)
	}
	return strings.Join(names, " ")
}

const web = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
`

// replaceFile is how an editor writes that leaves no half of a file for others to read.
func replaceFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestRefusalReachesStatus: the author of a refused object finds the reason in its status.
func TestRefusalReachesStatus(t *testing.T) {
	p := start(t)
	p.apply(t, web)
	const name = "shop/web.shop.svc.cluster.local"
	eventually(t, "the service is served", func() bool { return strings.Contains(p.names(serve.MeshScope, xds.AddressType), name) })

	paths, _ := filepath.Glob(filepath.Join(p.store.Dir(), "*", "Service", "shop", "web.yaml"))
	if len(paths) != 1 {
		t.Fatalf("files of the service: %v", paths)
	}
	good, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	replaceFile(t, paths[0], strings.Replace(string(good), "selector:", "selektor:", 1))
	eventually(t, "the status says why", func() bool {
		b, _ := os.ReadFile(paths[0])
		return strings.Contains(string(b), "istio.io/Valid") && strings.Contains(string(b), "spec.selektor")
	})
	if !strings.Contains(p.names(serve.MeshScope, xds.AddressType), name) {
		t.Fatal("the last good service is no longer in force")
	}
	replaceFile(t, paths[0], string(good))
	eventually(t, "the status is withdrawn", func() bool {
		b, _ := os.ReadFile(paths[0])
		return !strings.Contains(string(b), "istio.io/Valid")
	})
}

func TestWaypointIsDeployedAndConfigured(t *testing.T) {
	p := start(t)
	p.apply(t, web+`
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`)
	key := func(group, kind string) manifest.Key {
		return manifest.Key{Group: group, Kind: kind, Namespace: "shop", Name: "wp"}
	}
	eventually(t, "ServiceAccount, Deployment and Service are made", func() bool {
		for _, k := range []manifest.Key{key("", "ServiceAccount"), key("apps", "Deployment"), key("", "Service")} {
			if _, err := p.store.Get(k); err != nil {
				return false
			}
		}
		return true
	})
	scope := serve.WaypointScope("shop", "wp", "")
	eventually(t, "it has listeners and no route to anything", func() bool {
		return strings.Contains(p.names(scope, xds.ListenerType), "connect_terminate") && !strings.Contains(p.names(scope, xds.RouteType), "web.shop")
	})
	// What the cluster does: an address for the Service, a pod that is ready.
	if err := p.store.Patch(key("", "Service"), func(o manifest.Object) error {
		o.(*corev1.Service).Spec.ClusterIP, o.(*corev1.Service).Spec.ClusterIPs = "10.96.0.9", []string{"10.96.0.9"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.store.Put(&corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "wp-1", Labels: map[string]string{"gateway.networking.k8s.io/gateway-name": "wp"}},
		Spec:       corev1.PodSpec{ServiceAccountName: "wp", NodeName: "node-1", Containers: []corev1.Container{{Name: "c", Image: "x"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.244.1.9", PodIPs: []corev1.PodIP{{IP: "10.244.1.9"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Gateway is programmed", func() bool {
		o, err := p.store.Get(key(manifest.GroupGateway, "Gateway"))
		if err != nil {
			return false
		}
		for _, c := range o.(*gatewayv1.Gateway).Status.Conditions {
			if c.Type == "Programmed" && c.Status == metav1.ConditionTrue {
				return len(o.(*gatewayv1.Gateway).Status.Addresses) > 0
			}
		}
		return false
	})
	if err := p.store.Patch(manifest.Key{Kind: "Service", Namespace: "shop", Name: "web"}, func(o manifest.Object) error {
		o.SetLabels(map[string]string{"istio.io/use-waypoint": "wp"})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bound service has a route", func() bool {
		return strings.Contains(p.names(scope, xds.RouteType), "web.shop.svc.cluster.local")
	})
	if err := p.store.Delete(key(manifest.GroupGateway, "Gateway")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a deleted waypoint's resources are withdrawn", func() bool { return p.names(scope, xds.ListenerType) == "" })
	if _, err := p.store.Get(key("apps", "Deployment")); err == nil {
		t.Fatal("the Deployment outlived its Gateway")
	}
}

// TestWaypointPodsByPlace: pods in different zones get resources of their own, because what is near differs.
func (x *podIndex) zones() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.nodes)
}

func TestWaypointPodsByPlace(t *testing.T) {
	p := start(t)
	node := func(n string) string {
		return `
---
apiVersion: v1
kind: Node
metadata: {name: node-` + n + `, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z` + n + `}}
`
	}
	pod := func(n string) string {
		return `
---
apiVersion: v1
kind: Pod
metadata: {name: wp-` + n + `, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {serviceAccountName: wp, nodeName: node-` + n + `, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.244.1.` + n + `, podIPs: [{ip: 10.244.1.` + n + `}]}
`
	}
	// News of a pod may come before those of its node. Its place is then not known for a while, and what was published for it stays.
	p.apply(t, web+node("1")+node("2"))
	eventually(t, "the nodes are known", func() bool { return p.pods.zones() == 2 })
	p.apply(t, `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`+pod("1")+pod("2"))
	for _, place := range []string{"r/z1/", "r/z2/"} {
		scope := serve.WaypointScope("shop", "wp", place)
		eventually(t, "resources for "+place, func() bool { return strings.Contains(p.names(scope, xds.ListenerType), "connect_terminate") })
	}
	eventually(t, "who asked before his place was known is served as well", func() bool {
		return strings.Contains(p.names(serve.WaypointScope("shop", "wp", ""), xds.ListenerType), "connect_terminate")
	})
	x := newPodIndex()
	x.apply([]source.Event{
		{Key: manifest.Key{Kind: "Node", Name: "n"}, Object: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z1"}}}},
		{Key: manifest.Key{Kind: "Pod", Namespace: "shop", Name: "p"}, Object: &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n"}}},
	})
	if got := x.PlaceOf("shop", "p"); got != "r/z1/" {
		t.Errorf("place %q", got)
	}
}
