package steer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/marrowmesh/marrow/internal/authz"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
)

// InboundFacts describe one connection (or tunnel stream) that reached a pod.
type InboundFacts struct {
	// Local is our side of the TCP connection; its address is the pod's.
	Local netip.AddrPort
	// Peer is the other side of the TCP connection.
	Peer netip.AddrPort
	// PeerID is who the peer proved to be; zero for plaintext.
	PeerID identity.ID
	// Authority is what the CONNECT asked for; empty for plaintext.
	Authority string
	// OrigDst is what plaintext was addressed to.
	OrigDst netip.AddrPort
	// ForwardedHost is the service that the client meant, by its own account. For telemetry only.
	ForwardedHost string
	// PeerNetwork is the client's network by its own account, empty if it is ours. For telemetry only.
	PeerNetwork string
	// Workload is the pod that was reached; nil if unknown.
	Workload *mesh.Workload
}

// ProxyHeader is what a PROXY protocol header must say.
type ProxyHeader struct {
	Src, Dst netip.AddrPort
	Peer     identity.ID
}

// Admission is all that the driver of an incoming connection has to know, once policy agrees with Facts.
type Admission struct {
	// Upstream is where the application listens.
	Upstream netip.AddrPort
	// Bind is the source address to connect from; invalid means the natural one.
	Bind netip.Addr
	// Proxy is written to the application first; nil for none.
	Proxy *ProxyHeader
	// Facts are what policies look at.
	Facts authz.Facts
	// Service is the best guess at what the client meant; nil if there is none. For telemetry only.
	Service *mesh.Service
	// Source is the workload at the peer's address; nil if unknown. For telemetry only.
	Source *mesh.Workload
	Why    []Reason
}

// String prints the admission and its reasons, one line each.
func (a Admission) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "admit upstream=%s", a.Upstream)
	if a.Bind.IsValid() {
		fmt.Fprintf(&b, " from=%s", a.Bind)
	}
	if a.Facts.Dst != a.Upstream {
		fmt.Fprintf(&b, " policy-destination=%s", a.Facts.Dst)
	}
	if a.Proxy != nil {
		fmt.Fprintf(&b, " proxy=%s->%s", a.Proxy.Src, a.Proxy.Dst)
	}
	if a.Service != nil {
		fmt.Fprintf(&b, " service=%s", a.Service.Key())
	}
	if a.Source != nil {
		fmt.Fprintf(&b, " source=%s", workloadName(a.Source))
	}
	b.WriteByte('\n')
	writeReasons(&b, a.Why)
	return b.String()
}

// The statuses that answer a CONNECT.
const (
	StatusBadRequest  = 400
	StatusDenied      = 401
	StatusUnavailable = 503
)

// Inbound decides where a received connection is delivered. network is the one this proxy lives on.
// An error is a *Refusal. Policy is the caller's next question, with the Admission's Facts.
func Inbound(v *mesh.View, network string, f InboundFacts) (Admission, error) {
	if f.Workload == nil {
		return Admission{}, refuse(StatusUnavailable, "unknown destination workload: it is not in the mesh's state")
	}
	in := inbound{view: v, network: network, InboundFacts: f}
	if f.Authority == "" {
		return in.plaintext()
	}
	return in.tunnelled()
}

// inbound is one decision in the making.
type inbound struct {
	InboundFacts
	view    *mesh.View
	network string
	why     []Reason
}

func (in *inbound) because(r Reason) { in.why = append(in.why, r) }

func (in *inbound) plaintext() (Admission, error) {
	if !in.OrigDst.IsValid() {
		return Admission{}, refuse(0, "no valid destination: the original destination is unknown")
	}
	if Illegal(in.OrigDst.Port()) {
		return Admission{}, refuse(0, "attempted recursive call to ourselves")
	}
	in.because(Reason{Step: StepPlaintext, Addr: in.OrigDst})
	return in.admit(in.OrigDst, in.OrigDst.Port(), in.ownServices(), nil)
}

func (in *inbound) tunnelled() (Admission, error) {
	to, err := ParseTarget(in.Authority)
	if err != nil {
		return Admission{}, &Refusal{Status: StatusBadRequest, Reason: err.Error()}
	}
	var candidates []*mesh.Service
	port := to.Port
	if to.Host != "" {
		s := in.view.BestServiceByHost(to.Host, in.Workload.Namespace)
		if s == nil {
			return Admission{}, refuse(StatusUnavailable, "unknown service: %s is not known to clients of namespace %s", to.Host, in.Workload.Namespace)
		}
		if port = in.targetPort(s, to.Port); port == 0 {
			return Admission{}, refuse(StatusUnavailable, "service %s: port %d has no target port at %s", s.Key(), to.Port, workloadName(in.Workload))
		}
		candidates = []*mesh.Service{s}
		in.because(Reason{Step: StepNamedService, Service: s, Addr: netip.AddrPortFrom(in.Local.Addr(), port)})
	} else {
		if err := in.checkAddress(to.Addr); err != nil {
			return Admission{}, err
		}
		candidates = in.ownServices()
	}
	if Illegal(port) {
		return Admission{}, refuse(StatusUnavailable, "attempted recursive call to ourselves: port %d is the proxy's own", port)
	}
	dst := netip.AddrPortFrom(in.Local.Addr(), port)
	tunnel := in.Workload.Tunnel
	if tunnel == nil {
		return in.admit(dst, port, candidates, nil)
	}
	in.because(Reason{Step: StepTunnelToApp, Workload: in.Workload})
	if tunnel.Port != 0 {
		dst = netip.AddrPortFrom(dst.Addr(), tunnel.Port)
	}
	if tunnel.Protocol != mesh.TunnelProxy {
		return in.admit(dst, port, candidates, nil)
	}
	meant, ok := in.proxyDestination(to, candidates)
	if !ok {
		return Admission{}, refuse(StatusUnavailable, "service %s has no virtual address to name in the PROXY header", to.Host)
	}
	return in.admit(dst, port, candidates, &ProxyHeader{Src: in.Peer, Dst: meant, Peer: in.PeerID})
}

