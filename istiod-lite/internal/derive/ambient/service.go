package ambient

import (
	"net/netip"
	"strings"

	apimesh "istio.io/api/mesh/v1alpha1"
	apinetworking "istio.io/api/networking/v1alpha3"
	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// addressesOf parses virtual addresses, ranges too. One bad entry spoils all: half an object would send traffic to
// unexpected places.
func addressesOf(texts []string, network string) ([]*workload.NetworkAddress, bool) {
	var out []*workload.NetworkAddress
	for _, text := range texts {
		a, ok := parseVIP(text)
		if !ok {
			return nil, false
		}
		a.Network = network
		out = append(out, a)
	}
	return out, true
}

func parseVIP(text string) (*workload.NetworkAddress, bool) {
	if ip, err := netip.ParseAddr(text); err == nil && ip.Zone() == "" {
		return &workload.NetworkAddress{Address: ip.AsSlice()}, true
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return nil, false
	}
	a := &workload.NetworkAddress{Address: p.Masked().Addr().AsSlice()}
	if !p.IsSingleIP() {
		n := uint32(p.Bits())
		a.Length = &n
	}
	return a, true
}

// serviceAddresses lists the cluster IPs of a Service, none for a headless one.
func serviceAddresses(s *corev1.Service) []string {
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	var out []string
	for _, ip := range ips {
		if ip != "" && ip != corev1.ClusterIPNone {
			out = append(out, ip)
		}
	}
	return out
}

// kubeService makes the resource of a Kubernetes Service without its waypoint; nil if the Service is not served.
func kubeService(s *corev1.Service, domain, network string, ns nsRow) *workload.Service {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	addresses, ok := addressesOf(serviceAddresses(s), network)
	if !ok {
		return nil
	}
	out := &workload.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: kube.Hostname(s.Name, s.Namespace, domain),
		Addresses: addresses, LoadBalancing: serviceBalancing(s, ns), IpFamilies: familiesOf(s.Spec.IPFamilies),
		Canonical: true,
	}
	for _, p := range s.Spec.Ports {
		port := &workload.Port{ServicePort: uint32(p.Port), AppProtocol: appProtocol(kube.ServicePortProtocol(p))}
		if p.TargetPort.Type == intstr.Int {
			port.TargetPort = uint32(p.TargetPort.IntVal)
			if port.GetTargetPort() == 0 {
				port.TargetPort = port.GetServicePort()
			}
		}
		out.Ports = append(out.Ports, port)
	}
	return out
}

func appProtocol(p kube.Protocol) workload.AppProtocol {
	switch p {
	case kube.HTTP:
		return workload.AppProtocol_HTTP11
	case kube.HTTP2:
		return workload.AppProtocol_HTTP2
	case kube.GRPC:
		return workload.AppProtocol_GRPC
	case kube.TCP:
		return workload.AppProtocol_TCP
	case kube.TLS, kube.HTTPS:
		return workload.AppProtocol_TLS
	case kube.Unsupported, kube.UDP, kube.GRPCWeb, kube.Mongo, kube.MySQL, kube.Redis, kube.HBONE:
	}
	return workload.AppProtocol_UNKNOWN
}

func familiesOf(f []corev1.IPFamily) workload.IPFamilies {
	switch {
	case len(f) == 0:
		return workload.IPFamilies_AUTOMATIC
	case len(f) > 1:
		return workload.IPFamilies_DUAL
	case f[0] == corev1.IPv4Protocol:
		return workload.IPFamilies_IPV4_ONLY
	}
	return workload.IPFamilies_IPV6_ONLY
}

func serviceBalancing(s *corev1.Service, ns nsRow) *workload.LoadBalancing {
	var lb *workload.LoadBalancing
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		lb = &workload.LoadBalancing{
			RoutingPreference: []workload.LoadBalancing_Scope{workload.LoadBalancing_NODE},
			Mode:              workload.LoadBalancing_STRICT,
		}
	} else {
		field := ""
		if s.Spec.TrafficDistribution != nil {
			field = *s.Spec.TrafficDistribution
		}
		lb = preference(distribution(field, s.Annotations, ns))
	}
	if s.Spec.PublishNotReadyAddresses {
		if lb == nil {
			lb = &workload.LoadBalancing{}
		}
		lb.HealthPolicy = workload.LoadBalancing_ALLOW_ALL
	}
	return lb
}

