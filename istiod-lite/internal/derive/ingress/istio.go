package ingress

import (
	"fmt"
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

const reasonInvalid = "Invalid"

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// InstanceName is what pods that no Gateway object owns are called together: those of one namespace and canonical name. No
// object can have such a name.
func InstanceName(p *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: "pods/" + kube.CanonicalName(p.Labels, kube.WorkloadName(p))}
}

// selectedPods finds the pods that only an Istio Gateway makes a gateway of.
func (d *derivation) selectedPods() {
	for _, p := range d.in.Pods {
		if p.Labels[kube.LabelGatewayName] != "" || kube.Terminal(p) {
			continue
		}
		for _, ig := range d.in.IstioGateways {
			if len(ig.Spec.GetSelector()) == 0 || !hasLabels(p.Labels, ig.Spec.GetSelector()) {
				continue
			}
			key := InstanceName(p)
			if d.gateways[key] == nil {
				g := newGateway(key)
				g.labels, g.pod = p.Labels, p
				g.topology = d.topology(p.Annotations, nil)
				d.gateways[key] = g
			}
		}
	}
}

// istioServers adds the servers of the Istio Gateways that select the gateway's pods.
func (d *derivation) istioServers(g *gateway) {
	for _, ig := range d.in.IstioGateways {
		if g.pod == nil || len(ig.Spec.GetSelector()) == 0 || !hasLabels(g.labels, ig.Spec.GetSelector()) {
			continue
		}
		for i, s := range ig.Spec.GetServers() {
			if err := d.istioServer(g, ig, s, i); err != nil {
				d.out.Findings = append(d.out.Findings, waypoint.Finding{
					Kind: "Gateway", Namespace: ig.Namespace, Name: ig.Name, Reason: reasonInvalid, Message: fmt.Sprintf("servers[%d]: %v", i, err),
				})
			}
		}
	}
}

// serverHosts are the hosts of a server with the namespaces whose VirtualServices they take; "*" is any.
func serverHosts(ig *networkingv1.Gateway, s *networkingapi.Server) [][2]string {
	var out [][2]string
	for _, h := range s.GetHosts() {
		namespace, name, scoped := strings.Cut(h, "/")
		if !scoped {
			namespace, name = anyHost, h
		}
		if namespace == "." {
			namespace = ig.Namespace
		}
		out = append(out, [2]string{namespace, host(name)})
	}
	return out
}

func (d *derivation) istioServer(g *gateway, ig *networkingv1.Gateway, s *networkingapi.Server, index int) error {
	number := s.GetPort().GetNumber()
	if number == 0 || number > 65535 {
		return fmt.Errorf("port.number %d is no port", number)
	}
	if s.GetBind() != "" && s.GetBind() != "0.0.0.0" && s.GetBind() != "::" {
		return fmt.Errorf("bind %q is not supported: a gateway listens on all addresses", s.GetBind())
	}
	p := g.port(number, d.target(g, number))
	id := fmt.Sprintf("%d.%s.%s.%s", number, ig.Namespace, ig.Name, fmt.Sprint(index))
	owner := ig.Namespace + "/" + ig.Name
	protocol := strings.ToUpper(s.GetPort().GetProtocol())
	switch protocol {
	case "HTTP", "HTTP2", "GRPC", "GRPC-WEB":
		if p.bytes != nil {
			return fmt.Errorf("port %d is taken by another server that passes bytes on", number)
		}
		if !slices.Contains(p.owners, owner) {
			p.owners = append(p.owners, owner)
		}
		if p.hosts == nil { // a server without routes answers 404, it is not absent
			p.hosts = map[string]*waypoint.EdgeHost{}
		}
		for _, h := range d.istioHosts(ig, s) {
			p.plain(h)
		}
		return nil
	case "HTTPS":
		if mode := s.GetTls().GetMode(); mode != networkingapi.ServerTLSSettings_PASSTHROUGH && s.GetTls() != nil {
			t, err := d.istioTLS(g, s.GetTls())
			if err != nil {
				return err
			}
			t.HTTP = true
			return claimed(p, waypoint.EdgeServer{
				Name: "https." + id, SNI: names(ig, s), TLS: t, HTTP: &waypoint.EdgeHTTP{Hosts: d.istioHosts(ig, s), Owner: []string{owner}},
			})
		}
		return d.istioOpaque(g, ig, s, p, id)
	case "TLS":
		return d.istioOpaque(g, ig, s, p, id)
	case "TCP", "MONGO", "REDIS", "MYSQL":
		if p.bytes != nil || p.hosts != nil || len(p.servers) > 0 {
			return fmt.Errorf("port %d is taken by another server", number)
		}
		p.bytes = &waypoint.EdgeTCP{Backends: d.istioTCP(ig, s)}
		return nil
	}
	return fmt.Errorf("port.protocol %q is not supported; use HTTP, HTTPS, HTTP2, GRPC, TLS or TCP", s.GetPort().GetProtocol())
}

