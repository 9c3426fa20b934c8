package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/ztunnel/internal/admin"
	"github.com/marrowmesh/marrow/ztunnel/internal/config"
)

// leanInterval is how soon memory of a burst goes back to the system, about.
const leanInterval = 20 * time.Second

// errQuit is the cause of an end that was asked for over the admin port.
var errQuit = fmt.Errorf("%w over /quitquitquit", run.ErrStopped)

// proxy is a ztunnel in the making and then at work.
type proxy struct {
	cfg     *config.Config
	root    *obs.Logger // of which the rooms' loggers are named
	log     *obs.Logger
	levels  *obs.Levels
	metrics *prometheus.Registry
	ready   *run.Ready
	drain   *run.Drain
}

// Run serves until ctx ends, then drains. It returns nil after an end that was
// asked for.
func Run(ctx context.Context, sys System) error {
	cfg, err := config.Load(sys.Conf, sys.Files)
	if err != nil {
		return err
	}
	log, levels, err := obs.NewLogger(sys.Log, cfg.Log.Format, cfg.Log.Filter)
	if err != nil {
		return err // config has checked both
	}
	p := &proxy{
		cfg: cfg, root: log, log: log.Named("app"), levels: levels, ready: run.NewReady(), drain: run.NewDrain(),
		metrics: obs.NewRegistry("ztunnel", cfg.Node.IstioVersion),
	}
	p.announce()
	if err := p.capable(); err != nil {
		return err
	}
	return p.run(ctx)
}

func (p *proxy) announce() {
	build := obs.BuildInfo(p.cfg.Node.IstioVersion)
	p.log.Info("ztunnel starts", obs.F("version", build.Version), obs.F("revision", build.GitRevision), obs.F("go", build.RustVersion),
		obs.F("node", p.cfg.Node.Name), obs.F("control_plane", p.cfg.XDS.Address))
	for _, name := range p.cfg.Ignored {
		p.log.Warn("a setting has no effect here", obs.F("name", name))
	}
	if p.cfg.Auth.TokenPath == "" && p.cfg.Auth.Token == "" {
		p.log.Warn("no token: the control plane will see this node as unauthenticated")
	}
	log := p.root.Named("readiness")
	p.ready.OnChange(func(c run.Change) {
		switch {
		case !c.Done:
			log.Warn("Task '"+c.Task+"' is not complete any more", obs.F("awaiting", c.Pending))
		case c.Pending == 0:
			log.Info(fmt.Sprintf("Task '%s' complete (%v), marking server ready", c.Task, c.Elapsed.Round(time.Microsecond)))
		default:
			log.Info(fmt.Sprintf("Task '%s' complete (%v), still awaiting %d tasks", c.Task, c.Elapsed.Round(time.Microsecond), c.Pending))
		}
	})
}

// capable fails at the start, not at the first pod, when the process lacks what
// it needs.
func (p *proxy) capable() error {
	ns, err := netsys.CurrentNetns()
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	if err := ns.MarkWorks(p.cfg.Data.Mark); err != nil {
		return fmt.Errorf("this process cannot serve pods (it needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW): %w", err)
	}
	works := ns.TransparentWorks()
	switch {
	case p.cfg.Data.KeepSource == nil:
		keep := works == nil
		p.cfg.Data.KeepSource = &keep
		if works != nil {
			p.log.Warn("applications will not see their clients' addresses", obs.Err(works))
		}
	case *p.cfg.Data.KeepSource && works != nil:
		return fmt.Errorf("ENABLE_ORIG_SRC=true, but the kernel refuses foreign source addresses: %w", works)
	}
	return nil
}

// pages are the servers of the own namespace, bound before anything starts.
type pages struct{ admin, stats, ready []net.Listener }

// bind fails on the first port that is taken, leaving none open.
func (p *proxy) bind(ctx context.Context) (pg pages, err error) {
	defer func() {
		if err != nil {
			pg.close()
		}
	}()
	wild := func(port uint16) string { return net.JoinHostPort("", strconv.Itoa(int(port))) }
	for _, s := range []struct {
		to   *[]net.Listener
		addr string
	}{
		{&pg.ready, wild(p.cfg.Ports.Ready)},
		{&pg.stats, wild(p.cfg.Ports.Stats)},
		{&pg.admin, net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p.cfg.Ports.Admin)))},
	} {
		l, err := obs.Listen(ctx, s.addr)
		if err != nil {
			return pg, err
		}
		*s.to = append(*s.to, l)
	}
	// Loopback may have no IPv6; the pages are then on IPv4 alone.
	if l, err := obs.Listen(ctx, net.JoinHostPort("::1", strconv.Itoa(int(p.cfg.Ports.Admin)))); err == nil {
		pg.admin = append(pg.admin, l)
	}
	return pg, nil
}

