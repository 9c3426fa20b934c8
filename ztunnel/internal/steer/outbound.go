package steer

import (
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
)

// Outbound decides how a connection of src, opened by client for dst, travels.
// rnd(n) must return a number below n. An error is a *Refusal: the connection must be closed.
func Outbound(v *mesh.View, src *mesh.Workload, client netip.Addr, dst netip.AddrPort, rnd func(n uint64) uint64) (Plan, error) {
	if !dst.IsValid() {
		return Plan{}, refuse(0, "no valid destination: the original destination is unknown")
	}
	if dst.Addr().IsLoopback() && Illegal(dst.Port()) {
		return Plan{}, refuse(0, "attempted recursive call to ourselves")
	}
	if src == nil {
		return Plan{}, refuse(0, "unknown source workload: it is not in the mesh's state")
	}
	o := outbound{view: v, src: src, client: client, dst: dst, rnd: rnd, why: make([]Reason, 0, 4)}
	return o.plan()
}

// outbound is one decision in the making.
type outbound struct {
	view   *mesh.View
	src    *mesh.Workload
	client netip.Addr
	dst    netip.AddrPort
	rnd    func(n uint64) uint64
	why    []Reason
}

// upstream is somebody to talk to: a workload, perhaps chosen through a service.
type upstream struct {
	service  *mesh.Service
	workload *mesh.Workload
	port     uint16
	// asked is the address that the choice among the workload's addresses follows.
	asked netip.Addr
}

func (o *outbound) because(r Reason) { o.why = append(o.why, r) }

func (o *outbound) plan() (Plan, error) {
	// A workload's own address wins over a virtual one when the client's intent is read ...
	var addressed *mesh.Service
	if o.view.WorkloadByAddr(o.src.Network, o.dst.Addr()) == nil {
		addressed = o.view.ServiceByVIP(o.src.Network, o.dst.Addr(), o.src.Namespace)
	}
	if addressed != nil {
		o.because(Reason{Step: StepServiceAddress, Service: addressed, Addr: o.dst})
		if gw := addressed.PickWaypoint(o.rnd); gw != nil {
			return o.viaServiceWaypoint(addressed, gw)
		}
	}
	// ... and a virtual one wins over a workload's when somebody to talk to is looked for.
	up, known, err := o.at(o.src.Network, o.dst, mesh.ForTraffic)
	switch {
	case err != nil:
		return Plan{}, err
	case !known && addressed != nil:
		o.because(Reason{Step: StepPassthroughService, Service: addressed})
		return o.done(Plan{Via: Passthrough, NextHop: o.dst})
	case !known:
		o.because(Reason{Step: StepUnknownAddress, Addr: o.dst})
		return o.done(Plan{Via: Passthrough, NextHop: o.dst})
	}
	if up.service != nil {
		o.because(Reason{Step: StepEndpoint, Service: up.service, Workload: up.workload})
	} else {
		o.because(Reason{Step: StepWorkloadAddress, Workload: up.workload, Addr: o.dst})
	}
	if up.workload.Network != o.src.Network {
		return o.acrossNetworks(up.service, up)
	}
	if gw := up.workload.Waypoint; gw != nil && addressed == nil {
		if !o.isWaypoint(gw) {
			return o.viaWorkloadWaypoint(up.workload, gw)
		}
		o.because(Reason{Step: StepIsTheWaypoint, Workload: up.workload, Gateway: gw})
	}
	return o.direct(up)
}

func (o *outbound) done(p Plan) (Plan, error) {
	p.Why = o.why
	return p, nil
}

// viaServiceWaypoint: the waypoint gets the client's own destination as authority. Any failure closes the connection.
func (o *outbound) viaServiceWaypoint(s *mesh.Service, gw *mesh.GatewayAddress) (Plan, error) {
	up, err := o.gateway(gw, mesh.ForWaypoint, "waypoint")
	if err != nil {
		return Plan{}, err
	}
	o.because(Reason{Step: StepServiceWaypoint, Service: s, Gateway: gw, Workload: up.workload})
	if up.workload.Network != o.src.Network {
		return o.acrossNetworks(s, up)
	}
	return o.tunnel(up, Plan{Authority: o.dst.String(), Service: s})
}

