package inbound

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/relay"
	"github.com/marrowmesh/marrow/ztunnel/internal/capture"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/flow"
)

// Call is a connection of a pod of this node to another of them, with all that a tunnel between the two would have told.
type Call struct {
	// Peer is the client's socket, Local the HBONE address that it would have dialled.
	Peer, Local netip.AddrPort
	// Cert is what the client proves itself by, Expect whom it accepts.
	Cert   *mtls.Certificate
	Expect []identity.ID
	// To is the authority of the CONNECT, Headers its headers.
	To      string
	Headers []hbone.Header
}

// Method implements request.
func (c *Call) Method() string { return "CONNECT" }

// Authority implements request.
func (c *Call) Authority() string { return c.To }

// Header implements request.
func (c *Call) Header(name string) string {
	var values []string
	for _, h := range c.Headers {
		if h.Name == name {
			values = append(values, h.Value)
		}
	}
	return strings.Join(values, ",")
}

// Arrival is a connection that was admitted to a pod and has its application's socket. It is in the table and on record
// until Close.
type Arrival struct {
	Conn capture.Conn

	live     *conns.Live
	rec      *flow.Flow
	workload *mesh.Workload
	// relay is nil for a call: its caller relays.
	relay *relay.Relay
	// release lets go of what a call holds; nil otherwise.
	release context.CancelFunc
}

// start begins to relay between the client and the application.
func (a *Arrival) start(client relay.Duplex) {
	a.relay = relay.Start(a.live.Context(), client, a.Conn, a.rec.Bytes)
}

// end follows the relay's.
func (a *Arrival) end() { a.Close(a.relay.Result().Err) }

// Context ends when the destination's side must be cut.
func (a *Arrival) Context() context.Context { return a.live.Context() }

// Bytes counts what was delivered to the application and back.
func (a *Arrival) Bytes(sent, received int64) { a.rec.Bytes(sent, received) }

// Close ends the record, by the cut if the connection was cut, else by err.
func (a *Arrival) Close(err error) {
	a.rec.Close(cutOr(a.live, err))
	a.live.Close()
	if a.release != nil {
		a.release()
	}
}

// Arrive is what the pod's HBONE port would do with a connection from a pod of this node: prove both sides to each other,
// decide, register, judge, record, dial. The bytes are the caller's to carry, and the Arrival's connection to close.
//
// The error is a *mtls.LocalError if one side refused the other, a *hbone.StatusError if the request was refused; others
// kept the pod from answering.
func (d *Driver) Arrive(ctx context.Context, pod *capture.Pod, c *Call) (*Arrival, error) {
	peer, err := d.prove(ctx, pod, c)
	if err != nil {
		d.cfg.Record.Refused(flow.Destination, c.Peer, c.Local, err)
		return nil, err
	}
	// Not ctx: what ends the client's side is no cut of ours.
	cut, end := pod.Drain.Context(context.WithoutCancel(ctx))
	t := &tunnel{Driver: d, pod: pod, conn: &capture.Accepted{Peer: c.Peer, Local: c.Local, Original: c.Local}, peer: peer, cut: cut}
	a, err := t.arrive(ctx, c)
	if err != nil {
		end()
		return nil, &hbone.StatusError{Status: statusOf(err), Authority: c.To}
	}
	a.release = end
	return a, nil
}

// prove is the handshake: the pod's own certificate and the client's, each judged by the other side.
func (d *Driver) prove(ctx context.Context, pod *capture.Pod, c *Call) (identity.ID, error) {
	limited, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	self, err := d.cfg.Views.WaitWorkload(limited, d.cfg.Node, pod.Namespace, pod.Name, pod.ServiceAccount)
	if err != nil {
		return identity.ID{}, err
	}
	cert, err := d.cfg.Certs(self.Identity()).Certificate(limited)
	if err != nil {
		return identity.ID{}, err
	}
	peer, err := mtls.Verify(c.Cert, cert, c.Expect)
	if err != nil {
		return identity.ID{}, fmt.Errorf("tls handshake with %v: %w", c.Peer, err)
	}
	return peer, nil
}
