package ambient

import (
	"cmp"

	"google.golang.org/protobuf/proto"
	apinetworking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/collect"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// workloadTables hold the endpoints by uid, one table per kind of source: no two kinds share uids.
type workloadTables struct {
	all        []*collect.Table[string, *workload.Workload]
	conditions *collect.Table[name, []Condition] // of WorkloadEntries
}

// podRef is a pod that a slice of a Service without selector names.
type podRef struct {
	pod name
	uid types.UID
}

// sliceRef is such a naming.
type sliceRef struct {
	slice name
	pod   podRef
}

func comparePodRefs(a, b podRef) int {
	return cmp.Or(kube.CompareNames(a.pod, b.pod), cmp.Compare(a.uid, b.uid))
}

func equalWorkloads(a, b *workload.Workload) bool { return proto.Equal(a, b) }

// builder holds what the derivations of workloads fetch from.
type builder struct {
	*rows
	gateways gatewayTables
	services serviceTables
	policies policyTables
	guards   guardTables
	byPod    *collect.Index[podRef, sliceRef, name] // Services that name a pod by slice
}

func newWorkloadTables(t *rows, g gatewayTables, s serviceTables, p policyTables, guards guardTables) workloadTables {
	b := &builder{rows: t, gateways: g, services: s, policies: p, guards: guards}
	named := collect.Derive(t.engine, "pods named by slices", t.slices,
		func(a, b sliceRef) int {
			return cmp.Or(kube.CompareNames(a.slice, b.slice), comparePodRefs(a.pod, b.pod))
		},
		identical[name], b.namedPods)
	b.byPod = collect.NewIndex(named, comparePodRefs, func(k sliceRef, _ name) []podRef { return []podRef{k.pod} })
	return workloadTables{
		all: []*collect.Table[string, *workload.Workload]{
			collect.Derive(t.engine, "pod workloads", t.pods, cmp.Compare[string], equalWorkloads, b.pod),
			collect.Derive(t.engine, "entry workloads", t.workloads, cmp.Compare[string], equalWorkloads, b.workloadEntry),
			collect.Derive(t.engine, "service entry workloads", s.entries, cmp.Compare[string], equalWorkloads, b.serviceEntry),
			collect.Derive(t.engine, "slice workloads", t.slices, cmp.Compare[string], equalWorkloads, b.slice),
			collect.Derive(t.engine, "gateway workloads", g.networks, cmp.Compare[string], equalWorkloads,
				func(r *collect.Run, k networkKey, emit func(string, *workload.Workload)) {
					gw, _ := collect.Get(r, g.networks, k)
					emit(k.uid(), gw.workload(k, t.mesh(r).wireTrustDomain()))
				}),
		},
		conditions: collect.Derive(t.engine, "workload entry conditions", t.workloads, kube.CompareNames, equalConditions, b.entryConditions),
	}
}

// place fetches what does not depend on the kind of workload. network is the workload's own, empty for the cluster's.
func (b *builder) place(r *collect.Run, network string) place {
	if network == "" {
		network = b.localNetwork(r)
	}
	return place{
		cluster: b.cfg.ClusterID, network: network, trustDomain: b.mesh(r).wireTrustDomain(),
		gateway: b.gateways.gatewayOf(r, network),
	}
}

// waypointOf fetches the waypoint for traffic to the workload's own address. A proxy of a waypoint has none.
func (b *builder) waypointOf(r *collect.Run, ns string, labels map[string]string) (*Waypoint, *refusal, kube.Binding) {
	if b.gateways.instance(r, ns, labels) != nil {
		return nil, nil, kube.Binding{}
	}
	row := b.namespace(r, ns)
	binding := kube.BindingOf(labels, row.labels, ns)
	if !binding.Wanted {
		return nil, nil, binding
	}
	w := b.gateways.lookup(r, true, binding.Waypoint)
	if no := admit(subject{namespace: ns, nsLabels: row.labels, traffic: workloadTraffic}, binding.Waypoint, w); no != nil {
		return nil, no, binding
	}
	return w, nil, binding
}

func (b *builder) bind(r *collect.Run, p *place, ns string, labels map[string]string) {
	if w, _, _ := b.waypointOf(r, ns, labels); w != nil {
		p.waypoint = w.Address
	}
	p.tunnel = applicationTunnel(b.gateways.instance(r, ns, labels))
}

func (b *builder) pod(r *collect.Run, k name, emit func(string, *workload.Workload)) {
	pod, _ := collect.Get(r, b.pods, k)
	if podAddresses(pod) == nil {
		return
	}
	p := b.place(r, "")
	b.bind(r, &p, k.Namespace, pod.Labels)
	p.policies = b.policies.attached(r, b.rows, k.Namespace, pod.Labels)
	p.services = b.services.membership(r, k.Namespace, pod.Labels,
		func(ports []corev1.ServicePort) *workload.PortList { return podServicePorts(pod, ports) },
		func(ports []*apinetworking.ServicePort) *workload.PortList { return podEntryPorts(pod, ports) })
	for _, row := range collect.Rows(r, b.byPod, podRef{k, pod.UID}) {
		if svc, ok := collect.Get(r, b.services.shapes, row.Value); ok {
			p.services[hostKey{k.Namespace, svc.host}.String()] = podServicePorts(pod, svc.ports)
		}
	}
	p.policies = append(p.policies, b.guards.attached(r, p.services)...)
	locality, _ := collect.Get(r, b.localities, pod.Spec.NodeName)
	w := podWorkload(pod, locality, p)
	emit(w.GetUid(), w)
}

// namedPods finds the pods that are endpoints only because a slice says so: those of Services without selector. A slice
// of a Service with one changes with each of its pods and tells nothing that the selector does not.
func (b *builder) namedPods(r *collect.Run, k name, emit func(sliceRef, name)) {
	slice, _ := collect.Get(r, b.slices, k)
	service := name{Namespace: k.Namespace, Name: slice.Labels[kube.LabelServiceName]}
	svc, ok := collect.Get(r, b.services.shapes, service)
	if !ok || len(svc.selector) > 0 {
		return
	}
	for _, e := range slice.Endpoints {
		if e.TargetRef != nil && e.TargetRef.Kind == "Pod" && e.TargetRef.Namespace == k.Namespace {
			pod := name{Namespace: k.Namespace, Name: e.TargetRef.Name}
			emit(sliceRef{k, podRef{pod, e.TargetRef.UID}}, service)
		}
	}
}

func (b *builder) workloadEntry(r *collect.Run, k name, emit func(string, *workload.Workload)) {
	we, _ := collect.Get(r, b.workloads, k)
	labels := entryLabels(we)
	p := b.place(r, we.Spec.GetNetwork())
	b.bind(r, &p, k.Namespace, labels)
	p.policies = b.policies.attached(r, b.rows, k.Namespace, labels)
	p.services = b.services.membership(r, k.Namespace, labels,
		func(ports []corev1.ServicePort) *workload.PortList { return endpointServicePorts(&we.Spec, ports) },
		func(ports []*apinetworking.ServicePort) *workload.PortList {
			return endpointEntryPorts(&we.Spec, ports)
		})
	p.policies = append(p.policies, b.guards.attached(r, p.services)...)
	w := workloadEntryWorkload(we, p)
	emit(w.GetUid(), w)
}

// entryConditions tells the owner of a WorkloadEntry about its waypoint. A namespace's waypoint that is not meant for
// workloads is normal and no error.
func (b *builder) entryConditions(r *collect.Run, k name, emit func(name, []Condition)) {
	we, _ := collect.Get(r, b.workloads, k)
	w, no, binding := b.waypointOf(r, k.Namespace, entryLabels(we))
	switch {
	case w != nil:
		emit(k, []Condition{{
			Type: ConditionWaypointBound, True: true, Reason: ReasonWaypointAccepted,
			Message: "Successfully attached to waypoint " + w.Name.String(),
		}})
	case no == nil || binding.Inherited && no.reason == ReasonUnsupportedTrafficType:
		emit(k, nil)
	default:
		emit(k, []Condition{{Type: ConditionWaypointBound, Reason: no.reason, Message: no.message}})
	}
}

// serviceEntry makes the endpoints that a ServiceEntry has in itself.
func (b *builder) serviceEntry(r *collect.Run, k name, emit func(string, *workload.Workload)) {
	e, _ := collect.Get(r, b.services.entries, k)
	se := e.object
	hosts := b.services.won(r, e)
	if len(hosts) == 0 {
		return
	}
	policies := b.policies.attached(r, b.rows, k.Namespace, se.Labels)
	if implicitEndpoints(se) {
		for _, h := range hosts {
			p := b.place(r, "")
			p.policies = policies
			endpoint := &apinetworking.WorkloadEntry{Address: h.host}
			p.services = map[string]*workload.PortList{h.String(): endpointEntryPorts(endpoint, se.Spec.GetPorts())}
			w := serviceEntryWorkload(se, endpoint, p)
			emit(w.GetUid(), w)
		}
		return
	}
	network := ""
	for _, endpoint := range se.Spec.GetEndpoints() {
		if n := endpoint.GetNetwork(); n != "" {
			network = n // an endpoint without network takes that of the one before it, as the reference does
		}
		p := b.place(r, network)
		p.policies = policies
		if w, _, _ := b.waypointOf(r, k.Namespace, endpoint.GetLabels()); w != nil {
			p.waypoint = w.Address
		}
		p.services = map[string]*workload.PortList{}
		for _, h := range hosts {
			p.services[h.String()] = endpointEntryPorts(endpoint, se.Spec.GetPorts())
		}
		w := serviceEntryWorkload(se, endpoint, p)
		emit(w.GetUid(), w)
	}
}

func (b *builder) slice(r *collect.Run, k name, emit func(string, *workload.Workload)) {
	slice, _ := collect.Get(r, b.slices, k)
	service := slice.Labels[kube.LabelServiceName]
	if service == "" {
		return
	}
	svc, ok := collect.Get(r, b.services.shapes, name{Namespace: k.Namespace, Name: service})
	if !ok {
		return
	}
	p := b.place(r, "")
	p.gateway = nil
	p.services = map[string]*workload.PortList{hostKey{k.Namespace, svc.host}.String(): slicePorts(slice, svc.ports)}
	for _, w := range sliceWorkloads(slice, p) {
		emit(w.GetUid(), w)
	}
}
