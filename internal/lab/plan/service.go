package plan

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Ranges are the blocks that cluster IPs come from. V6 is invalid on a host
// without IPv6.
type Ranges struct {
	V4, V6   netip.Prefix
	Reserved []netip.Addr // kube-dns
}

// ClusterIPs decides a Service's addresses and families. used holds the
// addresses of all other Services. The first free address from a place that
// the Service's name decides is taken, so that a lab booted twice looks alike.
func ClusterIPs(s *corev1.Service, r Ranges, used map[netip.Addr]string) error {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	DefaultService(s)
	if err := families(s, r.V6.IsValid()); err != nil {
		return err
	}
	if s.Spec.ClusterIP == corev1.ClusterIPNone || slices.Equal(s.Spec.ClusterIPs, []string{corev1.ClusterIPNone}) {
		s.Spec.ClusterIP = corev1.ClusterIPNone
		s.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		return nil
	}
	given := s.Spec.ClusterIPs
	if len(given) == 0 && s.Spec.ClusterIP != "" {
		given = []string{s.Spec.ClusterIP}
	}
	var out []string
	for i, family := range s.Spec.IPFamilies {
		block := r.V4
		if family == corev1.IPv6Protocol {
			block = r.V6
		}
		if i < len(given) {
			if err := checkGiven(s, given[i], block, used); err != nil {
				return err
			}
			out = append(out, given[i])
			continue
		}
		addr, err := pick(s, block, r.Reserved, used)
		if err != nil {
			return err
		}
		out = append(out, addr.String())
	}
	s.Spec.ClusterIPs = out
	s.Spec.ClusterIP = out[0]
	return nil
}

// Allocated reports whether ClusterIPs has done its work on the Service.
func Allocated(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeExternalName || (len(s.Spec.ClusterIPs) > 0 && s.Spec.Type != "" &&
		len(s.Spec.IPFamilies) == max(1, len(s.Spec.ClusterIPs)))
}

// DefaultService fills in what the API server would of type and ports.
func DefaultService(s *corev1.Service) {
	if s.Spec.Type == "" {
		s.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if s.Spec.SessionAffinity == "" {
		s.Spec.SessionAffinity = corev1.ServiceAffinityNone
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
}

// families fills ipFamilies and ipFamilyPolicy in as the API server would.
func families(s *corev1.Service, v6 bool) error {
	policy := corev1.IPFamilyPolicySingleStack
	if s.Spec.IPFamilyPolicy != nil {
		policy = *s.Spec.IPFamilyPolicy
	} else if len(s.Spec.IPFamilies) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	if len(s.Spec.IPFamilies) == 0 {
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		if a, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil && a.Is6() {
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
		}
	}
	for _, f := range s.Spec.IPFamilies {
		if f == corev1.IPv6Protocol && !v6 {
			return fmt.Errorf("service %s/%s: spec.ipFamilies asks for IPv6, which this host does not have", s.Namespace, s.Name)
		}
	}
	if policy != corev1.IPFamilyPolicySingleStack && len(s.Spec.IPFamilies) == 1 {
		other := corev1.IPv6Protocol
		if s.Spec.IPFamilies[0] == corev1.IPv6Protocol {
			other = corev1.IPv4Protocol
		}
		switch {
		case v6:
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, other)
		case policy == corev1.IPFamilyPolicyRequireDualStack:
			return fmt.Errorf("service %s/%s: spec.ipFamilyPolicy RequireDualStack needs IPv6, which this host does not have", s.Namespace, s.Name)
		}
	}
	s.Spec.IPFamilyPolicy = &policy
	return nil
}

func checkGiven(s *corev1.Service, text string, block netip.Prefix, used map[netip.Addr]string) error {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("service %s/%s: spec.clusterIP %q is no address", s.Namespace, s.Name, text)
	}
	if !block.Contains(addr) {
		return fmt.Errorf("service %s/%s: spec.clusterIP %s is outside the lab's range %s; leave it out", s.Namespace, s.Name, addr, block)
	}
	if owner, ok := used[addr]; ok {
		return fmt.Errorf("service %s/%s: spec.clusterIP %s belongs to service %s", s.Namespace, s.Name, addr, owner)
	}
	return nil
}

