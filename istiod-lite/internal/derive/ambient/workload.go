package ambient

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/wrapperspb"
	apinetworking "istio.io/api/networking/v1alpha3"
	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// place is what a workload gets from its surroundings.
type place struct {
	cluster     string
	network     string // of the workload
	trustDomain string // as on the wire
	gateway     *workload.GatewayAddress
	waypoint    *workload.GatewayAddress
	tunnel      *workload.ApplicationTunnel
	policies    []string
	services    map[string]*workload.PortList
}

func (p place) fill(w *workload.Workload) {
	w.ClusterId, w.Network, w.TrustDomain = p.cluster, p.network, p.trustDomain
	w.NetworkGateway, w.Waypoint, w.ApplicationTunnel = p.gateway, p.waypoint, p.tunnel
	w.AuthorizationPolicies = p.policies
	if len(p.services) > 0 {
		w.Services = p.services
	}
}

func podUID(cluster string, pod *corev1.Pod) string {
	return cluster + "//Pod/" + pod.Namespace + "/" + pod.Name
}

// podAddresses returns nil if the pod is not served: it has ended, has no address, or one that is none.
func podAddresses(pod *corev1.Pod) [][]byte {
	if kube.Terminal(pod) {
		return nil
	}
	var texts []string
	for _, ip := range pod.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if len(texts) == 0 && pod.Status.PodIP != "" {
		texts = []string{pod.Status.PodIP}
	}
	var out [][]byte
	for _, text := range texts {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil
		}
		out = append(out, ip.AsSlice())
	}
	return out
}

// podWorkload makes the resource of a pod, nil if it is not served.
func podWorkload(pod *corev1.Pod, locality kube.Locality, p place) *workload.Workload {
	addresses := podAddresses(pod)
	if addresses == nil {
		return nil
	}
	name := kube.WorkloadName(pod)
	w := &workload.Workload{
		Uid: podUID(p.cluster, pod), Name: pod.Name, Namespace: pod.Namespace, Addresses: addresses,
		ServiceAccount: pod.Spec.ServiceAccountName, Node: pod.Spec.NodeName,
		WorkloadName: name, WorkloadType: workload.WorkloadType_POD,
		CanonicalName: kube.CanonicalName(pod.Labels, name), CanonicalRevision: kube.CanonicalRevision(pod.Labels),
		Locality: localityOf(locality),
	}
	if !kube.Ready(pod) || pod.DeletionTimestamp != nil {
		w.Status = workload.WorkloadStatus_UNHEALTHY
	}
	if pod.Spec.HostNetwork {
		w.NetworkMode = workload.NetworkMode_HOST_NETWORK
	}
	w.TunnelProtocol, w.NativeTunnel = tunnelOf(pod.Labels, pod.Annotations)
	p.fill(w)
	return w
}

// tunnelOf says how a workload is reached: the annotation tells what the node agent has done, the label that the workload
// speaks HBONE itself.
func tunnelOf(labels, annotations map[string]string) (workload.TunnelProtocol, bool) {
	for t := range strings.SplitSeq(labels[kube.LabelTunnel], ",") {
		if t == "http" {
			return workload.TunnelProtocol_HBONE, true
		}
	}
	if annotations[kube.AnnotationRedirection] == "enabled" {
		return workload.TunnelProtocol_HBONE, false
	}
	return workload.TunnelProtocol_NONE, false
}

func localityOf(l kube.Locality) *workload.Locality {
	if l == (kube.Locality{}) {
		return nil
	}
	return &workload.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
}

// applicationTunnel is how the node proxy in front of a gateway's pod hands connections over.
func applicationTunnel(w *Waypoint) *workload.ApplicationTunnel {
	if w == nil || w.binding == nil {
		return nil
	}
	t := &workload.ApplicationTunnel{Port: uint32(w.binding.Port)}
	if w.binding.Proxy {
		t.Protocol = workload.ApplicationTunnel_PROXY
	}
	return t
}

