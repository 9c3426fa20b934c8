package outbound

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/relay"
	"github.com/marrowmesh/marrow/ztunnel/internal/capture"
	"github.com/marrowmesh/marrow/ztunnel/internal/flow"
	"github.com/marrowmesh/marrow/ztunnel/internal/inbound"
	"github.com/marrowmesh/marrow/ztunnel/internal/steer"
)

// near is the pod at the other end of the planned tunnel if this node serves it; nil if the tunnel must be made: to
// other nodes, to whoever answers for somebody else, and wherever a tunnel would show another source than the client's.
func (w *way) near() *capture.Pod {
	p := &w.plan
	if w.cfg.Near == nil || p.Via != steer.HBONE || p.NextHop.Port() != steer.HBONEPort || p.Dest == nil || p.Dest.Tunnel != nil {
		return nil
	}
	hop, from := p.NextHop.Addr(), w.conn.Peer.Addr()
	asked, err := netip.ParseAddrPort(p.Authority)
	if err != nil || asked.Addr() != hop || !p.Dest.HasAddr(hop) {
		return nil
	}
	if from.Is4() != hop.Is4() || !w.src.HasAddr(from) {
		return nil
	}
	return w.cfg.Near(p.Dest, hop)
}

// cross asks the destination's side directly: what a tunnel to oneself would ask, judge and record is asked, judged and
// recorded by both drivers, but nothing is framed or encrypted.
func (w *way) cross(ctx context.Context, pod *capture.Pod) (*inbound.Arrival, error) {
	cert, err := w.cfg.Certs(w.src.Identity()).Certificate(ctx)
	if err != nil {
		return nil, flow.Fail(flow.IdentityError, err)
	}
	a, err := w.cfg.Arrive(ctx, pod, &inbound.Call{
		Peer: w.conn.Peer, Local: w.plan.NextHop, Cert: cert, Expect: w.plan.Expect, To: w.plan.Authority, Headers: w.headers(),
	})
	if err != nil {
		return nil, w.refused(err)
	}
	return a, nil
}

// startNear relays from socket to socket, until either side is cut. Who is cut closes; the other one has lost its peer and
// is told so, as by a tunnel.
func (l *leg) startNear(down capture.Conn) {
	own, theirs := l.live.Context(), l.near.Context()
	ctx, stop := context.WithCancel(context.WithoutCancel(own))
	unhook := context.AfterFunc(own, func() { reset(l.near.Conn); stop() })
	unhookTheirs := context.AfterFunc(theirs, func() { reset(down); stop() })
	l.release = func() { unhook(); unhookTheirs(); stop() }
	l.relay = relay.Start(ctx, down, l.near.Conn, l.count)
}

func (l *leg) count(sent, received int64) {
	l.rec.Bytes(sent, received)
	l.near.Bytes(sent, received)
}

// endNear closes the destination's record by what broke there; the error is what broke here.
func (l *leg) endNear() error {
	res := l.relay.Result()
	l.release()
	l.near.Close(res.Up)
	return res.Down
}

// refused is the error of a destination on this node in the words of one at the other end of a tunnel.
func (w *way) refused(err error) error {
	local, ok := errors.AsType[*mtls.LocalError](err)
	switch {
	case ok && local.ByServer: // a client learns of it only after its own part of the handshake
		return flow.Fail(flow.H2Failure, fmt.Errorf("connect %s: %w", w.plan.Authority, local))
	case ok:
		return flow.Fail(flow.Connect, fmt.Errorf("tls handshake with %v: %w", w.plan.NextHop, local.Err))
	}
	if _, ok := errors.AsType[*hbone.StatusError](err); ok {
		return classify(err)
	}
	return flow.Fail(flow.Connect, fmt.Errorf("tls handshake with %v: it is not ready: %w", w.plan.NextHop, err))
}

// reset makes the socket's end a reset.
func reset(c capture.Conn) {
	if s, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = s.SetLinger(0)
	}
}
