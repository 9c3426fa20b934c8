package inbound

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/marrowmesh/marrow/internal/authz"
	"github.com/marrowmesh/marrow/internal/burst"
	"github.com/marrowmesh/marrow/internal/claims"
	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/ztunnel/internal/capture"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/flow"
	"github.com/marrowmesh/marrow/ztunnel/internal/steer"
	"github.com/marrowmesh/marrow/ztunnel/internal/view"
)

// handshakeLimit bounds a client's TLS handshake.
const handshakeLimit = 10 * time.Second

// Config is what a Driver needs.
type Config struct {
	// Node is this node's name; empty matches pods of any node.
	Node string
	// Network is the name of this proxy's network, empty for the unnamed one.
	Network string
	Views   *view.Store
	Conns   *conns.Table
	Record  *flow.Recorder
	Log     *obs.Logger
	// Certs gives the certificate source of an identity.
	Certs func(identity.ID) mtls.Source
	TLS   mtls.Handshaker
	HBONE hbone.Config
	// NaturalSource dials applications from the pod's own address instead of the client's.
	NaturalSource bool
	// TunnelToPodIP delivers PROXY application tunnels to the pod's address instead of loopback.
	TunnelToPodIP bool
	// Lot is where quiet connections wait; nil leaves each its goroutine.
	Lot *burst.Lot
	// NoPenalty lets peers in again at once that attack.
	NoPenalty bool
	// NoBaggage leaves the baggage header out of answers and ignores that of requests.
	NoBaggage bool
}

// Driver drives inbound connections of all pods of the node.
type Driver struct {
	cfg       Config
	penalties penalties
}

// New makes a driver.
func New(cfg Config) *Driver {
	return &Driver{cfg: cfg}
}

// errNotConnect refuses requests that are no tunnels.
var errNotConnect = errors.New("only CONNECT is served here")

// HandleHBONE serves one connection on 15008 to its end; it is a capture.Handler.
func (d *Driver) HandleHBONE(ctx context.Context, pod *capture.Pod, a *capture.Accepted) {
	defer d.cfg.Record.Socket(flow.Destination)()
	if refusal, first := d.penalties.check(time.Now(), offender{pod.UID, a.Peer.Addr()}); refusal != nil {
		reset(a.Conn)
		_ = a.Close()
		if first { // the others of the same penalty tell nothing new
			d.cfg.Record.Refused(flow.Destination, a.Peer, a.Local, refusal)
		}
		return
	}
	if err := d.serve(ctx, pod, a); err != nil {
		d.cfg.Record.Refused(flow.Destination, a.Peer, a.Local, err)
	}
}

// serve authenticates the peer and takes its streams. The error is one that ended the connection before any stream.
func (d *Driver) serve(ctx context.Context, pod *capture.Pod, a *capture.Accepted) error {
	defer func() { _ = a.Close() }()
	self, err := d.cfg.Views.WaitWorkload(ctx, d.cfg.Node, pod.Namespace, pod.Name, pod.ServiceAccount)
	if err != nil {
		return err
	}
	cert, err := d.cfg.Certs(self.Identity()).Certificate(ctx)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, handshakeLimit)
	secured, peer, err := d.cfg.TLS.Server(limited, a.Conn, cert)
	cancel()
	if err != nil {
		return err
	}
	server := hbone.NewServer(d.cfg.HBONE)
	g := run.NewGroup(ctx)
	g.Go("drain", func(ctx context.Context) error {
		select {
		case <-pod.Drain.Started():
			server.Drain()
		case <-ctx.Done():
		}
		return nil
	})
	t := &tunnel{Driver: d, pod: pod, conn: a, peer: peer, cut: ctx}
	if err := server.Serve(ctx, secured, t.handler()); err != nil {
		d.cfg.Log.Debug("tunnel connection ended", obs.F("src.addr", a.Peer), obs.F("dst.addr", a.Local), obs.Err(err))
		if hbone.Violation(err) && !d.cfg.NoPenalty {
			d.penalize(pod, a, err)
		}
	}
	g.Stop()
	return g.Wait()
}

// penalize keeps a peer out that attacks again.
func (d *Driver) penalize(pod *capture.Pod, a *capture.Accepted, err error) {
	if wait := d.penalties.note(time.Now(), offender{pod.UID, a.Peer.Addr()}); wait > 0 {
		d.cfg.Log.Warn("a peer breaks the rules of HTTP/2 again and is kept out", obs.F("src.addr", a.Peer), obs.F("dst.addr", a.Local),
			obs.F("for", wait), obs.Err(err))
	}
}

// reset has a socket's Close send a reset: nobody shall take a refusal for an empty answer.
func reset(c any) {
	if s, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = s.SetLinger(0)
	}
}

// tunnel is one authenticated connection with its streams.
type tunnel struct {
	*Driver
	pod  *capture.Pod
	conn *capture.Accepted
	peer identity.ID
	// cut ends when the connection must be cut, and says why.
	cut context.Context //nolint:containedctx // outlives the streams' own contexts
}

