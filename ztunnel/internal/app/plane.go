package app

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/internal/burst"
	"github.com/marrowmesh/marrow/internal/caclient"
	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/internal/zds"
	"github.com/marrowmesh/marrow/ztunnel/internal/capture"
	"github.com/marrowmesh/marrow/ztunnel/internal/certs"
	"github.com/marrowmesh/marrow/ztunnel/internal/config"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/flow"
	"github.com/marrowmesh/marrow/ztunnel/internal/inbound"
	"github.com/marrowmesh/marrow/ztunnel/internal/outbound"
	"github.com/marrowmesh/marrow/ztunnel/internal/pods"
	"github.com/marrowmesh/marrow/ztunnel/internal/view"
)

// plane is the parts that serve pods.
type plane struct {
	cfg      *config.Config
	log      *obs.Logger
	views    *view.Store
	certs    *certs.Manager
	conns    *conns.Table
	outbound *outbound.Driver
	pods     *pods.Manager
	xds      *xds.Client
	ca       *grpc.ClientConn
	// own is the part of the data plane for ztunnel's own pod.
	own *own
	// lot holds quiet connections, woken those that go on.
	lot   *burst.Lot
	woken *run.Group
}

// compose makes all parts and starts none.
func (p *proxy) compose(ready *run.Task) (*plane, error) {
	cfg := p.cfg
	pl := &plane{cfg: cfg, log: p.root, views: view.New(p.root.Named("state"))}
	var err error
	if pl.ca, err = dial(cfg, cfg.CA); err != nil {
		return nil, err
	}
	authority := caclient.New(pl.ca)
	pl.certs = certs.New(certs.Config{
		Log: p.root.Named("identity"), Random: rand.Float64,
		Fetch: func(ctx context.Context, id identity.ID) (*mtls.Certificate, error) {
			return authority.Fetch(ctx, id, true, cfg.SecretTTL)
		},
	})
	pl.conns = conns.NewTable(pl.views, p.root.Named("rbac"), cfg.Policy.InfoLogging)
	counters, err := flow.NewMetrics(p.metrics)
	if err != nil {
		return nil, err
	}
	record := flow.NewRecorder(counters, p.root)
	tls := mtls.New(mtls.Options{StdRecords: cfg.TLS.StdRecords, PostQuantum: cfg.TLS.PostQuantum})
	transport := hbone.Config{
		StreamWindow: cfg.HBONE.StreamWindow, ConnWindow: cfg.HBONE.ConnWindow, FrameSize: cfg.HBONE.FrameSize, Totals: tunnelTotals(p.metrics),
	}
	pl.woken = run.NewGroup(context.Background())
	pl.lot = burst.NewLot(func(fn func()) {
		pl.woken.Go("connection", func(context.Context) error { fn(); return nil })
	})
	in := inbound.New(inbound.Config{
		Node: cfg.Node.Name, Network: cfg.Node.Network, Views: pl.views, Conns: pl.conns, Record: record, Log: p.root.Named("inbound"),
		Certs: pl.certs.Source, TLS: tls, HBONE: transport, NaturalSource: !*cfg.Data.KeepSource, TunnelToPodIP: !cfg.HBONE.LoopbackApp,
		NoBaggage: !cfg.HBONE.Baggage, NoPenalty: !cfg.HBONE.Penalty, Lot: pl.lot,
	})
	pl.outbound = outbound.New(outbound.Config{
		Node: cfg.Node.Name, Network: cfg.Node.Network, Views: pl.views, Conns: pl.conns, Record: record, Log: p.root.Named("outbound"),
		Certs: pl.certs.Source, Lookup: lookup, TLS: tls, HBONE: transport, MaxStreams: cfg.HBONE.MaxStreams, IdleRelease: cfg.HBONE.UnusedRelease,
		IgnoreBaggage: !cfg.HBONE.Baggage, Near: pl.neighbour(), Arrive: in.Arrive, Lot: pl.lot,
	})
	shared := &capture.Config{
		Options: capture.Options{
			Mark: cfg.Data.Mark, ReusePort: cfg.Data.ReusePort, IPv6: cfg.Data.IPv6,
			KeepSource: *cfg.Data.KeepSource, KeepAlive: cfg.Data.KeepAlive,
		},
		Handlers: capture.Handlers{Outbound: pl.outbound.Handle, Plain: in.HandlePlain, HBONE: in.HandleHBONE},
		Log:      p.root.Named("capture"),
	}
	pl.pods = pods.New(pods.Config{
		Open: opener(shared), Drain: p.drain, Ready: ready, Log: p.root.Named("inpod"), Metrics: pods.NewMetrics(p.metrics),
	})
	pl.own = newOwn(cfg, shared, p.drain, pl.log)
	pl.xds = xds.NewClient(xds.ClientConfig{
		Dial:    func(context.Context) (*grpc.ClientConn, error) { return dial(cfg, cfg.XDS) },
		Node:    announcedNode(&cfg.Node, cfg.Metajson),
		Types:   pl.views.Types(),
		OnEvent: watchXDS(p.metrics, p.root.Named("xds")),
	})
	return pl, nil
}