func claimed(p *port, s waypoint.EdgeServer) error {
	if !p.serve(s) {
		return fmt.Errorf("port %d: hosts %s are taken by an older server", p.number, strings.Join(s.SNI, ", "))
	}
	return nil
}

func names(ig *networkingv1.Gateway, s *networkingapi.Server) []string {
	var out []string
	for _, h := range serverHosts(ig, s) {
		out = append(out, h[1])
	}
	return out
}

// target is the pod's port behind a port of the Service in front of it.
func (d *derivation) target(g *gateway, number uint32) uint32 {
	for _, s := range d.in.Services {
		if s.Namespace != g.pod.Namespace || len(s.Spec.Selector) == 0 || !hasLabels(g.pod.Labels, s.Spec.Selector) {
			continue
		}
		for _, p := range s.Spec.Ports {
			if uint32(p.Port) != number {
				continue
			}
			if p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal > 0 {
				return uint32(p.TargetPort.IntVal)
			}
			for _, c := range g.pod.Spec.Containers {
				for _, cp := range c.Ports {
					if p.TargetPort.Type == intstr.String && cp.Name == p.TargetPort.StrVal {
						return uint32(cp.ContainerPort)
					}
				}
			}
		}
	}
	return number
}

// bound are the VirtualServices that name the gateway, with the hosts that they and the server have in common.
func (d *derivation) bound(ig *networkingv1.Gateway, s *networkingapi.Server, then func(v *networkingv1.VirtualService, hosts []string)) {
	owner := ig.Namespace + "/" + ig.Name
	for _, v := range d.in.VirtualServices {
		if !slices.ContainsFunc(v.Spec.GetGateways(), func(n string) bool { return waypoint.GatewayName(n, v.Namespace) == owner }) ||
			!visible(v, ig.Namespace) {
			continue
		}
		var common []string
		for _, h := range serverHosts(ig, s) {
			if h[0] != anyHost && h[0] != v.Namespace {
				continue
			}
			for _, own := range v.Spec.GetHosts() {
				if c, ok := intersect(h[1], host(d.qualify(own, v.Namespace))); ok && !slices.Contains(common, c) {
					common = append(common, c)
				}
			}
		}
		if len(common) > 0 {
			then(v, common)
		}
	}
}

// qualify completes a short name, as everywhere in Istio.
func (d *derivation) qualify(h, namespace string) string {
	if strings.ContainsAny(h, ".*:") {
		return h
	}
	return kube.Hostname(h, namespace, d.in.ClusterDomain)
}

func visible(v *networkingv1.VirtualService, namespace string) bool {
	to := v.Spec.GetExportTo()
	return len(to) == 0 || v.Namespace == namespace || slices.ContainsFunc(to, func(e string) bool { return e == "*" || e == namespace })
}

func (d *derivation) istioHosts(ig *networkingv1.Gateway, s *networkingapi.Server) []waypoint.EdgeHost {
	hosts := map[string]*waypoint.EdgeHost{}
	redirect := s.GetTls().GetHttpsRedirect()
	if redirect {
		for _, h := range names(ig, s) {
			hosts[h] = &waypoint.EdgeHost{Domain: h, Redirect: true}
		}
		return hostList(hosts)
	}
	d.bound(ig, s, func(v *networkingv1.VirtualService, common []string) {
		if len(v.Spec.GetHttp()) == 0 {
			return
		}
		for _, h := range common {
			if hosts[h] == nil {
				hosts[h] = &waypoint.EdgeHost{Domain: h}
			}
			hosts[h].VirtualServices = append(hosts[h].VirtualServices, v)
		}
	})
	return hostList(hosts)
}