// entryLabels are the labels of a WorkloadEntry: those of the object and those of its spec, which win.
func entryLabels(we *clientnetworking.WorkloadEntry) map[string]string {
	out := make(map[string]string, len(we.Labels)+len(we.Spec.GetLabels()))
	maps.Copy(out, we.Labels)
	maps.Copy(out, we.Spec.GetLabels())
	return out
}

func workloadEntryUID(cluster string, we *clientnetworking.WorkloadEntry) string {
	return cluster + "/networking.istio.io/WorkloadEntry/" + we.Namespace + "/" + we.Name
}

func workloadEntryWorkload(we *clientnetworking.WorkloadEntry, p place) *workload.Workload {
	labels := entryLabels(we)
	name := first(we.Annotations[kube.AnnotationAutoRegistrationGroup], labels[kube.LabelWorkloadName], we.Name)
	w := &workload.Workload{
		Uid: workloadEntryUID(p.cluster, we), Name: we.Name, Namespace: we.Namespace,
		WorkloadName: name, WorkloadType: workload.WorkloadType_POD,
		CanonicalName: kube.CanonicalName(labels, name), CanonicalRevision: kube.CanonicalRevision(labels),
	}
	w.TunnelProtocol, w.NativeTunnel = tunnelOf(labels, we.Annotations)
	endpointFields(w, &we.Spec)
	p.fill(w)
	return w
}

// endpointFields are those that a WorkloadEntry has wherever it stands.
func endpointFields(w *workload.Workload, e *apinetworking.WorkloadEntry) {
	if ip, err := netip.ParseAddr(e.GetAddress()); err == nil {
		w.Addresses = [][]byte{ip.AsSlice()}
	} else {
		w.Hostname = e.GetAddress()
	}
	w.ServiceAccount = e.GetServiceAccount()
	w.Locality = localityOf(kube.ParseLocality(e.GetLocality()))
	if e.GetWeight() > 0 {
		w.Capacity = wrapperspb.UInt32(e.GetWeight())
	}
}

func serviceEntryUID(cluster string, se *clientnetworking.ServiceEntry, address string) string {
	return cluster + "/networking.istio.io/ServiceEntry/" + se.Namespace + "/" + se.Name + "/" + address
}

// serviceEntryWorkload makes the resource of one endpoint of a ServiceEntry. Its telemetry names come from the entry.
func serviceEntryWorkload(se *clientnetworking.ServiceEntry, e *apinetworking.WorkloadEntry, p place) *workload.Workload {
	name := first(se.Labels[kube.LabelWorkloadName], se.Name)
	w := &workload.Workload{
		Uid: serviceEntryUID(p.cluster, se, e.GetAddress()), Name: se.Name, Namespace: se.Namespace,
		WorkloadName: name, WorkloadType: workload.WorkloadType_POD,
		CanonicalName: kube.CanonicalName(se.Labels, name), CanonicalRevision: kube.CanonicalRevision(se.Labels),
	}
	w.TunnelProtocol, w.NativeTunnel = tunnelOf(se.Labels, se.Annotations)
	endpointFields(w, e)
	p.fill(w)
	return w
}

// implicitEndpoints says that the hosts of an entry stand for themselves: names to resolve, and nobody said where else
// they lead.
func implicitEndpoints(se *clientnetworking.ServiceEntry) bool {
	switch se.Spec.GetResolution() {
	case apinetworking.ServiceEntry_DNS, apinetworking.ServiceEntry_DNS_ROUND_ROBIN, apinetworking.ServiceEntry_DYNAMIC_DNS:
		return len(se.Spec.GetEndpoints()) == 0 && se.Spec.GetWorkloadSelector() == nil
	case apinetworking.ServiceEntry_NONE, apinetworking.ServiceEntry_STATIC:
	}
	return false
}

