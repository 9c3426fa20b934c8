package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/marrowmesh/marrow/cni/internal/admin"
	"github.com/marrowmesh/marrow/cni/internal/config"
	"github.com/marrowmesh/marrow/cni/internal/handoff"
	"github.com/marrowmesh/marrow/cni/internal/plugin"
	"github.com/marrowmesh/marrow/cni/internal/pods"
	"github.com/marrowmesh/marrow/cni/internal/redirect"
	"github.com/marrowmesh/marrow/cni/internal/source/file"
	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
)

// errQuit is the cause of an end that was asked for over the admin port.
var errQuit = fmt.Errorf("%w over /quitquitquit", run.ErrStopped)

// System is what the process gets from outside.
type System struct {
	Conf *conf.Reader
	Log  io.Writer
}

// Main is the command line; it returns the exit code. The arguments of
// Istio's agent are accepted and mean nothing here.
func Main(args []string) int {
	if len(args) > 0 && (args[0] == "help" || args[0] == "-h" || args[0] == "--help") {
		help(os.Stdout)
		return run.ExitOK
	}
	return run.Main("cni", func(ctx context.Context) error {
		return Run(ctx, System{Conf: conf.FromEnv(), Log: obs.Stdout()})
	})
}

func help(w io.Writer) {
	_, _ = io.WriteString(w, "cni is the node agent of the mesh: it redirects the node's pods to the node proxy.\n\nSettings are environment variables:\n")
	r := conf.FromMap(nil)
	_, _ = config.Load(r) // only for the fields
	for _, f := range r.Fields() {
		_, _ = fmt.Fprintf(w, "  %s (default %s)\n      %s\n", f.Name, f.Default, f.About)
	}
}

// agent is the node agent in the making and then at work.
type agent struct {
	cfg     *config.Config
	log     *obs.Logger
	levels  *obs.Levels
	ready   *run.Ready
	host    *netsys.Netns
	metrics *admin.Metrics

	watched, opened *run.Task // of ready
}

// Run looks after the node's pods until ctx ends.
func Run(ctx context.Context, sys System) error {
	cfg, err := config.Load(sys.Conf)
	if err != nil {
		return err
	}
	log, levels, err := obs.NewLogger(sys.Log, cfg.LogFormat, cfg.LogFilter)
	if err != nil {
		return err
	}
	host, err := netsys.CurrentNetns()
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	if err := host.MarkWorks(redirect.ProxyMark); err != nil {
		return fmt.Errorf("the agent cannot redirect pods (it needs CAP_SYS_ADMIN and CAP_NET_ADMIN): %w", err)
	}
	registry := obs.NewRegistry("istio-cni", "")
	a := &agent{cfg: cfg, log: log, levels: levels, ready: run.NewReady(), host: host, metrics: admin.NewMetrics(registry)}
	log.Info("node agent starts", obs.F("version", obs.BuildInfo("").Version), obs.F("node", cfg.Node), obs.F("source", cfg.Source))
	a.watched, a.opened = a.ready.Task("pods of the node"), a.ready.Task("sockets")
	public, err := obs.Listen(ctx, cfg.ReadyAddr)
	if err != nil {
		return err
	}
	private, err := obs.Listen(ctx, cfg.AdminAddr)
	if err != nil {
		_ = public.Close()
		return err
	}
	g := run.NewGroup(ctx)
	g.Go("readiness", func(ctx context.Context) error {
		return obs.Serve(ctx, public, admin.Public(a.ready, registry))
	})
	return a.run(g, private)
}

func (a *agent) run(g *run.Group, private net.Listener) error {
	src, err := file.Open(a.cfg.Source, a.cfg.Node, a.log.Named("source"))
	if err != nil {
		g.Stop()
		_ = private.Close()
		return errors.Join(err, g.Wait())
	}
	proxy := handoff.New(a.log.Named("handoff"), a.metrics.Proxies)
	manager := a.manager(src, proxy)
	proxy.Bind(manager)
	g.Go("admin", func(ctx context.Context) error {
		quit := make(chan struct{}, 1)
		stop := func() {
			select {
			case quit <- struct{}{}:
			default:
			}
		}
		g.Go("quit", func(ctx context.Context) error {
			select {
			case <-quit:
				return errQuit
			case <-ctx.Done():
				return nil
			}
		})
		return obs.Serve(ctx, private, admin.Private(a.levels, stop, func() any {
			return map[string]any{"config": a.cfg, "pods": manager.Dump()}
		}))
	})
	g.Go("watch readiness", func(ctx context.Context) error {
		select {
		case <-manager.Synced():
			a.watched.Done()
		case <-ctx.Done():
		}
		return nil
	})
	g.Go("pods", manager.Run)
	a.sockets(g, proxy, manager)
	err = g.Wait()
	a.log.Info("node agent ends, enrolled pods stay redirected", obs.Err(err))
	if errors.Is(err, run.ErrStopped) {
		return nil
	}
	return err
}

// sockets opens what the node proxy and the CNI plugin talk to.
func (a *agent) sockets(g *run.Group, proxy *handoff.Server, manager *pods.Manager) {
	g.Go("sockets", func(ctx context.Context) error {
		for _, path := range []string{a.cfg.ProxySocket, a.cfg.PluginSocket} {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return fmt.Errorf("directory of socket %s: %w", path, err)
			}
		}
		if err := proxy.Listen(a.cfg.ProxySocket); err != nil {
			return err
		}
		l, err := plugin.Listen(a.cfg.PluginSocket)
		if err != nil {
			return err
		}
		g.Go("plugin", func(ctx context.Context) error {
			return obs.Serve(ctx, l, plugin.Handler(manager, a.log.Named("plugin")))
		})
		a.opened.Done()
		return proxy.Serve(ctx)
	})
}

func (a *agent) manager(src pods.Source, proxy pods.Proxy) *pods.Manager {
	options := redirect.Options{
		Probe4: a.cfg.Probe4, Probe6: a.cfg.Probe6, IPv6: a.cfg.IPv6, Loopback6: a.cfg.IPv6, DNS: a.cfg.DNS,
	}
	return pods.New(pods.Config{
		Source:    src,
		Selection: pods.Selection{SystemNamespace: a.cfg.SystemNamespace, ExcludeNamespaces: a.cfg.ExcludeNamespaces},
		Redirect:  options,
		Open:      a.open,
		Loopback6: func(n pods.Namespace) bool {
			ns, ok := n.(*netsys.Netns)
			return ok && ns.Loopback6()
		},
		Proxy:   proxy,
		Probes:  func(list []redirect.Enrolled) error { return a.host.Apply(redirect.Node(options, a.cfg.Probers, list)) },
		CloseFD: netsys.CloseFD,
		Log:     a.log.Named("pods"),
		OnState: a.metrics.Moved,
	})
}

// open refuses the node's own namespace: rules there would redirect the node.
func (a *agent) open(path string) (pods.Namespace, error) {
	ns, err := netsys.OpenNetns(path)
	if err != nil {
		return nil, err
	}
	if ns.Equal(a.host) {
		_ = ns.Close()
		return nil, fmt.Errorf("network namespace %s is the node's own", path)
	}
	return ns, nil
}