// istioOpaque serves TLS without reading what is inside: passed through, or ended here.
func (d *derivation) istioOpaque(g *gateway, ig *networkingv1.Gateway, s *networkingapi.Server, p *port, id string) error {
	t := s.GetTls()
	if t == nil {
		return fmt.Errorf("tls is missing; say how protocol %s is served", s.GetPort().GetProtocol())
	}
	if t.GetMode() != networkingapi.ServerTLSSettings_PASSTHROUGH {
		ended, err := d.istioTLS(g, t)
		if err != nil {
			return err
		}
		return claimed(p, waypoint.EdgeServer{Name: "tls." + id, SNI: names(ig, s), TLS: ended, TCP: &waypoint.EdgeTCP{Backends: d.istioTCP(ig, s)}})
	}
	var problem error
	n := 0
	d.bound(ig, s, func(v *networkingv1.VirtualService, common []string) {
		for _, rule := range v.Spec.GetTls() {
			if !holds(rule.GetMatch(), v, ig, s) {
				continue
			}
			var sni []string
			for _, m := range rule.GetMatch() {
				for _, h := range m.GetSniHosts() {
					for _, c := range common {
						if both, ok := intersect(host(h), c); ok && !slices.Contains(sni, both) {
							sni = append(sni, both)
						}
					}
				}
			}
			if len(sni) == 0 {
				continue
			}
			err := claimed(p, waypoint.EdgeServer{
				Name: "tls." + id + "." + fmt.Sprint(n), SNI: sni,
				TCP: &waypoint.EdgeTCP{Passthrough: true, Backends: d.destinations(v, rule.GetRoute())},
			})
			if err != nil {
				problem = err
			}
			n++
		}
	})
	return problem
}

func holds(matches []*networkingapi.TLSMatchAttributes, v *networkingv1.VirtualService, ig *networkingv1.Gateway, s *networkingapi.Server) bool {
	return slices.ContainsFunc(matches, func(m *networkingapi.TLSMatchAttributes) bool {
		return (m.GetPort() == 0 || m.GetPort() == s.GetPort().GetNumber()) && (len(m.GetGateways()) == 0 ||
			slices.ContainsFunc(m.GetGateways(), func(n string) bool { return waypoint.GatewayName(n, v.Namespace) == ig.Namespace+"/"+ig.Name }))
	})
}

// istioTCP is the first TCP route of the VirtualServices that name the server's gateway.
func (d *derivation) istioTCP(ig *networkingv1.Gateway, s *networkingapi.Server) []waypoint.EdgeBackend {
	var out []waypoint.EdgeBackend
	d.bound(ig, s, func(v *networkingv1.VirtualService, _ []string) {
		for _, rule := range v.Spec.GetTcp() {
			fits := len(rule.GetMatch()) == 0 || slices.ContainsFunc(rule.GetMatch(), func(m *networkingapi.L4MatchAttributes) bool {
				return m.GetPort() == 0 || m.GetPort() == s.GetPort().GetNumber()
			})
			if fits && out == nil {
				out = d.destinations(v, rule.GetRoute())
			}
		}
	})
	return out
}

func (d *derivation) destinations(v *networkingv1.VirtualService, routes []*networkingapi.RouteDestination) []waypoint.EdgeBackend {
	out := []waypoint.EdgeBackend{}
	for _, r := range routes {
		weight := r.GetWeight()
		if len(routes) == 1 {
			weight = max(weight, 1)
		}
		out = append(out, waypoint.EdgeBackend{
			Host: d.qualify(r.GetDestination().GetHost(), v.Namespace), Subset: r.GetDestination().GetSubset(),
			Port: r.GetDestination().GetPort().GetNumber(), Weight: uint32(max(weight, 0)),
		})
	}
	return out
}