func (pg *pages) close() {
	for _, ls := range [][]net.Listener{pg.admin, pg.stats, pg.ready} {
		for _, l := range ls {
			_ = l.Close()
		}
	}
}

func serveAll(g *run.Group, name string, ls []net.Listener, h http.Handler) {
	for _, l := range ls {
		g.Go(name, func(ctx context.Context) error { return obs.Serve(ctx, l, h) })
	}
}

func statsPages(g prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", obs.Metrics(g))
	mux.Handle("GET /stats/prometheus", obs.Metrics(g))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	return mux
}

// run is the life of the process: pages, control plane, data plane, end.
//
// Two groups: intake ends when the drain begins (no new pods, no new probes
// answered), core lives until the last connection has ended.
func (p *proxy) run(ctx context.Context) error {
	pg, err := p.bind(ctx)
	if err != nil {
		return err
	}
	ctx, quit := context.WithCancelCause(ctx)
	defer quit(nil)
	core := run.NewGroup(context.WithoutCancel(ctx))
	intake := run.NewGroup(core.Context())
	stateManager, workloads := p.ready.Task("state manager"), p.ready.Task("workload proxy manager")

	plane, err := p.compose(workloads)
	if err != nil {
		pg.close()
		return err
	}
	serveAll(intake, "readiness page", pg.ready, p.ready.Handler())
	serveAll(core, "stats page", pg.stats, statsPages(p.metrics))
	src := admin.Sources{
		View: plane.views.Get, Certs: plane.certs.States, Pods: plane.pods.States, Conns: plane.conns.List,
		Config: p.cfg, Build: obs.BuildInfo(p.cfg.Node.IstioVersion),
	}
	serveAll(core, "admin page", pg.admin, obs.NewAdmin(obs.AdminConfig{
		Title: "ztunnel", Levels: p.levels, Quit: func() { quit(errQuit) }, Dump: src.Dump,
	}))
	plane.startCore(core)
	threads := cmp.Or(p.cfg.Workers, runtime.GOMAXPROCS(0))
	core.Go("width", func(ctx context.Context) error { return run.Width(ctx, threads) })
	core.Go("lean", func(ctx context.Context) error { return run.Lean(ctx, leanInterval) })
	intake.Go("data plane", func(ctx context.Context) error {
		select {
		case <-plane.xds.Synced():
			stateManager.Done()
		case <-ctx.Done():
			return nil
		}
		return plane.serve(ctx)
	})
	// Whatever part of the core fails ends the whole; intake is watched here.
	ended := make(chan error, 1)
	core.Go("intake", func(context.Context) error {
		err := intake.Wait()
		ended <- err
		return nil
	})
	return p.end(ctx, core, intake, plane, ended)
}

// end waits for the reason to stop, and stops: politely when it was asked for, at
// once when a part failed.
func (p *proxy) end(ctx context.Context, core, intake *run.Group, plane *plane, ended <-chan error) error {
	var failure error
	limit := p.cfg.Drain
	select {
	case <-ctx.Done():
		p.log.Info("shutting down", obs.F("cause", context.Cause(ctx)), obs.F("deadline", limit))
	case failure = <-ended:
		limit = 0
	case <-core.Context().Done(): // its error comes from Wait below
		limit = 0
	}
	p.drain.Start()
	intake.Stop()
	idle := make(chan struct{})
	core.Go("wait for connections", func(context.Context) error {
		plane.pods.Wait()
		plane.own.wait()
		close(idle)
		return nil
	})
	if limit > 0 && !p.drain.Finish(idle, limit) {
		p.log.Warn("connections were cut at the deadline", obs.F("open", plane.conns.Count()))
	}
	p.drain.Cut()
	<-idle
	plane.close()
	core.Stop()
	err := errors.Join(failure, core.Wait())
	if err == nil {
		p.log.Info("ztunnel has ended")
	}
	return err
}