// sliceWorkloads makes the resources of the endpoints of a slice that are no pods, by uid.
func sliceWorkloads(s *discoveryv1.EndpointSlice, p place) []*workload.Workload {
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	var out []*workload.Workload
	seen := map[string]bool{}
	for _, e := range s.Endpoints {
		if e.TargetRef != nil && e.TargetRef.Kind == "Pod" || len(e.Addresses) == 0 {
			continue
		}
		key := e.Addresses[0]
		w := &workload.Workload{
			Uid:  p.cluster + "/discovery.k8s.io/EndpointSlice/" + s.Namespace + "/" + s.Name + "/" + key,
			Name: s.Name, Namespace: s.Namespace, NetworkMode: workload.NetworkMode_HOST_NETWORK,
		}
		for _, text := range e.Addresses {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				w = nil
				break
			}
			w.Addresses = append(w.Addresses, ip.AsSlice())
		}
		if w == nil || seen[key] {
			continue
		}
		seen[key] = true
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			w.Status = workload.WorkloadStatus_UNHEALTHY
		}
		p.fill(w)
		out = append(out, w)
	}
	return out
}

// slicePorts joins the ports of a slice to those of its Service, by name.
func slicePorts(s *discoveryv1.EndpointSlice, ports []corev1.ServicePort) *workload.PortList {
	list := &workload.PortList{}
	for _, sp := range s.Ports {
		if sp.Port == nil || sp.Name == nil || sp.Protocol != nil && *sp.Protocol != corev1.ProtocolTCP {
			continue
		}
		i := slices.IndexFunc(ports, func(p corev1.ServicePort) bool { return p.Name == *sp.Name })
		if i >= 0 {
			list.Ports = append(list.Ports, &workload.Port{ServicePort: uint32(ports[i].Port), TargetPort: uint32(*sp.Port)})
		}
	}
	return list
}

// podServicePorts says where a pod serves a Service; a named port that the pod lacks is left out.
func podServicePorts(pod *corev1.Pod, ports []corev1.ServicePort) *workload.PortList {
	list := &workload.PortList{}
	for _, p := range ports {
		if target, ok := kube.TargetPort(pod, p); ok {
			list.Ports = append(list.Ports, &workload.Port{ServicePort: uint32(p.Port), TargetPort: target})
		}
	}
	return list
}

// podEntryPorts says where a pod serves a ServiceEntry: at its container port of the same name, if there is one.
func podEntryPorts(pod *corev1.Pod, ports []*apinetworking.ServicePort) *workload.PortList {
	list := &workload.PortList{}
	for _, p := range ports {
		target, ok := kube.ContainerPort(pod, p.GetName())
		if !ok {
			target = entryTarget(p)
		}
		list.Ports = append(list.Ports, &workload.Port{ServicePort: p.GetNumber(), TargetPort: target})
	}
	return list
}

// endpointServicePorts says where a WorkloadEntry serves a Service. A named target port must be in the entry's map; a
// number can be replaced under the name of the Service port.
func endpointServicePorts(e *apinetworking.WorkloadEntry, ports []corev1.ServicePort) *workload.PortList {
	list := &workload.PortList{}
	for _, p := range ports {
		target, ok := e.GetPorts()[p.Name]
		if p.TargetPort.Type == intstr.String {
			target, ok = e.GetPorts()[p.TargetPort.StrVal]
			if !ok {
				continue
			}
		}
		if !ok {
			if target = uint32(p.TargetPort.IntVal); target == 0 {
				target = uint32(p.Port)
			}
		}
		list.Ports = append(list.Ports, &workload.Port{ServicePort: uint32(p.Port), TargetPort: target})
	}
	return list
}

// endpointEntryPorts says where an endpoint serves a ServiceEntry.
func endpointEntryPorts(e *apinetworking.WorkloadEntry, ports []*apinetworking.ServicePort) *workload.PortList {
	list := &workload.PortList{}
	for _, p := range ports {
		target, ok := e.GetPorts()[p.GetName()]
		if !ok {
			target = entryTarget(p)
		}
		list.Ports = append(list.Ports, &workload.Port{ServicePort: p.GetNumber(), TargetPort: target})
	}
	return list
}
