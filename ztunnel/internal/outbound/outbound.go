package outbound

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
	"github.com/marrowmesh/marrow/internal/claims"
	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/relay"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/ztunnel/internal/capture"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/flow"
	"github.com/marrowmesh/marrow/ztunnel/internal/inbound"
	"github.com/marrowmesh/marrow/ztunnel/internal/pool"
	"github.com/marrowmesh/marrow/ztunnel/internal/steer"
	"github.com/marrowmesh/marrow/ztunnel/internal/view"
)

// handshakeLimit bounds TLS with the next hop, which would otherwise wait for ever.
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
	// Lookup resolves host names of workloads without an address.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	TLS    mtls.Handshaker
	HBONE  hbone.Config
	// MaxStreams and IdleRelease configure the pools; zero values take the pool's defaults.
	MaxStreams  int
	IdleRelease time.Duration
	// Random gives a number below n; nil means the runtime's generator.
	Random func(n uint64) uint64
	// Near is the pod of this node that is served at ip as the workload w; nil if there is none, and as a function, if
	// every connection shall be tunnelled. Arrive is what such a pod does with a connection.
	Near   func(w *mesh.Workload, ip netip.Addr) *capture.Pod
	Arrive func(ctx context.Context, pod *capture.Pod, c *inbound.Call) (*inbound.Arrival, error)
	// Lot is where quiet connections wait; nil leaves each its goroutine.
	Lot *burst.Lot
	// IgnoreBaggage keeps the destination's own account of itself out of the telemetry.
	IgnoreBaggage bool
}

// Driver drives outbound connections of all pods of the node.
type Driver struct {
	cfg Config
	// group ends each pool with its pod.
	group *run.Group

	mu sync.Mutex
	// pools has one pool per pod that opened a connection and still lives.
	pools map[*capture.Pod]*pool.Pool
}

// New makes a driver. The owner must Close it.
func New(cfg Config) *Driver {
	if cfg.Random == nil {
		cfg.Random = rand.Uint64N
	}
	return &Driver{cfg: cfg, group: run.NewGroup(context.Background()), pools: map[*capture.Pod]*pool.Pool{}}
}

// Handle drives one captured connection to its end; it is a capture.Handler. Idle connections wait below here.
func (d *Driver) Handle(ctx context.Context, pod *capture.Pod, a *capture.Accepted) {
	closed := d.cfg.Record.Socket(flow.Source)
	l := d.begin(ctx, pod, a)
	if l == nil || l.relay == nil {
		reset(a.Conn) // nobody shall take a refusal for an empty answer
		if l != nil {
			l.end()
		}
		_ = a.Close()
		closed()
		return
	}
	release := a.Hold()
	l.relay.Then(d.cfg.Lot, func() {
		l.end()
		_ = a.Close()
		closed()
		release()
	})
}

// begin decides, registers and opens the way; nil means that it recorded why not.
func (d *Driver) begin(ctx context.Context, pod *capture.Pod, a *capture.Accepted) *leg {
	src, plan, err := d.decide(ctx, pod, a)
	if err != nil {
		d.cfg.Record.Refused(flow.Source, a.Peer, a.Original, err)
		return nil
	}
	trace := claims.NewTrace(d.random)
	if d.cfg.Log.Enabled(obs.LevelDebug) {
		d.cfg.Log.Debug("connection planned", obs.F("id", trace.String()), obs.F("src.addr", a.Peer), obs.F("original", a.Original), obs.F("plan", plan.String()))
	}
	live := d.cfg.Conns.Register(ctx, conns.Entry{
		Pod: pod.UID, Direction: conns.Outbound, Src: a.Peer, Original: a.Original.String(),
		Actual: plan.NextHop, Protocol: protocol(plan.Via),
	})
	l := &leg{pod: pod, live: live, rec: d.cfg.Record.Open(facts(src, plan, a))}
	w := &way{Driver: d, pod: pod, src: src, plan: plan, conn: a, trace: trace, rec: l.rec}
	if near := w.near(); near != nil {
		if l.near, l.err = w.cross(live.Context(), near); l.err == nil {
			l.startNear(a.Conn)
		}
		return l
	}
	up, err := w.open(live.Context())
	if l.err = err; err == nil {
		l.relay = relay.Start(live.Context(), a.Conn, up, l.rec.Bytes)
	}
	return l
}

// leg is a connection on its way: what is left of the decision once it was carried out.
type leg struct {
	pod   *capture.Pod
	live  *conns.Live
	rec   *flow.Flow
	relay *relay.Relay
	// near is the other side if the destination is on this node; release then ends what joins the two.
	near    *inbound.Arrival
	release func()
	// err is why there is no way.
	err error
}