func pick(s *corev1.Service, block netip.Prefix, reserved []netip.Addr, used map[netip.Addr]string) (netip.Addr, error) {
	const first, span = 32, 4000 // room below for fixed addresses as kube-dns'
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.Namespace + "/" + s.Name))
	start := int(h.Sum32() % span)
	for i := range span {
		addr := offset(block.Addr(), first+(start+i)%span)
		if _, taken := used[addr]; !taken && !slices.Contains(reserved, addr) {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("service %s/%s: no cluster IP is left in %s", s.Namespace, s.Name, block)
}

// offset adds a number below 65536 to an address whose last 16 bits are free.
func offset(base netip.Addr, n int) netip.Addr {
	raw := base.AsSlice()
	raw[len(raw)-1] += byte(n)
	raw[len(raw)-2] += byte(n >> 8)
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

// Used collects the cluster IPs of Services, except the one named.
func Used(services []*corev1.Service, except *corev1.Service) map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for _, s := range services {
		if except != nil && s.Namespace == except.Namespace && s.Name == except.Name {
			continue
		}
		for _, a := range Addresses(s) {
			out[a] = s.Namespace + "/" + s.Name
		}
	}
	return out
}

// Addresses are a Service's cluster IPs; none for a headless one.
func Addresses(s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, text := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// Backing is a pod that stands behind a Service.
type Backing struct {
	Pod   *corev1.Pod
	Addrs []netip.Addr
}

// Behind are the pods that serve the Service now: selected, addressed, ready
// (or published while they are not), not ending.
func Behind(s *corev1.Service, pods []*corev1.Pod) []Backing {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
	sel := labels.SelectorFromSet(s.Spec.Selector)
	var out []Backing
	for _, p := range pods {
		if p.Namespace != s.Namespace || IsTerminal(p) || !sel.Matches(labelSet(p.Labels)) {
			continue
		}
		if !s.Spec.PublishNotReadyAddresses && (!IsReady(p) || p.DeletionTimestamp != nil) {
			continue
		}
		if addrs := PodAddresses(p); len(addrs) > 0 {
			out = append(out, Backing{Pod: p, Addrs: addrs})
		}
	}
	slices.SortFunc(out, func(a, b Backing) int { return a.Addrs[0].Compare(b.Addrs[0]) })
	return out
}

// PodAddresses are the pod's addresses as its status has them.
func PodAddresses(p *corev1.Pod) []netip.Addr {
	var out []netip.Addr
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// TargetPort is the port of the pod behind a Service's port; a name is looked
// up among the pod's container ports.
func TargetPort(port corev1.ServicePort, p *corev1.Pod) (uint16, bool) {
	if port.TargetPort.Type == intstr.Int {
		if port.TargetPort.IntVal == 0 {
			return uint16(port.Port), true
		}
		return uint16(port.TargetPort.IntVal), true
	}
	for _, c := range p.Spec.Containers {
		for _, cp := range c.Ports {
			if cp.Name == port.TargetPort.StrVal && sameProtocol(cp.Protocol, port.Protocol) {
				return uint16(cp.ContainerPort), true
			}
		}
	}
	return 0, false
}

func sameProtocol(a, b corev1.Protocol) bool {
	if a == "" {
		a = corev1.ProtocolTCP
	}
	if b == "" {
		b = corev1.ProtocolTCP
	}
	return a == b
}

// Backends are the socket addresses behind one port of a Service, of the
// family of the cluster IP.
func Backends(port corev1.ServicePort, behind []Backing, v6 bool) []netip.AddrPort {
	var out []netip.AddrPort
	for _, b := range behind {
		target, ok := TargetPort(port, b.Pod)
		if !ok {
			continue
		}
		for _, a := range b.Addrs {
			if a.Is6() == v6 {
				out = append(out, netip.AddrPortFrom(a, target))
			}
		}
	}
	return out
}
