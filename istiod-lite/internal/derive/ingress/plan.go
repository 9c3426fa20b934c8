package ingress

import (
	"cmp"
	"maps"
	"slices"
	"strconv"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// port is one port of a gateway while its plan is made. It has plaintext HTTP, servers that read a server name, both, or
// bytes; who comes first decides.
type port struct {
	number, target uint32
	hosts          map[string]*waypoint.EdgeHost // of plaintext HTTP; nil is none
	owners         []string
	servers        []waypoint.EdgeServer
	bytes          *waypoint.EdgeTCP
	names          map[string]bool // server names that are taken
}

func (g *gateway) port(number, target uint32) *port {
	if g.ports[number] == nil {
		g.ports[number] = &port{number: number, target: target, names: map[string]bool{}}
	}
	return g.ports[number]
}

// plain adds a host of plaintext HTTP; the first to say something of a host wins over redirects and is joined by others.
func (p *port) plain(h waypoint.EdgeHost) {
	if p.hosts == nil {
		p.hosts = map[string]*waypoint.EdgeHost{}
	}
	old := p.hosts[h.Domain]
	if old == nil {
		p.hosts[h.Domain] = &h
		return
	}
	old.HTTPRoutes = append(old.HTTPRoutes, h.HTTPRoutes...)
	old.GRPCRoutes = append(old.GRPCRoutes, h.GRPCRoutes...)
	old.VirtualServices = append(old.VirtualServices, h.VirtualServices...)
	old.Redirect = old.Redirect || h.Redirect
}

// serve adds a server for the names of it that are still free; ok is false when none is.
func (p *port) serve(s waypoint.EdgeServer) bool {
	free := slices.DeleteFunc(slices.Clone(s.SNI), func(n string) bool { return p.names[n] })
	if len(free) == 0 || p.bytes != nil {
		return false
	}
	for _, n := range free {
		p.names[n] = true
	}
	slices.Sort(free)
	s.SNI = slices.Compact(free)
	p.servers = append(p.servers, s)
	return true
}

func (p *port) plan() (waypoint.EdgePort, bool) {
	out := waypoint.EdgePort{Number: p.number, Target: p.target, Servers: p.servers}
	id := strconv.Itoa(int(p.number))
	switch {
	case p.bytes != nil:
		out.Servers = []waypoint.EdgeServer{{Name: "tcp." + id, TCP: p.bytes}}
	case p.hosts != nil:
		out.Servers = append(out.Servers, waypoint.EdgeServer{Name: "http." + id, HTTP: &waypoint.EdgeHTTP{Hosts: hostList(p.hosts), Owner: p.owners}})
	}
	slices.SortFunc(out.Servers, func(a, b waypoint.EdgeServer) int { return cmp.Compare(a.Name, b.Name) })
	return out, len(out.Servers) > 0
}

func hostList(hosts map[string]*waypoint.EdgeHost) []waypoint.EdgeHost {
	var out []waypoint.EdgeHost
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		out = append(out, *hosts[name])
	}
	return out
}

// planListeners puts a Gateway's listeners on their ports.
func (d *derivation) planListeners(g *gateway) {
	for _, l := range g.listeners {
		if !l.works {
			continue
		}
		p := g.port(uint32(l.spec.Port), uint32(l.spec.Port))
		id := strconv.Itoa(int(l.spec.Port)) + "." + string(l.Name)
		switch l.spec.Protocol {
		case gatewayv1.HTTPProtocolType:
			l.edgeHost(l.host) // a host without routes is this listener's all the same, and no wider one's
			for _, h := range hostList(l.hosts) {
				p.plain(h)
			}
		case gatewayv1.HTTPSProtocolType:
			l.edgeHost(l.host)
			p.serve(waypoint.EdgeServer{Name: "https." + id, SNI: []string{l.host}, TLS: l.tls, HTTP: &waypoint.EdgeHTTP{Hosts: hostList(l.hosts)}})
		case gatewayv1.TCPProtocolType:
			p.bytes = &waypoint.EdgeTCP{}
			if len(l.opaque) > 0 { // the oldest route has the port
				p.bytes.Backends = l.opaque[0].backends
			}
		default:
			for i, o := range l.opaque {
				p.serve(waypoint.EdgeServer{
					Name: "tls." + id + "." + strconv.Itoa(i), SNI: o.names, TLS: l.tls,
					TCP: &waypoint.EdgeTCP{Passthrough: l.tls == nil, Backends: o.backends},
				})
			}
		}
	}
}
