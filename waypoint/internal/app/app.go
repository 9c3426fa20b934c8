package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/internal/caclient"
	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/waypoint/internal/admin"
	"github.com/marrowmesh/marrow/waypoint/internal/config"
	"github.com/marrowmesh/marrow/waypoint/internal/edge"
	"github.com/marrowmesh/marrow/waypoint/internal/front"
	"github.com/marrowmesh/marrow/waypoint/internal/intake"
	"github.com/marrowmesh/marrow/waypoint/internal/jwks"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/spans"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Deps is what a waypoint takes from its surroundings; nil fields are made from the configuration.
type Deps struct {
	Out    io.Writer // log and access log
	Log    *obs.Logger
	Levels *obs.Levels
	Cert   mtls.Source // own identity; nil = from the authority
	Dial   upstream.DialFunc
	Listen func(ctx context.Context, port uint16) (net.Listener, error) // for tunnels
	XDS    func(ctx context.Context) (*grpc.ClientConn, error)          // nil = by the configuration
	// Threads is how many may run Go code at most; 0 = that and memory are the runtime's to decide.
	Threads int
	Env     func(name string) (string, bool) // variables that configuration names; nil = none
	// Router is a gateway at the mesh's border: it has listeners of its own and ends no tunnels.
	Router bool
	// Bound is told the address of the tunnels' listener.
	Bound func(net.Addr)
}

// garbage is how much requests may leave behind between two collections, if the configuration is smaller than that.
const garbage = 24 << 20

// leanEvery is how often memory that a burst has left behind is given back.
const leanEvery = 10 * time.Second

// reportEvery is how often the bytes of open connections are counted.
const reportEvery = 5 * time.Second

// waypoint is the composed program.
type waypoint struct {
	cfg   *config.Config
	deps  Deps
	log   *obs.Logger
	ready *run.Ready
	in    *intake.Intake
	ups   *upstream.Store
	front *front.Server
	edge  *edge.Server
	spans *spans.Exporter
	admin http.Handler
	stats http.Handler
}

// Run runs a waypoint until ctx ends and the drain after it is over.
func Run(ctx context.Context, cfg *config.Config, deps Deps) error {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	g := run.NewGroup(context.WithoutCancel(ctx))
	w, err := compose(g, cfg, deps, quit)
	if err != nil {
		g.Stop()
		return errors.Join(err, g.Wait())
	}
	serving := run.NewGroup(g.Context())
	serving.Go("spans", w.spans.Run) // it ends while the ways to collectors are still there
	if deps.Threads > 0 {
		serving.Go("width", func(ctx context.Context) error { return run.Width(ctx, deps.Threads) })
		serving.Go("collect", func(ctx context.Context) error { return run.Collect(ctx, garbage) })
		serving.Go("lean", func(ctx context.Context) error { return run.Lean(ctx, leanEvery) })
	}
	err = w.serve(ctx, serving)
	if err == nil {
		w.log.Info("waypoint serves", obs.F("pod", cfg.Pod), obs.F("identity", cfg.Identity))
		select {
		case <-ctx.Done():
			w.drain(g.Context())
		case <-g.Context().Done():
		case <-serving.Context().Done():
		}
	}
	serving.Stop()
	err = errors.Join(err, serving.Wait())
	g.Stop()
	return errors.Join(err, g.Wait())
}

