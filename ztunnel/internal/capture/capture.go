package capture

import (
	"context"
	"net"
	"net/netip"

	"github.com/marrowmesh/marrow/internal/run"
)

// Ports of the listeners in every pod.
const (
	PortOutbound = 15001
	PortPlain    = 15006
	PortHBONE    = 15008
)

// Illegal reports whether a port belongs to the proxy itself, so that a
// connection to it would be a loop.
func Illegal(port uint16) bool {
	return port == PortOutbound || port == PortPlain || port == PortHBONE
}

// Conn is an accepted or dialled TCP connection that can be closed by halves.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// DialFunc opens a connection from the pod's network namespace, marked so that
// it is not captured again. A valid source is kept as the connection's source
// address, if the kernel allows.
type DialFunc func(ctx context.Context, dst netip.AddrPort, source netip.Addr) (Conn, error)

// Pod is the pod that a connection was captured in.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string

	Dial DialFunc
	// Drain.Started: no new connections, send GOAWAY, let streams finish.
	// Drain.Forced: the context of every connection ends with cause run.ErrDrained.
	Drain *run.Drain
}

// Accepted is one captured connection. All addresses are unmapped (no
// IPv4-in-IPv6).
type Accepted struct {
	Conn

	Peer  netip.AddrPort // the client's socket
	Local netip.AddrPort // our socket; on 15008 this is the destination
	// Original is where the client wanted to go (15001, 15006); on 15008 it
	// equals Local.
	Original netip.AddrPort

	group *run.Group // counts the connection; nil in tests of drivers alone
}

// Hold keeps the connection counted among the pod's when its Handler returns,
// until release is called, once.
func (a *Accepted) Hold() (release func()) {
	if a.group == nil {
		return func() {}
	}
	release, _ = a.group.Hold("connection")
	return release
}

// Handler drives one accepted connection to its end. It owns the connection,
// closes it, and writes its access log; if it returns before, it holds it. ctx ends when the connection must be
// cut; context.Cause then says why.
type Handler func(ctx context.Context, pod *Pod, a *Accepted)

// Handlers are the drivers behind the three ports.
type Handlers struct {
	Outbound Handler // 15001
	Plain    Handler // 15006
	HBONE    Handler // 15008
}