// request is a CONNECT, from a stream or from a pod of this node.
type request interface {
	Method() string
	Authority() string
	Header(name string) string
}

// handler drives one stream at a time, each in its own goroutine, which waits below here until the stream goes quiet.
// ctx ends when the peer gives the stream up.
func (t *tunnel) handler() hbone.Handler {
	return func(ctx context.Context, in *hbone.Incoming) {
		if a, stream := t.accept(ctx, in); a != nil {
			release := in.Detach()
			a.start(stream)
			a.relay.Then(t.cfg.Lot, func() {
				a.end()
				release()
			})
		}
	}
}

// accept answers a request, with 200 once the application's socket is open. nil means that it is refused and recorded.
func (t *tunnel) accept(ctx context.Context, in *hbone.Incoming) (*Arrival, *hbone.Stream) {
	a, err := t.arrive(ctx, in)
	if err != nil {
		_ = in.Reject(statusOf(err), nil)
		return nil, nil
	}
	var answer []hbone.Header
	if !t.cfg.NoBaggage {
		answer = []hbone.Header{{Name: claims.HeaderBaggage, Value: claims.BaggageOf(a.workload).String()}}
	}
	stream, err := in.Accept(answer)
	if err != nil {
		_ = a.Conn.Close()
		a.Close(flow.Fail(flow.H2Failure, err))
		return nil, nil
	}
	return a, stream
}

// arrive decides, judges and dials. What it refuses it has recorded; the error is for the answer.
func (t *tunnel) arrive(ctx context.Context, in request) (*Arrival, error) {
	v := t.cfg.Views.Get()
	f := steer.InboundFacts{
		Local: t.conn.Local, Peer: t.conn.Peer, PeerID: t.peer, Authority: in.Authority(),
		ForwardedHost: claims.ParseForwardedHost(in.Header(claims.HeaderForwarded)),
		PeerNetwork:   in.Header(claims.HeaderNetwork),
		Workload:      v.WorkloadByPod(t.cfg.Node, t.pod.Namespace, t.pod.Name, t.pod.ServiceAccount),
	}
	adm, err := t.admission(v, in, f)
	if err != nil {
		t.cfg.Record.Refused(flow.Destination, t.conn.Peer, t.conn.Local, err)
		return nil, err
	}
	t.tell(in, adm)
	a := &Arrival{rec: t.cfg.Record.Open(t.facts(in, f, adm)), workload: f.Workload}
	if err := t.open(ctx, t.cut, t.pod, a, t.entry(t.pod, f, adm, "HBONE"), adm); err != nil {
		a.rec.Close(err)
		return nil, err
	}
	return a, nil
}

// tell writes the decision for those who look, under the id that the client's proxy gave the connection.
func (t *tunnel) tell(in request, adm steer.Admission) {
	if !t.cfg.Log.Enabled(obs.LevelDebug) {
		return
	}
	id := "none"
	if trace, ok := claims.ParseTrace(in.Header(claims.HeaderTraceparent)); ok {
		id = trace.String()
	}
	t.cfg.Log.Debug("request admitted", obs.F("id", id), obs.F("src.addr", t.conn.Peer), obs.F("authority", in.Authority()), obs.F("admission", adm.String()))
}

func (t *tunnel) admission(v *mesh.View, in request, f steer.InboundFacts) (steer.Admission, error) {
	if in.Method() != "CONNECT" {
		return steer.Admission{}, &steer.Refusal{Status: steer.StatusBadRequest, Reason: fmt.Sprintf("method %s: %v", in.Method(), errNotConnect)}
	}
	if f.Authority == "" {
		// steer takes an empty authority for plaintext; from a tunnel it is malformed.
		return steer.Admission{}, &steer.Refusal{Status: steer.StatusBadRequest, Reason: "the request names no authority"}
	}
	if f.PeerID.IsZero() {
		return steer.Admission{}, &steer.Refusal{Status: steer.StatusDenied, Reason: "the peer has no identity"}
	}
	return steer.Inbound(v, t.cfg.Network, f)
}

// open registers, judges and dials. ctx ends when the client gives up, cut when the connection must end. The error is the
// one for the record.
func (d *Driver) open(ctx, cut context.Context, pod *capture.Pod, a *Arrival, e conns.Entry, adm steer.Admission) error {
	live, err := d.cfg.Conns.Admit(cut, e)
	if err != nil {
		return flow.Fail(flow.Deny, err)
	}
	// A peer that gives up, and a cut, both stop the dial.
	dialling, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	unhook := live.AfterFunc(func() { stop(live.Cut()) })
	a.Conn, err = d.dial(dialling, pod, adm)
	unhook()
	if err != nil {
		err = cutOr(live, err)
		live.Close()
		return err
	}
	a.live = live
	return nil
}

