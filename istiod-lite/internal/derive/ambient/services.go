package ambient

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	apimesh "istio.io/api/mesh/v1alpha1"
	apinetworking "istio.io/api/networking/v1alpha3"
	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/collect"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// hostKey is one hostname of one namespace: what a service is called on the wire.
type hostKey struct{ namespace, host string }

func (k hostKey) String() string { return k.namespace + "/" + k.host }

func compareHosts(a, b hostKey) int {
	return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.host, b.host))
}

// boundService is a service as it is served, with the waypoint that it is bound to.
type boundService struct {
	message    *workload.Service
	source     name // of the Service or ServiceEntry
	attachment Attachment
}

func equalBound(a, b boundService) bool {
	return a.source == b.source && waypointName(a.attachment.Waypoint) == waypointName(b.attachment.Waypoint) &&
		waypointName(a.attachment.Canary) == waypointName(b.attachment.Canary) && proto.Equal(a.message, b.message)
}

func waypointName(w *Waypoint) name {
	if w == nil {
		return name{}
	}
	return w.Name
}

// serviceShape is what endpoints need of a Service.
type serviceShape struct {
	host     string
	selector map[string]string
	ports    []corev1.ServicePort
}

func equalShapes(a, b serviceShape) bool {
	return a.host == b.host && maps.Equal(a.selector, b.selector) && equality.Semantic.DeepEqual(a.ports, b.ports)
}

// entryShape is what endpoints and the choice between hosts need of a ServiceEntry.
type entryShape struct {
	object  *clientnetworking.ServiceEntry
	hosts   []string
	visible apimesh.ServiceEntryVisibility_Visibility
}

func equalEntries(a, b entryShape) bool { return a.object == b.object && a.visible == b.visible }

// winner says which ServiceEntry serves a host of a namespace.
type winner struct {
	entry     name
	canonical bool
}

// serviceTables hold all that can be called by name or virtual address.
type serviceTables struct {
	shapes       *collect.Table[name, serviceShape]
	bySelector   *collect.Index[kube.Anchor, name, serviceShape]
	entries      *collect.Table[name, entryShape]
	byEntryLabel *collect.Index[kube.Anchor, name, entryShape]
	winners      *collect.Table[hostKey, winner]
	kube         *collect.Table[hostKey, boundService]
	external     *collect.Table[hostKey, boundService]
	conditions   []*collect.Table[name, []Condition] // of Services, of ServiceEntries
}

func newServiceTables(t *rows, g gatewayTables) serviceTables {
	var s serviceTables
	s.shapes = collect.Derive(t.engine, "service shapes", t.services, kube.CompareNames, equalShapes,
		func(r *collect.Run, k name, emit func(name, serviceShape)) {
			svc, _ := collect.Get(r, t.services, k)
			if kubeService(svc, t.cfg.Domain, "", nsRow{}) != nil {
				emit(k, serviceShape{kube.Hostname(k.Name, k.Namespace, t.cfg.Domain), svc.Spec.Selector, svc.Spec.Ports})
			}
		})
	s.bySelector = collect.NewIndex(s.shapes, compareAnchors, func(k name, v serviceShape) []kube.Anchor {
		return anchorOf(k.Namespace, v.selector)
	})
	s.entries = collect.Derive(t.engine, "entry shapes", t.entries, kube.CompareNames, equalEntries,
		func(r *collect.Run, k name, emit func(name, entryShape)) {
			se, _ := collect.Get(r, t.entries, k)
			v := t.mesh(r).entryVisibility(t.namespace(r, k.Namespace).labels)
			if _, ok := addressesOf(se.Spec.GetAddresses(), ""); ok && v != apimesh.ServiceEntryVisibility_NONE {
				emit(k, entryShape{se, se.Spec.GetHosts(), v})
			}
		})
	s.byEntryLabel = collect.NewIndex(s.entries, compareAnchors, func(k name, v entryShape) []kube.Anchor {
		return anchorOf(k.Namespace, v.object.Spec.GetWorkloadSelector().GetLabels())
	})
	s.winners = deriveWinners(t, s)
	s.kube, s.external = deriveKubeServices(t, g, s), deriveEntryServices(t, g, s)
	s.conditions = []*collect.Table[name, []Condition]{serviceConditions(t, g, s), entryObjectConditions(t, g, s)}
	return s
}