// compose builds the rooms. What it starts runs in g, which outlives the drain.
func compose(g *run.Group, cfg *config.Config, deps Deps, quit func()) (*waypoint, error) {
	w := &waypoint{cfg: cfg, deps: deps, log: deps.Log, ready: run.NewReady()}
	id, err := identity.Parse(cfg.Identity)
	if err != nil {
		return nil, fmt.Errorf("own identity: %w", err)
	}
	token := xds.TokenFile(cfg.Token)
	if w.deps.Cert == nil {
		conn, err := xds.DialControlPlane(cfg.CA.Address, xds.DialOptions{RootCA: cfg.CA.RootCA, Token: token, ClusterID: cfg.ClusterID, AltName: cfg.CA.AltName})
		if err != nil {
			return nil, err
		}
		ca := caclient.New(conn)
		certs := newCertificates(id, func(ctx context.Context) (*mtls.Certificate, error) { return ca.Fetch(ctx, id, false, cfg.SecretTTL) }, w.log.Named("certs"))
		w.deps.Cert = certs
		task := w.ready.Task("certificate")
		g.Go("certificate", func(ctx context.Context) error {
			defer func() { _ = conn.Close() }()
			return certs.run(ctx, task.Done)
		})
	}
	if w.deps.Dial == nil {
		w.deps.Dial = dial
	}
	registry := obs.NewRegistry("proxy", cfg.IstioVersion)
	tel := telemetry.New(registry, deps.Out)
	g.Go("telemetry", func(ctx context.Context) error { return tel.Report(ctx, reportEvery) })
	tls := mtls.New(mtls.Options{StdRecords: cfg.TLS.StdRecords, PostQuantum: cfg.TLS.PostQuantum})
	totals := &hbone.Totals{} // of all tunnels, there and back: together they queue so much and no more
	obs.Tunnels{Frames: totals.Frames.Load, Copied: totals.Copied.Load, Queued: totals.Queued.Load}.Register(registry)
	tunnels := upstream.NewTunnels(w.deps.Cert, tls, w.deps.Dial, hbone.Config{Totals: totals}, cfg.TunnelIdle, g)
	g.Go("tunnels", tunnels.Prune)
	w.ups = upstream.NewStore(tunnels, time.Now)
	g.Go("names", func(ctx context.Context) error {
		return w.ups.Resolve(ctx, func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		})
	})
	g.Go("health", func(ctx context.Context) error { return w.ups.CheckHealth(ctx, rand.Uint64N) })
	w.in = intake.New(w.ups, w.log.Named("intake"))
	w.spans = spans.New(spans.Config{Upstreams: w.ups, Rand: rand.Uint64N, Log: w.log.Named("spans"), Registry: registry})
	keys := jwks.New(jwks.Config{Via: w.keyWay, Group: g, Log: w.log.Named("jwks")})
	w.in.OnTable(func(t *table.Table) { keys.Need(t.KeySources()) })
	handler := phases.New(phases.Config{
		Table: w.in.Table, Upstreams: w.ups, Rand: rand.Uint64N, NewID: newID, Telemetry: tel, Log: w.log.Named("phases"), Host: cfg.Pod, Group: g,
		Node: nodeCluster(id, cfg), Self: self(cfg), Spans: w.spans, Env: deps.Env, Keys: keys,
	})
	w.front = front.New(front.Config{
		Table: w.in.Table, Cert: w.deps.Cert, Phases: handler, Detect: cfg.Detect, Log: w.log.Named("front"), TLS: tls, HBONE: hbone.Config{MaxStreams: 100, Totals: totals},
	})
	w.border(id, handler)
	if err := w.subscribe(g, token); err != nil {
		return nil, err
	}
	w.stats = obs.Metrics(registry)
	node, err := node(cfg, deps.Router)
	if err != nil {
		return nil, err
	}
	pages := (&admin.Sources{
		Config: cfg, Version: obs.BuildInfo(cfg.IstioVersion).Version, Node: node, Intake: w.in, Upstreams: w.ups, Cert: w.deps.Cert,
		Stats: registry, Levels: deps.Levels, Pending: w.ready.Pending, Quit: quit, Started: time.Now(), Now: time.Now,
	}).Pages()
	pages["/explain"] = admin.Explain(handler, id)
	w.admin = obs.NewAdmin(obs.AdminConfig{Title: "Marrow waypoint", Local: pages, Pages: map[string]http.Handler{"/stats/prometheus": w.stats}})
	return w, nil
}

// keyWay is the way to a cluster that publishes the keys of a token's issuer.
func (w *waypoint) keyWay(cluster string) http.RoundTripper {
	if c := w.ups.Get(cluster); c != nil && c.Config.Outside != nil {
		o := c.Config.Outside
		return jwks.Outside{Host: o.Host, Port: o.Port, TLS: o.TLS, Timeout: c.Config.ConnectTimeout}
	}
	return upstream.Way{Store: w.ups, Cluster: cluster, Rand: rand.Uint64N}
}

// subscribe keeps the configuration up to date. It goes on during the drain: open requests may still need a new endpoint.
func (w *waypoint) subscribe(g *run.Group, token func() (string, error)) error {
	node, err := node(w.cfg, w.deps.Router)
	if err != nil {
		return err
	}
	open := w.deps.XDS
	if open == nil {
		open = func(context.Context) (*grpc.ClientConn, error) {
			return xds.DialControlPlane(w.cfg.XDS.Address, xds.DialOptions{RootCA: w.cfg.XDS.RootCA, Token: token, ClusterID: w.cfg.ClusterID, AltName: w.cfg.XDS.AltName})
		}
	}
	log := w.log.Named("xds")
	task := w.ready.Task("configuration")
	c := xds.NewClient(xds.ClientConfig{Dial: open, Node: node, Types: w.in.Types(), OnEvent: func(e xds.Event) {
		switch e.Kind {
		case xds.EventConnected:
			log.Info("connected to the control plane")
		case xds.EventTerminated:
			log.Warn("stream to the control plane ended", obs.F("reason", e.Reason), obs.Err(e.Err))
		case xds.EventResponse, xds.EventRejected:
		}
	}})
	w.in.OnNames(c.SetNames)
	w.in.OnComplete(task.Done)
	g.Go("xds", c.Run)
	return nil
}

