package steer

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
)

// HBONEPort is where HBONE is served in every pod of the mesh.
const HBONEPort = 15008

// Illegal says that a port belongs to the proxy itself, so that going there would be a loop.
func Illegal(port uint16) bool { return port == 15001 || port == 15006 || port == HBONEPort }

// Via is how a connection travels. The zero Via is no decision: drivers refuse it.
type Via uint8

// The ways a connection can travel.
const (
	_ Via = iota
	// Passthrough is plain TCP to the original destination, which the mesh knows nothing about.
	Passthrough
	// Plain is plain TCP to a destination that was chosen but is not in the mesh.
	Plain
	// HBONE is one tunnel.
	HBONE
	// DoubleHBONE is a tunnel through a network gateway, with a second tunnel inside.
	DoubleHBONE
)

func (v Via) String() string {
	switch v {
	case Passthrough:
		return "passthrough"
	case Plain:
		return "plain"
	case HBONE:
		return "hbone"
	case DoubleHBONE:
		return "double-hbone"
	}
	return "undecided"
}

// Tunnelled says that the hop is authenticated and encrypted.
func (v Via) Tunnelled() bool { return v == HBONE || v == DoubleHBONE }

// Plan is all that the driver of an outgoing connection has to know.
type Plan struct {
	Via Via
	// NextHop is where the socket goes. Its address is missing while Resolve is set.
	NextHop netip.AddrPort
	// Resolve is the host name to look up first, for a destination without an address; else empty.
	Resolve string
	// Authority is the :authority of the CONNECT; the inner one's for DoubleHBONE too. Empty without a tunnel.
	Authority string
	// Expect are the identities that the next hop may present; for a tunnel, none means refusal.
	Expect []identity.ID
	// Inner are the identities accepted at the far end of a DoubleHBONE.
	Inner []identity.ID
	// Service is what the client meant, nil if it meant no service.
	Service *mesh.Service
	// Dest is the workload of the next hop, nil if unknown.
	Dest *mesh.Workload
	// Why are the steps that led here.
	Why []Reason
	// target is the port behind the tunnel, for Resolved.
	target uint16
}

// Resolved completes a plan whose destination had to be looked up.
func (p Plan) Resolved(ip netip.Addr) Plan {
	p.Resolve = ""
	p.NextHop = netip.AddrPortFrom(ip, p.NextHop.Port())
	if p.Via == HBONE && p.Authority == "" {
		p.Authority = netip.AddrPortFrom(ip, p.target).String()
	}
	return p
}

// String prints the plan and its reasons, one line each.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plan %s next=%s", p.Via, p.next())
	if p.Authority != "" {
		fmt.Fprintf(&b, " authority=%s", p.Authority)
	}
	if len(p.Expect) > 0 {
		fmt.Fprintf(&b, " expect=%s", joinIDs(p.Expect))
	}
	if p.Via == DoubleHBONE {
		fmt.Fprintf(&b, " inner=%s", joinIDs(p.Inner))
	}
	if p.Service != nil {
		fmt.Fprintf(&b, " service=%s", p.Service.Key())
	}
	if p.Dest != nil {
		fmt.Fprintf(&b, " dest=%s/%s", p.Dest.Namespace, p.Dest.Name)
	}
	b.WriteByte('\n')
	writeReasons(&b, p.Why)
	return b.String()
}

func (p Plan) next() string {
	if p.Resolve != "" {
		return p.Resolve + ":" + strconv.Itoa(int(p.NextHop.Port()))
	}
	return p.NextHop.String()
}

func joinIDs(ids []identity.ID) string {
	if len(ids) == 0 {
		return "none"
	}
	parts := make([]string, len(ids))
	for i, id := range ids {
		parts[i] = id.String()
	}
	return strings.Join(parts, ",")
}

// Step is one kind of step in a decision.
type Step uint8

// The steps that decisions are made of.
const (
	_ Step = iota
	StepServiceAddress
	StepWorkloadAddress
	StepUnknownAddress
	StepPassthroughService
	StepServiceWaypoint
	StepWorkloadWaypoint
	StepIsTheWaypoint
	StepEndpoint
	StepOtherNetwork
	StepSpeaksHBONE
	StepSpeaksTCP
	StepOwnAddress
	StepNamedService
	StepActsAsWaypoint
	StepTunnelToApp
	StepPlaintext
)

// Reason is one step of a decision, kept as data and put into words only when somebody asks.
type Reason struct {
	Step     Step
	Service  *mesh.Service
	Workload *mesh.Workload
	Gateway  *mesh.GatewayAddress
	Addr     netip.AddrPort
}

// String is the step in words.
func (r Reason) String() string {
	switch r.Step {
	case StepServiceAddress:
		return fmt.Sprintf("%s is an address of service %s", r.Addr.Addr(), r.Service.Key())
	case StepWorkloadAddress:
		return fmt.Sprintf("%s is an address of workload %s", r.Addr.Addr(), workloadName(r.Workload))
	case StepUnknownAddress:
		return fmt.Sprintf("%s belongs to no service and no workload of the mesh", r.Addr.Addr())
	case StepPassthroughService:
		return fmt.Sprintf("service %s asks for no choice of endpoint, the original address is kept", r.Service.Key())
	case StepServiceWaypoint:
		return fmt.Sprintf("service %s has the waypoint %s; it answers at %s", r.Service.Key(), r.Gateway, workloadName(r.Workload))
	case StepWorkloadWaypoint:
		return fmt.Sprintf("workload %s has a waypoint and was not addressed by a service; %s answers for it", workloadName(r.Workload), r.Gateway)
	case StepIsTheWaypoint:
		return fmt.Sprintf("the client is the waypoint %s of %s, it goes straight on", r.Gateway, workloadName(r.Workload))
	case StepEndpoint:
		return fmt.Sprintf("service %s has no waypoint; endpoint %s was chosen", r.Service.Key(), workloadName(r.Workload))
	case StepOtherNetwork:
		return fmt.Sprintf("%s is on network %q, reached by its gateway %s", workloadName(r.Workload), r.Workload.Network, r.Gateway)
	case StepSpeaksHBONE:
		return fmt.Sprintf("%s speaks HBONE", workloadName(r.Workload))
	case StepSpeaksTCP:
		return fmt.Sprintf("%s is not in the mesh, it gets plain TCP", workloadName(r.Workload))
	case StepOwnAddress:
		return fmt.Sprintf("%s is the pod's own address", r.Addr.Addr())
	case StepNamedService:
		return fmt.Sprintf("the request names service %s, its port is %d here", r.Service.Key(), r.Addr.Port())
	case StepActsAsWaypoint:
		return fmt.Sprintf("%s is the waypoint of %s", workloadName(r.Workload), r.Addr.Addr())
	case StepTunnelToApp:
		return fmt.Sprintf("%s wants its traffic by application tunnel %s", workloadName(r.Workload), r.Workload.Tunnel.Protocol)
	case StepPlaintext:
		return fmt.Sprintf("plaintext for %s", r.Addr)
	}
	return "unknown step"
}

func workloadName(w *mesh.Workload) string { return w.Namespace + "/" + w.Name }

func writeReasons(b *strings.Builder, why []Reason) {
	for _, r := range why {
		fmt.Fprintf(b, "why %s\n", r)
	}
}

// Refusal is the decision not to carry a connection. Nothing was dialled, nothing was admitted.
type Refusal struct {
	// Status answers a CONNECT; 0 where there is nobody to answer.
	Status int
	Reason string
}

func (r *Refusal) Error() string { return r.Reason }

func refuse(status int, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Reason: fmt.Sprintf(format, args...)}
}