func (o *outbound) viaWorkloadWaypoint(w *mesh.Workload, gw *mesh.GatewayAddress) (Plan, error) {
	up, err := o.gateway(gw, mesh.ForWaypoint, "waypoint")
	if err != nil {
		return Plan{}, err
	}
	o.because(Reason{Step: StepWorkloadWaypoint, Workload: w, Gateway: gw})
	if up.workload.Network != o.src.Network {
		return Plan{}, refuse(0, "no service: %s was addressed directly and its waypoint %s is on network %q; only services can be reached across networks",
			o.dst, gw, up.workload.Network)
	}
	return o.tunnel(up, Plan{Authority: o.dst.String()})
}

// acrossNetworks goes through the gateway of the chosen workload's network to service s.
func (o *outbound) acrossNetworks(s *mesh.Service, far upstream) (Plan, error) {
	if s == nil {
		return Plan{}, refuse(0, "no service: %s is on network %q and was not addressed by a service", workloadName(far.workload), far.workload.Network)
	}
	gw := far.workload.NetworkGateway
	if gw == nil {
		return Plan{}, refuse(0, "unknown network gateway: %s is on network %q, which has no gateway", workloadName(far.workload), far.workload.Network)
	}
	near, err := o.gateway(gw, mesh.ForTraffic, "network gateway")
	if err != nil {
		return Plan{}, err
	}
	o.because(Reason{Step: StepOtherNetwork, Workload: far.workload, Gateway: gw})
	p := Plan{Service: s, Authority: net.JoinHostPort(s.Hostname, strconv.Itoa(int(o.dst.Port())))}
	if far.service != nil {
		p.Inner = far.service.SANs
	}
	p, err = o.tunnel(near, p)
	p.Via = DoubleHBONE
	return p, err
}

// tunnel completes a plan that ends at a gateway's or waypoint's resolved address.
func (o *outbound) tunnel(up upstream, p Plan) (Plan, error) {
	p.Via = HBONE
	p.Dest = up.workload
	p.Expect = expected(up)
	return o.socket(up, up.port, p)
}

// direct goes to the workload itself: by HBONE if it speaks it, else by plain TCP.
func (o *outbound) direct(up upstream) (Plan, error) {
	p := Plan{Service: up.service, Dest: up.workload, target: up.port}
	if up.workload.Protocol != mesh.HBONE {
		o.because(Reason{Step: StepSpeaksTCP, Workload: up.workload})
		p.Via = Plain
		return o.socket(up, up.port, p)
	}
	o.because(Reason{Step: StepSpeaksHBONE, Workload: up.workload})
	p.Via = HBONE
	p.Expect = expected(up)
	p, err := o.socket(up, HBONEPort, p)
	if err == nil && p.Resolve == "" {
		p.Authority = netip.AddrPortFrom(p.NextHop.Addr(), up.port).String()
	}
	return p, err
}

// socket sets the socket's destination: an address of the workload, or its host name to be looked up.
func (o *outbound) socket(up upstream, port uint16, p Plan) (Plan, error) {
	families := mesh.AnyFamily
	if up.service != nil {
		families = up.service.Families
	}
	ip, ok := mesh.PickAddr(up.workload, families, up.asked)
	if !ok && up.workload.Hostname == "" {
		return Plan{}, refuse(0, "no valid destination: workload %s has no usable address and no host name", workloadName(up.workload))
	}
	p.NextHop = netip.AddrPortFrom(ip, port)
	if !ok {
		p.Resolve = up.workload.Hostname
	}
	return o.done(p)
}