// node says who asks, in the form that Istio's control plane reads.
func node(cfg *config.Config, router bool) (*corev3.Node, error) {
	ip := "0.0.0.0"
	if cfg.IP.IsValid() {
		ip = cfg.IP.String()
	}
	meta := map[string]any{}
	for k, v := range cfg.Metadata {
		meta[k] = v
	}
	id, err := identity.Parse(cfg.Identity)
	if err != nil {
		return nil, err
	}
	for k, v := range map[string]string{
		"NAME": cfg.Pod, "NAMESPACE": cfg.Namespace, "SERVICE_ACCOUNT": id.ServiceAccount(), "CLUSTER_ID": cfg.ClusterID,
		"INSTANCE_IPS": ip, "ISTIO_VERSION": cfg.IstioVersion, "GENERATOR": "",
	} {
		if v != "" {
			meta[k] = v
		}
	}
	kind := "waypoint"
	if router {
		kind = "router"
	}
	s, err := structpb.NewStruct(meta)
	if err != nil {
		return nil, fmt.Errorf("node metadata: %w", err)
	}
	return &corev3.Node{
		Id:       kind + "~" + ip + "~" + cfg.Pod + "." + cfg.Namespace + "~" + cfg.Namespace + ".svc." + cfg.Domain,
		Cluster:  nodeCluster(id, cfg),
		Metadata: s,
	}, nil
}

// nodeCluster is the name that the replicas of this waypoint share.
func nodeCluster(id identity.ID, cfg *config.Config) string {
	return id.ServiceAccount() + "." + cfg.Namespace
}

// serve binds every port before anything is served from any.
func (w *waypoint) serve(ctx context.Context, g *run.Group) error {
	var tunnels net.Listener
	if !w.deps.Router {
		var err error
		if tunnels, err = w.deps.Listen(ctx, w.cfg.Ports.HBONE); err != nil {
			return fmt.Errorf("tunnels' port %d: %w", w.cfg.Ports.HBONE, err)
		}
	}
	ready := http.NewServeMux()
	ready.Handle("/healthz/ready", w.ready.Handler())
	stats := http.NewServeMux()
	stats.Handle("/stats/prometheus", w.stats)
	stats.Handle("/metrics", w.stats)
	stats.Handle("/healthz/ready", w.ready.Handler())
	pages := []struct {
		name string
		addr string
		h    http.Handler
	}{
		{"admin", "127.0.0.1:" + strconv.Itoa(int(w.cfg.Ports.Admin)), w.admin},
		{"stats", ":" + strconv.Itoa(int(w.cfg.Ports.Stats)), stats},
		{"readiness", ":" + strconv.Itoa(int(w.cfg.Ports.Ready)), ready},
	}
	for _, p := range pages {
		l, err := obs.Listen(ctx, p.addr)
		if err != nil {
			if tunnels != nil {
				_ = tunnels.Close()
			}
			return fmt.Errorf("%s: %w", p.name, err)
		}
		g.Go(p.name, func(ctx context.Context) error { return obs.Serve(ctx, l, p.h) })
	}
	g.Go("edge", w.edge.Run)
	if tunnels == nil {
		return nil
	}
	if w.deps.Bound != nil {
		w.deps.Bound(tunnels.Addr())
	}
	g.Go("tunnels", func(ctx context.Context) error { return w.front.Serve(ctx, tunnels) })
	return nil
}

// drain lets clients go elsewhere and what is open finish, until the deadline.
func (w *waypoint) drain(ctx context.Context) {
	w.ready.Task(admin.Draining) // never done: not ready any more
	open := func() int64 { return w.front.Open() + w.edge.Open() }
	w.log.Info("draining", obs.F("open", open()), obs.F("deadline", w.cfg.Deadline.String()))
	began := time.Now()
	w.front.Drain()
	w.edge.Drain()
	w.until(ctx, began.Add(w.cfg.Deadline), func() bool { return open() == 0 && time.Since(began) >= w.cfg.Drain })
	cut := open()
	w.front.DrainLate()
	if cut == 0 { // the last words of every tunnel have to leave
		w.until(ctx, time.Now().Add(time.Second), func() bool { return w.front.Conns() == 0 })
	}
	w.log.Info("drained", obs.F("cut", cut), obs.F("after", time.Since(began).Round(time.Millisecond).String()))
}

// until waits for done, the moment or the end of ctx.
func (w *waypoint) until(ctx context.Context, limit time.Time, done func() bool) {
	const look = 10 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	for !done() && time.Now().Before(limit) && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func dial(ctx context.Context, dst netip.AddrPort) (upstream.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 10 * time.Second, Count: 6}}
	c, err := d.DialContext(ctx, "tcp", dst.String())
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("connection to %s is %T, want TCP", dst, c)
	}
	return t, nil
}

// newID is a random UUID (version 4).
func newID() string {
	var b strings.Builder
	const digits = "0123456789abcdef"
	hi, lo := rand.Uint64(), rand.Uint64()
	hi = hi&^0xf000 | 0x4000
	lo = lo&^(3<<62) | 2<<62
	for i, v := range [...]uint64{hi, lo} {
		for n := range 16 {
			if at := i*16 + n; at == 8 || at == 12 || at == 16 || at == 20 {
				b.WriteByte('-')
			}
			b.WriteByte(digits[v>>(60-4*n)&15])
		}
	}
	return b.String()
}