// end closes the record: by the cut, if there was one.
func (l *leg) end() {
	err := l.err
	switch {
	case l.relay == nil:
	case l.near != nil:
		err = l.endNear()
	default:
		err = l.relay.Result().Err
	}
	if cut := l.live.Cut(); cut != nil {
		err = flow.Fail(flow.NoFlag, cut)
	} else if cut := l.pod.Drain.Err(); cut != nil && err != nil {
		// The pool closes its tunnels at the cut too, and may be first.
		err = flow.Fail(flow.NoFlag, cut)
	}
	l.rec.Close(err)
	l.live.Close()
}

// decide takes one View and asks it once.
func (d *Driver) decide(ctx context.Context, pod *capture.Pod, a *capture.Accepted) (*mesh.Workload, steer.Plan, error) {
	known, err := d.cfg.Views.WaitWorkload(ctx, d.cfg.Node, pod.Namespace, pod.Name, pod.ServiceAccount)
	if err != nil {
		return nil, steer.Plan{}, err
	}
	v := d.cfg.Views.Get()
	src := v.WorkloadByUID(known.UID)
	plan, err := steer.Outbound(v, src, a.Peer.Addr(), a.Original, d.cfg.Random)
	if err != nil || plan.Resolve == "" {
		return src, plan, err
	}
	ip, err := d.resolve(ctx, plan.Resolve, a.Original.Addr())
	if err != nil {
		return nil, steer.Plan{}, err
	}
	return src, plan.Resolved(ip), nil
}

// resolve picks at random among a name's addresses, preferably of the family that the client asked for.
func (d *Driver) resolve(ctx context.Context, host string, like netip.Addr) (netip.Addr, error) {
	all, err := d.cfg.Lookup(ctx, host)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("dns lookup of %s: %w", host, err)
	}
	var same, other []netip.Addr
	for _, ip := range all {
		if ip = ip.Unmap(); ip.Is4() == like.Is4() {
			same = append(same, ip)
		} else {
			other = append(other, ip)
		}
	}
	if len(same) == 0 {
		same = other
	}
	if len(same) == 0 {
		return netip.Addr{}, fmt.Errorf("dns lookup of %s: no address", host)
	}
	return same[d.cfg.Random(uint64(len(same)))], nil
}

// way is one planned connection on its way.
type way struct {
	*Driver
	pod   *capture.Pod
	src   *mesh.Workload
	plan  steer.Plan
	conn  *capture.Accepted
	trace claims.TraceID
	rec   *flow.Flow
}

func (w *way) open(ctx context.Context) (relay.Duplex, error) {
	switch w.plan.Via {
	case steer.Passthrough, steer.Plain:
		up, err := w.pod.Dial(ctx, w.plan.NextHop, netip.Addr{})
		if err != nil {
			return nil, flow.Fail(flow.Connect, fmt.Errorf("connection failed: %w", err))
		}
		return up, nil
	case steer.HBONE, steer.DoubleHBONE:
		tunnels, err := w.pool(w.pod)
		if err != nil {
			return nil, err
		}
		target := pool.Target{Source: w.src.Identity(), Expect: w.plan.Expect, Dst: w.plan.NextHop, SourceIP: w.conn.Peer.Addr()}
		stream, _, err := tunnels.Open(ctx, target, w.plan.Authority, w.headers())
		if err != nil {
			return nil, classify(err)
		}
		if w.plan.Via == steer.HBONE {
			return stream, nil
		}
		return w.inner(ctx, stream)
	}
	return nil, fmt.Errorf("no decision for %s: refusing to guess", w.conn.Original)
}

// headers describe the connection to the next hop.
func (w *way) headers() []hbone.Header {
	host := ""
	if w.plan.Service != nil {
		host = w.plan.Service.Hostname
	}
	return append(make([]hbone.Header, 0, 4),
		hbone.Header{Name: claims.HeaderBaggage, Value: claims.BaggageOf(w.src).String()},
		hbone.Header{Name: claims.HeaderForwarded, Value: claims.Forwarded(w.conn.Peer, host)},
		hbone.Header{Name: claims.HeaderTraceparent, Value: w.trace.String()})
}

func (d *Driver) random(b []byte) {
	for i := range b {
		b[i] = byte(d.cfg.Random(256))
	}
}

// pool is the pod's own; it lives until the pod's connections are cut.
func (d *Driver) pool(pod *capture.Pod) (*pool.Pool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.pools[pod]; p != nil {
		return p, nil
	}
	p := pool.New(pool.Config{
		MaxStreams: d.cfg.MaxStreams, Idle: d.cfg.IdleRelease,
		Dial: func(ctx context.Context, t pool.Target) (*hbone.Client, error) { return d.dial(ctx, pod, t) },
	})
	end := func(ctx context.Context) error {
		select {
		case <-pod.Drain.Forced():
		case <-ctx.Done():
		}
		d.mu.Lock()
		delete(d.pools, pod)
		d.mu.Unlock()
		p.Close()
		return nil
	}
	if !d.group.Go("tunnels of "+pod.UID, end) {
		p.Close()
		return nil, pool.ErrClosed
	}
	d.pools[pod] = p
	return p, nil
}