// neighbour finds the pods of this node that a connection can reach without a tunnel: those served here, at an address that
// really is theirs. It is nil if every connection shall be tunnelled.
func (pl *plane) neighbour() func(w *mesh.Workload, ip netip.Addr) *capture.Pod {
	if pl.cfg.HBONE.SameNode == config.SameNodeTunnel {
		return nil
	}
	return func(w *mesh.Workload, ip netip.Addr) *capture.Pod {
		if w.ID.IsZero() {
			return nil
		}
		p, ok := pl.pods.Serving(zds.Info{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ID.ServiceAccount()}).(*capture.Proxy)
		if !ok || !p.Owns(ip) {
			return nil
		}
		return p.Pod()
	}
}

// dial prepares a channel to a part of the control plane.
func dial(cfg *config.Config, e config.Endpoint) (*grpc.ClientConn, error) {
	o := xds.DialOptions{RootCA: e.RootCA, ClusterID: cfg.Node.ClusterID, AltName: e.AltName, Headers: e.Headers}
	switch {
	case cfg.Auth.TokenPath != "":
		o.Token = xds.TokenFile(cfg.Auth.TokenPath)
	case cfg.Auth.Token != "":
		o.Token = func() (string, error) { return cfg.Auth.Token, nil }
	}
	return xds.DialControlPlane(e.Address, o)
}

// tunnelTotals counts what all tunnels do, and shows it.
func tunnelTotals(r prometheus.Registerer) *hbone.Totals {
	t := &hbone.Totals{}
	obs.Tunnels{Frames: t.Frames.Load, Copied: t.Copied.Load, Queued: t.Queued.Load}.Register(r)
	return t
}

// lookup resolves in ztunnel's own namespace.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// startCore starts what must live until the last connection has ended.
func (pl *plane) startCore(g *run.Group) {
	g.Go("control plane", pl.xds.Run)
	g.Go("certificates", pl.certs.Run)
	g.Go("certificates of local pods", func(ctx context.Context) error { return pl.certs.Follow(ctx, pl.views, pl.cfg.Node.Name) })
	g.Go("policy changes", pl.conns.Run)
}

// serve takes in pods until ctx ends, or the agent breaks the protocol.
func (pl *plane) serve(ctx context.Context) error {
	g := run.NewGroup(ctx)
	g.Go("retry pods", pl.pods.Run)
	g.Go("own tunnels", pl.own.serve)
	g.Go("node agent", func(ctx context.Context) error {
		return zds.NewClient(pl.log.Named("inpod")).Run(ctx, pl.cfg.Data.Socket, pl.pods)
	})
	return g.Wait()
}

func (pl *plane) close() {
	pl.outbound.Close()
	pl.lot.Close()
	_ = pl.woken.Wait()
	_ = pl.ca.Close()
}

// opener makes pods.Namespace of the descriptors that the agent sends.
func opener(shared *capture.Config) func(fd int) (pods.Namespace, error) {
	return func(fd int) (pods.Namespace, error) {
		ns, err := netsys.NetnsFromFD(fd)
		if err != nil {
			return nil, err
		}
		return &namespace{Netns: ns, shared: shared}, nil
	}
}

type namespace struct {
	*netsys.Netns

	shared *capture.Config
}

// Start implements pods.Namespace.
func (n *namespace) Start(uid string, info zds.Info, drain *run.Drain) (pods.Proxy, error) {
	return capture.Open(n.shared, n.Netns, &capture.Pod{
		UID: uid, Name: info.Name, Namespace: info.Namespace, ServiceAccount: info.ServiceAccount, Drain: drain,
	})
}

// announcedNode is how the control plane knows this proxy.
func announcedNode(n *config.Node, metajson map[string]string) *corev3.Node {
	ip := "1.1.1.1"
	if n.InstanceIP.IsValid() {
		ip = n.InstanceIP.String()
	}
	fields := map[string]*structpb.Value{
		"NAME": structpb.NewStringValue(n.PodName), "NAMESPACE": structpb.NewStringValue(n.PodNamespace),
		"INSTANCE_IPS": structpb.NewStringValue(ip), "NODE_NAME": structpb.NewStringValue(n.Name),
	}
	for k, v := range n.Metadata {
		fields[k] = structpb.NewStringValue(v)
	}
	for k, text := range metajson {
		v := &structpb.Value{}
		if json.Unmarshal([]byte(text), v) == nil { // checked by config
			fields[k] = v
		}
	}
	id := []string{"ztunnel", ip, n.PodName + "." + n.PodNamespace, n.PodNamespace + ".svc.cluster.local"}
	return &corev3.Node{Id: strings.Join(id, "~"), Metadata: &structpb.Struct{Fields: fields}}
}
