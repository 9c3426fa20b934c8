package ambient

import (
	"cmp"
	"maps"

	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/istiod-lite/internal/collect"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

type (
	name = types.NamespacedName
	// only is the key of tables with one row at most.
	only struct{}
)

func compareOnly(_, _ only) int { return 0 }

func identical[T comparable](a, b T) bool { return a == b }

// inputs are the rows as they came. Objects are shared: nobody changes them.
type inputs struct {
	settings   *collect.Table[only, Settings]
	namespaces *collect.Table[string, *corev1.Namespace]
	nodes      *collect.Table[string, *corev1.Node]
	classes    *collect.Table[string, *gatewayv1.GatewayClass]
	gateways   *collect.Table[name, *gatewayv1.Gateway]
	pods       *collect.Table[name, *corev1.Pod]
	services   *collect.Table[name, *corev1.Service]
	slices     *collect.Table[name, *discoveryv1.EndpointSlice]
	entries    *collect.Table[name, *clientnetworking.ServiceEntry]
	workloads  *collect.Table[name, *clientnetworking.WorkloadEntry]
	policies   *collect.Table[name, *clientsecurity.AuthorizationPolicy]
	peers      *collect.Table[name, *clientsecurity.PeerAuthentication]
}

func objects[V comparable](e *collect.Engine) *collect.Table[name, V] {
	return collect.NewTable(e, kube.CompareNames, identical[V])
}

func newInputs(e *collect.Engine) inputs {
	return inputs{
		settings:   collect.NewTable(e, compareOnly, func(a, b Settings) bool { return a.text == b.text }),
		namespaces: collect.NewTable(e, cmp.Compare[string], identical[*corev1.Namespace]),
		nodes:      collect.NewTable(e, cmp.Compare[string], identical[*corev1.Node]),
		classes:    collect.NewTable(e, cmp.Compare[string], identical[*gatewayv1.GatewayClass]),
		gateways:   objects[*gatewayv1.Gateway](e),
		pods:       objects[*corev1.Pod](e),
		services:   objects[*corev1.Service](e),
		slices:     objects[*discoveryv1.EndpointSlice](e),
		entries:    objects[*clientnetworking.ServiceEntry](e),
		workloads:  objects[*clientnetworking.WorkloadEntry](e),
		policies:   objects[*clientsecurity.AuthorizationPolicy](e),
		peers:      objects[*clientsecurity.PeerAuthentication](e),
	}
}

// nsRow is what others need of a Namespace.
type nsRow struct {
	labels       map[string]string
	distribution string            // annotation
	canary       map[string]string // the annotation of the canary's weight, alone
	selected     bool              // by the discovery selectors
}

func equalNS(a, b nsRow) bool {
	return a.selected == b.selected && a.distribution == b.distribution && maps.Equal(a.canary, b.canary) && maps.Equal(a.labels, b.labels)
}

func newNSRow(ns *corev1.Namespace, s Settings) nsRow {
	row := nsRow{
		labels: ns.Labels, distribution: ns.Annotations[kube.AnnotationTrafficDistribution], selected: s.discovers(ns.Labels),
	}
	if w, ok := ns.Annotations[kube.AnnotationCanaryWeight]; ok {
		row.canary = map[string]string{kube.AnnotationCanaryWeight: w}
	}
	return row
}

// rows are the tables that most derivations fetch from.
type rows struct {
	cfg        Config
	engine     *collect.Engine
	settings   *collect.Table[only, Settings]
	namespaces *collect.Table[string, nsRow]
	network    *collect.Table[only, string]
	localities *collect.Table[string, kube.Locality]
	gateways   *collect.Table[name, *gatewayv1.Gateway]
	pods       *collect.Table[name, *corev1.Pod]
	services   *collect.Table[name, *corev1.Service]
	slices     *collect.Table[name, *discoveryv1.EndpointSlice]
	entries    *collect.Table[name, *clientnetworking.ServiceEntry]
	workloads  *collect.Table[name, *clientnetworking.WorkloadEntry]
	policies   *collect.Table[name, *clientsecurity.AuthorizationPolicy]
	peers      *collect.Table[name, *clientsecurity.PeerAuthentication]
}

func newRows(cfg Config, e *collect.Engine, in inputs) *rows {
	t := &rows{cfg: cfg, engine: e, settings: in.settings}
	t.namespaces = collect.Derive(e, "namespaces", in.namespaces, cmp.Compare[string], equalNS,
		func(r *collect.Run, k string, emit func(string, nsRow)) {
			ns, _ := collect.Get(r, in.namespaces, k)
			emit(k, newNSRow(ns, t.mesh(r)))
		})
	t.network = collect.Derive(e, "network", t.namespaces, compareOnly, identical[string],
		func(r *collect.Run, k string, emit func(only, string)) {
			if k == cfg.SystemNamespace {
				ns, _ := collect.Get(r, t.namespaces, k)
				emit(only{}, ns.labels[kube.LabelNetwork])
			}
		})
	t.localities = collect.Derive(e, "localities", in.nodes, cmp.Compare[string], identical[kube.Locality],
		func(r *collect.Run, k string, emit func(string, kube.Locality)) {
			node, _ := collect.Get(r, in.nodes, k)
			emit(k, kube.NodeLocality(node.Labels))
		})
	t.gateways = discovered(t, "discovered gateways", in.gateways, "")
	t.pods = discovered(t, "discovered pods", in.pods, "")
	t.services = discovered(t, "discovered services", in.services, "")
	t.slices = discovered(t, "discovered slices", in.slices, "")
	t.entries = discovered(t, "discovered service entries", in.entries, cfg.Revision)
	t.workloads = discovered(t, "discovered workload entries", in.workloads, cfg.Revision)
	t.policies = discovered(t, "discovered policies", in.policies, cfg.Revision)
	t.peers = discovered(t, "discovered peer authentications", in.peers, cfg.Revision)
	return t
}

// discovered passes on the objects that count: of namespaces that are looked at, and not of another revision.
func discovered[V interface {
	comparable
	metav1.Object
}](t *rows, step string, in *collect.Table[name, V], revision string,
) *collect.Table[name, V] {
	return collect.Derive(t.engine, step, in, kube.CompareNames, identical[V],
		func(r *collect.Run, k name, emit func(name, V)) {
			o, _ := collect.Get(r, in, k)
			if t.namespace(r, k.Namespace).selected && !kube.OtherRevision(o, revision) {
				emit(k, o)
			}
		})
}

// mesh fetches the settings, the defaults as long as nobody wrote any.
func (t *rows) mesh(r *collect.Run) Settings {
	s, ok := collect.Get(r, t.settings, only{})
	if !ok {
		s, _, _ = ParseSettings(t.cfg, "") // an empty text has no errors
	}
	return s
}

// namespace fetches what is known of a namespace. One without object has no labels.
func (t *rows) namespace(r *collect.Run, ns string) nsRow {
	row, ok := collect.Get(r, t.namespaces, ns)
	if !ok {
		row.selected = t.mesh(r).discovers(nil)
	}
	return row
}

func (t *rows) localNetwork(r *collect.Run) string {
	n, _ := collect.Get(r, t.network, only{})
	return n
}