// HandlePlain drives one connection on 15006; it is a capture.Handler.
func (d *Driver) HandlePlain(ctx context.Context, pod *capture.Pod, a *capture.Accepted) {
	closed := d.cfg.Record.Socket(flow.Destination)
	in := d.arrivePlain(ctx, pod, a)
	if in == nil {
		reset(a.Conn)
		_ = a.Close()
		closed()
		return
	}
	release := a.Hold()
	in.relay.Then(d.cfg.Lot, func() {
		in.end()
		_ = a.Close()
		closed()
		release()
	})
}

// arrivePlain decides, judges and dials; nil means that it recorded why not.
func (d *Driver) arrivePlain(ctx context.Context, pod *capture.Pod, a *capture.Accepted) *Arrival {
	f := steer.InboundFacts{Local: a.Local, Peer: a.Peer, OrigDst: a.Original}
	known, err := d.cfg.Views.WaitWorkload(ctx, d.cfg.Node, pod.Namespace, pod.Name, pod.ServiceAccount)
	if err != nil {
		d.cfg.Record.Refused(flow.Destination, a.Peer, a.Original, err)
		return nil
	}
	v := d.cfg.Views.Get()
	f.Workload = v.WorkloadByUID(known.UID)
	adm, err := steer.Inbound(v, d.cfg.Network, f)
	if err != nil {
		d.cfg.Record.Refused(flow.Destination, a.Peer, a.Original, err)
		return nil
	}
	in := &Arrival{rec: d.cfg.Record.Open(flow.Facts{
		Reporter: flow.Destination, Src: a.Peer, Dst: a.Original, SourceWorkload: adm.Source,
		DestWorkload: f.Workload, DestID: f.Workload.Identity(), Service: adm.Service,
	})}
	if err := d.open(ctx, ctx, pod, in, d.entry(pod, f, adm, "TCP"), adm); err != nil {
		in.rec.Close(err)
		return nil
	}
	in.start(a.Conn)
	return in
}

// dial opens the application's socket, from the client's address if that is wanted, and writes
// the PROXY header if there is one.
func (d *Driver) dial(ctx context.Context, pod *capture.Pod, adm steer.Admission) (capture.Conn, error) {
	dst, bind := adm.Upstream, adm.Bind
	if d.cfg.NaturalSource && adm.Proxy == nil {
		bind = netip.Addr{}
	}
	if d.cfg.TunnelToPodIP && adm.Proxy != nil {
		dst, bind = adm.Facts.Dst, netip.Addr{}
	}
	up, err := pod.Dial(ctx, dst, bind)
	if err != nil {
		return nil, flow.Fail(flow.Connect, fmt.Errorf("connection failed: %w", err))
	}
	if adm.Proxy != nil {
		if _, err := up.Write(proxyHeader(adm.Proxy)); err != nil {
			_ = up.Close()
			return nil, flow.Fail(flow.Connect, fmt.Errorf("PROXY header to %s: %w", dst, err))
		}
	}
	return up, nil
}

func (d *Driver) entry(pod *capture.Pod, f steer.InboundFacts, adm steer.Admission, protocol string) conns.Entry {
	e := conns.Entry{
		Pod: pod.UID, Direction: conns.Inbound, Src: f.Peer, Actual: adm.Upstream, Protocol: protocol,
		Workload: f.Workload, Facts: adm.Facts,
	}
	if adm.Service != nil {
		e.Original = adm.Service.Hostname
	}
	return e
}

func (t *tunnel) facts(in request, f steer.InboundFacts, adm steer.Admission) flow.Facts {
	out := flow.Facts{
		Reporter: flow.Destination, Src: f.Peer, Dst: f.Local, HBONETarget: f.Authority,
		SourceWorkload: adm.Source, SourceID: f.PeerID,
		DestWorkload: f.Workload, DestID: f.Workload.Identity(), Service: adm.Service, Mutual: true,
	}
	if !t.cfg.NoBaggage && adm.Source == nil {
		b := claims.ParseBaggage(in.Header(claims.HeaderBaggage))
		out.SourceBaggage = &b
	}
	return out
}

// cutOr attributes the end of a connection to its cut, if it was cut, rather than to what that broke.
func cutOr(live *conns.Live, err error) error {
	cut := live.Cut()
	switch {
	case cut == nil:
		return err
	case errors.Is(cut, conns.ErrPolicyChange):
		return flow.Fail(flow.Deny, cut)
	}
	return flow.Fail(flow.NoFlag, cut)
}

// statusOf is the one place where an error becomes the answer to a CONNECT.
func statusOf(err error) int {
	if r, ok := errors.AsType[*steer.Refusal](err); ok && r.Status != 0 {
		return r.Status
	}
	if _, ok := errors.AsType[*authz.Denied](err); ok {
		return steer.StatusDenied
	}
	return steer.StatusUnavailable
}