func compareAnchors(a, b kube.Anchor) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Value, b.Value))
}

func anchorOf(ns string, selector map[string]string) []kube.Anchor {
	if a, ok := kube.SelectorAnchor(ns, selector); ok {
		return []kube.Anchor{a}
	}
	return nil
}

// deriveWinners settles who serves a hostname. In one namespace a Kubernetes Service beats ServiceEntries, of which the
// oldest counts. Over all namespaces one is canonical: the Service, else the oldest entry that everybody may see.
func deriveWinners(t *rows, s serviceTables) *collect.Table[hostKey, winner] {
	byHost := collect.NewIndex(s.entries, strings.Compare, func(_ name, v entryShape) []string { return v.hosts })
	kubeHosts := collect.NewIndex(s.shapes, strings.Compare, func(_ name, v serviceShape) []string { return []string{v.host} })
	return collect.Derive(t.engine, "winners", byHost, compareHosts, identical[winner],
		func(r *collect.Run, host string, emit func(hostKey, winner)) {
			var candidates []entryShape
			for _, row := range collect.Rows(r, byHost, host) {
				candidates = append(candidates, row.Value)
			}
			slices.SortFunc(candidates, func(a, b entryShape) int { return kube.CompareAge(a.object, b.object) })
			taken := map[string]bool{}
			canonical := false
			for _, row := range collect.Rows(r, kubeHosts, host) {
				taken[row.Key.Namespace], canonical = true, true
			}
			for _, c := range candidates {
				ns := c.object.Namespace
				if taken[ns] {
					continue
				}
				taken[ns] = true
				w := winner{entry: kube.NameOf(c.object)}
				if !canonical && c.visible != apimesh.ServiceEntryVisibility_NAMESPACE {
					w.canonical, canonical = true, true
				}
				emit(hostKey{ns, host}, w)
			}
		})
}

// attachService reads the waypoint labels of a Service or ServiceEntry.
func attachService(r *collect.Run, t *rows, g gatewayTables, ns string, labels, annotations map[string]string, confined bool) Attachment {
	row := t.namespace(r, ns)
	b := kube.BindingOf(labels, row.labels, ns)
	return attach(subject{namespace: ns, nsLabels: row.labels, traffic: serviceTraffic, confined: confined}, b,
		g.lookup(r, b.Wanted, b.Waypoint), g.lookup(r, b.CanaryWanted, b.Canary), annotations, row.canary)
}

func (t *rows) attachKube(r *collect.Run, g gatewayTables, svc *corev1.Service) Attachment {
	if ownWaypoint(svc.Labels) {
		return Attachment{}
	}
	return attachService(r, t, g, svc.Namespace, svc.Labels, svc.Annotations, false)
}

func (t *rows) attachEntry(r *collect.Run, g gatewayTables, e entryShape) Attachment {
	se := e.object
	return attachService(r, t, g, se.Namespace, se.Labels, se.Annotations, e.visible == apimesh.ServiceEntryVisibility_NAMESPACE)
}

func deriveKubeServices(t *rows, g gatewayTables, s serviceTables) *collect.Table[hostKey, boundService] {
	return collect.Derive(t.engine, "kubernetes services", s.shapes, compareHosts, equalBound,
		func(r *collect.Run, k name, emit func(hostKey, boundService)) {
			svc, _ := collect.Get(r, t.services, k)
			ns := t.namespace(r, k.Namespace)
			m := kubeService(svc, t.cfg.Domain, t.localNetwork(r), ns)
			a := t.attachKube(r, g, svc)
			finish(m, a, svc.Labels, ns.labels)
			emit(hostKey{k.Namespace, m.GetHostname()}, boundService{m, k, a})
		})
}