// Close closes the tunnels of all pods and waits for them.
func (d *Driver) Close() {
	d.group.Stop()
	_ = d.group.Wait()
}

// dial makes one authenticated connection to a proxy.
func (d *Driver) dial(ctx context.Context, pod *capture.Pod, t pool.Target) (*hbone.Client, error) {
	cert, err := d.cfg.Certs(t.Source).Certificate(ctx)
	if err != nil {
		return nil, flow.Fail(flow.IdentityError, err)
	}
	raw, err := pod.Dial(ctx, t.Dst, netip.Addr{})
	if err != nil {
		if timedOut(err) {
			return nil, flow.Fail(flow.NetworkPolicy,
				fmt.Errorf("connection timed out, maybe a NetworkPolicy is blocking HBONE port %d: %w", t.Dst.Port(), err))
		}
		return nil, flow.Fail(flow.Connect, fmt.Errorf("connection failed: %w", err))
	}
	limited, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	secured, _, err := d.cfg.TLS.Client(limited, raw, cert, t.Expect)
	if err != nil {
		return nil, flow.Fail(flow.Connect, err)
	}
	client, err := hbone.NewClient(secured, d.cfg.HBONE)
	if err != nil {
		_ = secured.Close()
		return nil, flow.Fail(flow.H2Failure, err)
	}
	return client, nil
}

// inner runs the second tunnel inside the first. It belongs to this one connection alone.
func (w *way) inner(ctx context.Context, outer *hbone.Stream) (relay.Duplex, error) {
	cert, err := w.cfg.Certs(w.src.Identity()).Certificate(ctx)
	if err != nil {
		_ = outer.Close()
		return nil, flow.Fail(flow.IdentityError, err)
	}
	limited, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	secured, peer, err := w.cfg.TLS.Client(limited, outer, cert, w.plan.Inner)
	if err != nil {
		_ = outer.Close()
		return nil, flow.Fail(flow.Connect, fmt.Errorf("through the gateway %s: %w", w.plan.NextHop, err))
	}
	client, err := hbone.NewClient(secured, w.cfg.HBONE)
	if err != nil {
		_ = outer.Close()
		return nil, flow.Fail(flow.H2Failure, err)
	}
	stream, resp, err := client.Connect(ctx, w.plan.Authority, append(w.headers(), hbone.Header{Name: claims.HeaderNetwork, Value: w.cfg.Network}))
	if err != nil {
		_ = client.Close()
		client.Wait()
		return nil, classify(err)
	}
	if !w.cfg.IgnoreBaggage {
		w.rec.Destination(claims.ParseBaggage(resp.Get(claims.HeaderBaggage)), peer)
	}
	return &innerStream{Stream: stream, client: client}, nil
}

// innerStream takes its connection along when it is closed.
type innerStream struct {
	*hbone.Stream
	client *hbone.Client
	once   sync.Once
}

// Close ends the stream, then, once that is told, its connection.
func (s *innerStream) Close() error {
	err := s.Stream.Close()
	s.once.Do(s.client.Drain)
	return err
}

// classify gives an error of a tunnel its flag.
func classify(err error) error {
	if _, ok := errors.AsType[*flow.Failure](err); ok {
		return err
	}
	if status, ok := errors.AsType[*hbone.StatusError](err); ok {
		return flow.Fail(flow.Connect, fmt.Errorf("http status: %d", status.Status))
	}
	return flow.Fail(flow.H2Failure, err)
}

func timedOut(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

func protocol(v steer.Via) string {
	switch v {
	case steer.HBONE:
		return "HBONE"
	case steer.DoubleHBONE:
		return "DOUBLEHBONE"
	case steer.Passthrough, steer.Plain:
	}
	return "TCP"
}

func facts(src *mesh.Workload, plan steer.Plan, a *capture.Accepted) flow.Facts {
	f := flow.Facts{
		Reporter: flow.Source, Src: a.Peer, Dst: plan.NextHop, HBONETarget: plan.Authority,
		SourceWorkload: src, DestWorkload: plan.Dest, Service: plan.Service, Mutual: plan.Via.Tunnelled(),
	}
	if f.Mutual {
		f.SourceID = src.Identity()
	}
	if plan.Dest != nil {
		f.DestID = plan.Dest.Identity()
	}
	return f
}
