package upstream

import (
	"fmt"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// HBONEPort is where node proxies accept tunnels.
const HBONEPort = 15008

// Assignment is the compiled list of a cluster's endpoints.
type Assignment struct {
	Name      string
	Endpoints []Endpoint
	Groups    []Group // the localities; an endpoint names its own
	// Overprovision is the percentage by which the healthy share of a priority or locality is counted up before load moves away from it.
	Overprovision uint32 // 0 = default
}

// Group is a locality in one priority.
type Group struct {
	Region, Zone, Subzone string
	Weight                uint32 // 0 = none was given
}

// Endpoint is one place where a cluster's requests can go. It is comparable: two equal ones are the same endpoint.
type Endpoint struct {
	Addr     netip.AddrPort // of the application
	Hop      netip.AddrPort // of the node proxy; invalid = connect directly
	Identity identity.ID    // what the hop has to present; zero = any of the trust domain
	// Principal is Identity as text, which every request asks for; empty = zero.
	Principal string
	Workload  Workload
	Healthy   bool
	Weight    uint32
	Priority  uint32
	Group     int // in the assignment's groups
	Check     EndpointCheck
}

// Workload describes an endpoint or a client for telemetry.
type Workload struct {
	Name, Namespace, CanonicalName, Revision, Cluster, App, Version, UID string
}

// Tunnelled says whether the endpoint is in the mesh.
func (e *Endpoint) Tunnelled() bool { return e.Hop.IsValid() }

// Host is how Envoy's log names the endpoint.
func (e *Endpoint) Host() string {
	if e.Tunnelled() {
		return "envoy://" + internalOriginate + "/" + e.Addr.String()
	}
	return e.Addr.String()
}

// CompileAssignment compiles the endpoints of one cluster.
func CompileAssignment(p *endpointv3.ClusterLoadAssignment) (*Assignment, error) {
	a := &Assignment{Name: p.GetClusterName()}
	if err := strict.Only(p, "cluster_name", "endpoints", "policy"); err != nil {
		return nil, fmt.Errorf("endpoints of %q: %w", a.Name, err)
	}
	pol := p.GetPolicy()
	if err := strict.Only(pol, "overprovisioning_factor", "drop_overloads"); err != nil {
		return nil, fmt.Errorf("endpoints of %q: policy: %w", a.Name, err)
	}
	if len(pol.GetDropOverloads()) > 0 {
		return nil, fmt.Errorf("endpoints of %q: policy.drop_overloads: %w", a.Name, strict.ErrUnsupported)
	}
	a.Overprovision = pol.GetOverprovisioningFactor().GetValue()
	for _, group := range p.GetEndpoints() {
		if err := strict.Only(group, "locality", "lb_endpoints", "load_balancing_weight", "priority", "metadata"); err != nil {
			return nil, fmt.Errorf("endpoints of %q: %w", a.Name, err)
		}
		l := group.GetLocality()
		a.Groups = append(a.Groups, Group{
			Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubZone(), Weight: group.GetLoadBalancingWeight().GetValue(),
		})
		for _, e := range group.GetLbEndpoints() {
			out, skip, err := compileEndpoint(e)
			if err != nil {
				return nil, fmt.Errorf("endpoints of %q: %w", a.Name, err)
			}
			if skip {
				continue
			}
			out.Priority, out.Group = group.GetPriority(), len(a.Groups)-1
			a.Endpoints = append(a.Endpoints, out)
		}
	}
	return a, nil
}

func compileEndpoint(p *endpointv3.LbEndpoint) (e Endpoint, skip bool, err error) {
	switch p.GetHealthStatus() {
	case corev3.HealthStatus_HEALTHY, corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_DEGRADED:
		e.Healthy = true
	case corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_TIMEOUT, corev3.HealthStatus_DRAINING:
	}
	e.Weight = 1
	if w := p.GetLoadBalancingWeight(); w != nil {
		e.Weight = w.GetValue()
	}
	if e.Check, err = compileEndpointCheck(p.GetEndpoint().GetHealthCheckConfig()); err != nil {
		return e, false, err
	}
	meta := p.GetMetadata().GetFilterMetadata()
	istio := meta["istio"].GetFields()
	if id := istio["identity"].GetStringValue(); id != "" {
		if e.Identity, err = identity.Parse(id); err != nil {
			return e, false, fmt.Errorf("metadata istio.identity %q: %w", id, err)
		}
		e.Principal = e.Identity.String()
	}
	e.Workload = workload(istio)
	switch a := p.GetEndpoint().GetAddress().GetAddress().(type) {
	case *corev3.Address_SocketAddress:
		ip, err := netip.ParseAddr(a.SocketAddress.GetAddress())
		if err != nil {
			return e, false, fmt.Errorf("address %q: %w", a.SocketAddress.GetAddress(), err)
		}
		e.Addr = netip.AddrPortFrom(ip.Unmap(), uint16(a.SocketAddress.GetPortValue()))
	case *corev3.Address_EnvoyInternalAddress:
		if l := a.EnvoyInternalAddress.GetServerListenerName(); l != internalOriginate {
			// Another network's gateway: this waypoint cannot reach it, the endpoints of its own network still work.
			return e, true, nil
		}
		dst := meta["envoy.filters.listener.original_dst"].GetFields()
		local := dst["local"].GetStringValue()
		if local == "" {
			local = a.EnvoyInternalAddress.GetEndpointId()
		}
		if e.Addr, err = netip.ParseAddrPort(local); err != nil {
			return e, false, fmt.Errorf("metadata original_dst.local %q: %w", local, err)
		}
		e.Hop = netip.AddrPortFrom(e.Addr.Addr(), HBONEPort)
		if w := dst["waypoint"].GetStringValue(); w != "" {
			if e.Hop, err = netip.ParseAddrPort(w); err != nil {
				return e, false, fmt.Errorf("metadata original_dst.waypoint %q: %w", w, err)
			}
		}
	default:
		return e, false, fmt.Errorf("address %T: %w", a, strict.ErrUnsupported)
	}
	return e, false, nil
}

// workload reads Istio's compact form: name;namespace;canonical name;revision;cluster.
func workload(istio map[string]*structpb.Value) Workload {
	w := Workload{App: istio["app"].GetStringValue(), Version: istio["version"].GetStringValue(), UID: istio["uid"].GetStringValue()}
	parts := strings.Split(istio["workload"].GetStringValue(), ";")
	into := []*string{&w.Name, &w.Namespace, &w.CanonicalName, &w.Revision, &w.Cluster}
	for i, p := range parts {
		if i < len(into) {
			*into[i] = p
		}
	}
	if w.Revision == "" && w.CanonicalName != "" {
		w.Revision = "latest"
	}
	return w
}