// at finds who answers at an address: a service's endpoint first, then a workload. Not known: nobody of the mesh,
// or a service that wants the address kept.
func (o *outbound) at(network string, dst netip.AddrPort, use mesh.Use) (up upstream, known bool, err error) {
	if s := o.view.ServiceByVIP(network, dst.Addr(), o.src.Namespace); s != nil {
		if s.LoadBalancing.Mode == mesh.ModePassthrough {
			return upstream{}, false, nil
		}
		choice, ok := o.view.Choose(o.src, s, dst.Port(), use, o.rnd)
		if !ok {
			return upstream{}, false, refuse(0, "no healthy upstream: %s", dst)
		}
		return upstream{service: s, workload: choice.Workload, port: choice.Port, asked: dst.Addr()}, true, nil
	}
	if w := o.view.WorkloadByAddr(network, dst.Addr()); w != nil {
		return upstream{workload: w, port: dst.Port(), asked: dst.Addr()}, true, nil
	}
	return upstream{}, false, nil
}

// gateway finds who answers for a waypoint or network gateway.
func (o *outbound) gateway(gw *mesh.GatewayAddress, use mesh.Use, what string) (upstream, error) {
	if !gw.ByHost() {
		up, known, err := o.at(gw.Addr.Network, netip.AddrPortFrom(gw.Addr.Addr, gw.Port), use)
		switch {
		case err != nil:
			return upstream{}, refuse(0, "unknown %s: %s has no healthy endpoint for port %d", what, gw, gw.Port)
		case !known:
			return upstream{}, refuse(0, "unknown %s: %s", what, gw)
		}
		return up, nil
	}
	if s := o.view.ServiceByHost(gw.Host.Namespace, gw.Host.Hostname); s != nil {
		choice, ok := o.view.Choose(o.src, s, gw.Port, use, o.rnd)
		if !ok {
			return upstream{}, refuse(0, "unknown %s: %s has no healthy endpoint for port %d", what, gw, gw.Port)
		}
		return upstream{service: s, workload: choice.Workload, port: choice.Port, asked: o.dst.Addr()}, nil
	}
	if w := o.view.WorkloadByHost(gw.Host.Namespace, gw.Host.Hostname); w != nil {
		return upstream{workload: w, port: gw.Port, asked: o.dst.Addr()}, nil
	}
	return upstream{}, refuse(0, "unknown %s: %s", what, gw)
}

// isWaypoint says whether the client is the given waypoint: by identity and by address, since
// another pod may run under the waypoint's service account.
func (o *outbound) isWaypoint(gw *mesh.GatewayAddress) bool {
	is := func(w *mesh.Workload) bool { return w.ID == o.src.ID && w.HasAddr(o.client) }
	return gatewayHas(o.view, gw, o.src.Namespace, is, is)
}

// gatewayHas says whether the workload at a gateway address, or some endpoint of the service there, is the wanted one.
func gatewayHas(v *mesh.View, gw *mesh.GatewayAddress, clientNS string, workload, endpoint func(*mesh.Workload) bool) bool {
	var s *mesh.Service
	var w *mesh.Workload
	if gw.ByHost() {
		if s = v.ServiceByHost(gw.Host.Namespace, gw.Host.Hostname); s == nil {
			w = v.WorkloadByHost(gw.Host.Namespace, gw.Host.Hostname)
		}
	} else if w = v.WorkloadByAddr(gw.Addr.Network, gw.Addr.Addr); w == nil {
		s = v.ServiceByVIP(gw.Addr.Network, gw.Addr.Addr, clientNS)
	}
	switch {
	case w != nil:
		return workload(w)
	case s != nil:
		return slices.ContainsFunc(v.Endpoints(s.Key()), func(ep mesh.Endpoint) bool { return endpoint(ep.Workload) })
	}
	return false
}

// expected lists who may answer for an upstream: itself, and whom the service that led there names.
func expected(up upstream) []identity.ID {
	ids := make([]identity.ID, 0, 1+4)
	if !up.workload.ID.IsZero() {
		ids = append(ids, up.workload.ID)
	}
	if up.service != nil {
		for _, id := range up.service.SANs {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}