func deriveEntryServices(t *rows, g gatewayTables, s serviceTables) *collect.Table[hostKey, boundService] {
	return collect.Derive(t.engine, "entry services", s.winners, compareHosts, equalBound,
		func(r *collect.Run, k hostKey, emit func(hostKey, boundService)) {
			w, _ := collect.Get(r, s.winners, k)
			e, ok := collect.Get(r, s.entries, w.entry)
			if !ok {
				return
			}
			ns := t.namespace(r, k.namespace)
			m := entryService(e.object, k.host, t.localNetwork(r), ns, e.visible)
			if m == nil {
				return
			}
			m.Canonical = w.canonical
			a := t.attachEntry(r, g, e)
			finish(m, a, e.object.Labels, ns.labels)
			emit(k, boundService{m, w.entry, a})
		})
}

func finish(m *workload.Service, a Attachment, labels, nsLabels map[string]string) {
	a.fill(m)
	if a.Waypoint != nil {
		m.IngressUseWaypoint, _ = kube.IngressUsesWaypoint(labels, nsLabels)
	}
}

func serviceConditions(t *rows, g gatewayTables, s serviceTables) *collect.Table[name, []Condition] {
	return collect.Derive(t.engine, "service conditions", s.shapes, kube.CompareNames, equalConditions,
		func(r *collect.Run, k name, emit func(name, []Condition)) {
			svc, _ := collect.Get(r, t.services, k)
			emit(k, boundConditions(t.attachKube(r, g, svc), svc.Labels, t.namespace(r, k.Namespace).labels))
		})
}

func entryObjectConditions(t *rows, g gatewayTables, s serviceTables) *collect.Table[name, []Condition] {
	return collect.Derive(t.engine, "entry conditions", t.entries, kube.CompareNames, equalConditions,
		func(r *collect.Run, k name, emit func(name, []Condition)) {
			e, ok := collect.Get(r, s.entries, k)
			if !ok {
				emit(k, nil)
				return
			}
			a := t.attachEntry(r, g, e)
			list := boundConditions(a, e.object.Labels, t.namespace(r, k.Namespace).labels)
			racing := strings.EqualFold(e.object.Annotations[kube.AnnotationConnectStrategy], "RACE_FIRST_TCP_CONNECT")
			list = append(list, entryConditions(e.hosts, racing, a.Waypoint != nil, t.mesh(r).visibilitySet, e.visible)...)
			emit(k, sortConditions(list))
		})
}

// selectedServices fetches the Services that select labels.
func (s serviceTables) selectedServices(r *collect.Run, ns string, labels map[string]string) []serviceShape {
	var out []serviceShape
	for _, a := range kube.LabelAnchors(ns, labels) {
		for _, row := range collect.Rows(r, s.bySelector, a) {
			if kube.Selects(row.Value.selector, labels) {
				out = append(out, row.Value)
			}
		}
	}
	return out
}

// selectedEntries fetches the ServiceEntries whose workload selector finds labels.
func (s serviceTables) selectedEntries(r *collect.Run, ns string, labels map[string]string) []entryShape {
	var out []entryShape
	for _, a := range kube.LabelAnchors(ns, labels) {
		for _, row := range collect.Rows(r, s.byEntryLabel, a) {
			if kube.Selects(row.Value.object.Spec.GetWorkloadSelector().GetLabels(), labels) {
				out = append(out, row.Value)
			}
		}
	}
	return out
}

// won fetches which hosts of an entry are its own.
func (s serviceTables) won(r *collect.Run, e entryShape) []hostKey {
	var out []hostKey
	for _, h := range e.hosts {
		k := hostKey{e.object.Namespace, h}
		if w, ok := collect.Get(r, s.winners, k); ok && w.entry == kube.NameOf(e.object) {
			out = append(out, k)
		}
	}
	return out
}

// membership collects the services of a pod or WorkloadEntry, with the ports that the two functions make.
func (s serviceTables) membership(r *collect.Run, ns string, labels map[string]string,
	servicePorts func([]corev1.ServicePort) *workload.PortList, entryPorts func([]*apinetworking.ServicePort) *workload.PortList,
) map[string]*workload.PortList {
	out := map[string]*workload.PortList{}
	for _, svc := range s.selectedServices(r, ns, labels) {
		out[hostKey{ns, svc.host}.String()] = servicePorts(svc.ports)
	}
	for _, e := range s.selectedEntries(r, ns, labels) {
		for _, k := range s.won(r, e) {
			out[k.String()] = entryPorts(e.object.Spec.GetPorts())
		}
	}
	return out
}