// checkAddress refuses requests for somebody else's address, unless this pod answers for it as its waypoint.
func (in *inbound) checkAddress(asked netip.Addr) error {
	own := in.Local.Addr()
	if asked == own {
		in.because(Reason{Step: StepOwnAddress, Addr: in.Local})
		return nil
	}
	if in.Workload.Tunnel != nil {
		return nil // a gateway: it knows itself what to do with the address
	}
	var gw *mesh.GatewayAddress
	if w := in.view.WorkloadByAddr(in.network, asked); w != nil {
		gw = w.Waypoint
	} else if s := in.view.ServiceByVIP(in.network, asked, in.Workload.Namespace); s != nil {
		gw = s.Waypoint
	}
	sameUID := func(w *mesh.Workload) bool { return w.UID == in.Workload.UID }
	sameAddr := func(w *mesh.Workload) bool { return w.HasAddr(own) }
	if gw == nil || !gatewayHas(in.view, gw, in.Workload.Namespace, sameAddr, sameUID) {
		return refuse(StatusBadRequest, "ip mismatch: %s != %s", own, asked)
	}
	in.because(Reason{Step: StepActsAsWaypoint, Workload: in.Workload, Addr: netip.AddrPortFrom(asked, 0)})
	return nil
}

// admit fills in what all admissions have in common. port is the target port before any override.
func (in *inbound) admit(dst netip.AddrPort, port uint16, candidates []*mesh.Service, proxy *ProxyHeader) (Admission, error) {
	a := Admission{
		Upstream: dst,
		Proxy:    proxy,
		Facts:    authz.Facts{Src: in.Peer, Dst: dst, Peer: in.PeerID},
		Service:  in.guessService(candidates, port),
		Why:      in.why,
	}
	if in.PeerNetwork == "" || strings.EqualFold(in.PeerNetwork, in.network) {
		a.Source = in.view.WorkloadByAddr(in.network, in.Peer.Addr())
	}
	switch from := in.Peer.Addr(); {
	case proxy != nil:
		// The application learns the client from the header; the socket stays inside the pod.
		a.Upstream = netip.AddrPortFrom(loopbackLike(dst.Addr()), dst.Port())
		a.Bind = a.Upstream.Addr()
	case from != dst.Addr() && from.Is4() == dst.Addr().Is4():
		a.Bind = from
	}
	return a, nil
}

func loopbackLike(ip netip.Addr) netip.Addr {
	if ip.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// targetPort is this pod's port for a service port: its own mapping, else the service's; 0 if neither says.
func (in *inbound) targetPort(s *mesh.Service, port uint16) uint16 {
	if m := in.Workload.Membership(s.Key()); m != nil {
		if own, ok := m.Target(port); ok && own != 0 {
			return own
		}
	}
	to, _ := s.Target(port)
	return to
}

// ownServices are the known services that this pod belongs to.
func (in *inbound) ownServices() []*mesh.Service {
	var out []*mesh.Service
	for i := range in.Workload.Services {
		key := in.Workload.Services[i].Service
		if s := in.view.ServiceByHost(key.Namespace, key.Hostname); s != nil {
			out = append(out, s)
		}
	}
	return out
}

// guessService prefers the one that the client named, then the first with a matching target port.
func (in *inbound) guessService(candidates []*mesh.Service, port uint16) *mesh.Service {
	for _, s := range candidates {
		if in.ForwardedHost != "" && s.Hostname == in.ForwardedHost {
			return s
		}
	}
	leadsHere := func(p mesh.PortMapping) bool { return p.Target == port }
	for _, s := range candidates {
		if slices.ContainsFunc(s.Ports, leadsHere) {
			return s
		}
		if m := in.Workload.Membership(s.Key()); m != nil && slices.ContainsFunc(m.Ports, leadsHere) {
			return s
		}
	}
	return nil
}

// proxyDestination is the address that the client meant; for a host name, the service's virtual one:
// of the own network if possible, then IPv4.
func (in *inbound) proxyDestination(to Target, candidates []*mesh.Service) (netip.AddrPort, bool) {
	if to.Host == "" {
		return netip.AddrPortFrom(to.Addr, to.Port), true
	}
	var best netip.Addr
	bestPoints := -1
	for _, vip := range candidates[0].VIPs {
		if !vip.Exact() {
			continue
		}
		points := 0
		if vip.Network == in.network {
			points += 2
		}
		if vip.Prefix.Addr().Is4() {
			points++
		}
		if points > bestPoints {
			best, bestPoints = vip.Prefix.Addr(), points
		}
	}
	return netip.AddrPortFrom(best, to.Port), bestPoints >= 0
}