// distribution reads the traffic preference: the field of the spec, the object's annotation, the namespace's. Texts are
// compared without case in annotations only. An unknown annotation on the object ends the search, an empty one does not.
func distribution(field string, annotations map[string]string, ns nsRow) string {
	switch field {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return "preferclose"
	case corev1.ServiceTrafficDistributionPreferSameNode:
		return "prefersamenode"
	}
	for _, text := range []string{annotations[kube.AnnotationTrafficDistribution], ns.distribution} {
		switch strings.ToLower(text) {
		case "":
			continue
		case "preferclose", "prefersamezone":
			return "preferclose"
		case "prefersamenode":
			return "prefersamenode"
		}
		return ""
	}
	return ""
}

// preference makes a new message each time: callers go on to change it.
func preference(distribution string) *workload.LoadBalancing {
	lb := &workload.LoadBalancing{Mode: workload.LoadBalancing_FAILOVER}
	switch distribution {
	case "preferclose":
		lb.RoutingPreference = []workload.LoadBalancing_Scope{
			workload.LoadBalancing_NETWORK, workload.LoadBalancing_REGION, workload.LoadBalancing_ZONE,
		}
	case "prefersamenode":
		lb.RoutingPreference = []workload.LoadBalancing_Scope{
			workload.LoadBalancing_NETWORK, workload.LoadBalancing_REGION, workload.LoadBalancing_ZONE,
			workload.LoadBalancing_SUBZONE, workload.LoadBalancing_NODE,
		}
	default:
		return nil
	}
	return lb
}

func wildcard(host string) bool { return strings.HasPrefix(host, "*") }

// entryAddresses gives the addresses of one host of a ServiceEntry: those of the spec, else those allocated for the host.
// An entry that resolves nothing or opted out gets none, nor does a wildcard, unless it is resolved on demand.
func entryAddresses(se *clientnetworking.ServiceEntry, host, network string) ([]*workload.NetworkAddress, bool) {
	if len(se.Spec.GetAddresses()) > 0 {
		return addressesOf(se.Spec.GetAddresses(), network)
	}
	resolution := se.Spec.GetResolution()
	if resolution == apinetworking.ServiceEntry_NONE || strings.EqualFold(se.Labels[kube.LabelAutoAllocate], "false") ||
		wildcard(host) && resolution != apinetworking.ServiceEntry_DYNAMIC_DNS {
		return nil, true
	}
	var out []*workload.NetworkAddress
	for _, a := range se.Status.GetAddresses() {
		if a.GetHost() != host {
			continue
		}
		if vip, ok := parseVIP(a.GetValue()); ok {
			vip.Network = network
			out = append(out, vip)
		}
	}
	return out, true
}

// entryService makes the resource of one host of a ServiceEntry without its waypoint and without canonical.
func entryService(se *clientnetworking.ServiceEntry, host, network string, ns nsRow,
	visibility apimesh.ServiceEntryVisibility_Visibility,
) *workload.Service {
	addresses, ok := entryAddresses(se, host, network)
	if !ok {
		return nil
	}
	out := &workload.Service{
		Name: se.Name, Namespace: se.Namespace, Hostname: host, Addresses: addresses,
		SubjectAltNames: se.Spec.GetSubjectAltNames(),
	}
	if visibility == apimesh.ServiceEntryVisibility_NAMESPACE {
		out.Visibility = workload.Visibility_NAMESPACE
	}
	if se.Spec.GetResolution() == apinetworking.ServiceEntry_NONE {
		out.LoadBalancing = &workload.LoadBalancing{
			Mode: workload.LoadBalancing_PASSTHROUGH, HealthPolicy: workload.LoadBalancing_ALLOW_ALL,
		}
	} else {
		out.LoadBalancing = preference(distribution("", se.Annotations, ns))
	}
	for _, p := range se.Spec.GetPorts() {
		out.Ports = append(out.Ports, &workload.Port{
			ServicePort: p.GetNumber(), TargetPort: entryTarget(p),
			AppProtocol: appProtocol(kube.ParseProtocol(p.GetProtocol())),
		})
	}
	return out
}

func entryTarget(p *apinetworking.ServicePort) uint32 {
	if p.GetTargetPort() != 0 {
		return p.GetTargetPort()
	}
	return p.GetNumber()
}
