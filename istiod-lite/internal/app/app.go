package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	capb "github.com/marrowmesh/marrow/api/ca"
	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/istiod-lite/internal/authn"
	"github.com/marrowmesh/marrow/istiod-lite/internal/ca"
	"github.com/marrowmesh/marrow/istiod-lite/internal/config"
	"github.com/marrowmesh/marrow/istiod-lite/internal/publish"
	"github.com/marrowmesh/marrow/istiod-lite/internal/serve"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source/file"
	"github.com/marrowmesh/marrow/istiod-lite/internal/status"
)

// stopLimit is how long open streams may take to end at shutdown.
const stopLimit = 5 * time.Second

// maxRequest bounds what a client may send in one message, as Istio does.
const maxRequest = 4 << 20

// parts are the rooms that one process is made of.
type parts struct {
	log       *obs.Logger
	levels    *obs.Levels
	store     *filestore.Store
	verifier  *authn.TokenVerifier
	authority *ca.Authority
	metrics   *metrics
	ready     *run.Ready
	served    *publish.Store
	statuses  *status.Writer
	secrets   *serve.Secrets
	discovery *xds.Server
	engine    *engine
	pods      *podIndex
}

// Run is the control plane until ctx ends.
func Run(ctx context.Context, cfg config.Config) error {
	p, err := build(cfg)
	if err != nil {
		return err
	}
	rpc, err := p.server(cfg)
	if err != nil {
		return err
	}
	secure, err := obs.Listen(ctx, cfg.SecureAddr)
	if err != nil {
		return err
	}
	monitor, err := obs.Listen(ctx, cfg.MonitorAddr)
	if err != nil {
		return err
	}
	admin, err := obs.Listen(ctx, cfg.AdminAddr)
	if err != nil {
		return err
	}
	web, err := obs.Listen(ctx, cfg.HTTPAddr)
	if err != nil {
		return err
	}
	sourceRead := p.ready.Task("source")
	known := make(chan struct{}) // closed when everything that there was at the start is published
	g := run.NewGroup(ctx)
	g.Go("statuses", p.statuses.Run)
	g.Go("secrets", p.secrets.Run)
	g.Go("source", func(ctx context.Context) error { return p.follow(ctx, func() { sourceRead.Done(); close(known) }) })
	g.Go("xds and ca", func(ctx context.Context) error {
		// A proxy that came back before we know the mesh would be told that all it has, policies included, is gone.
		select {
		case <-known:
			return serveRPC(ctx, rpc, secure)
		case <-ctx.Done():
			return secure.Close()
		}
	})
	g.Go("monitor", func(ctx context.Context) error { return obs.Serve(ctx, monitor, monitorMux(p.metrics)) })
	g.Go("admin", func(ctx context.Context) error {
		return obs.Serve(ctx, admin, obs.NewAdmin(obs.AdminConfig{Title: "istiod-lite", Levels: p.levels, Pages: debugPages(p.discovery, p.served)}))
	})
	g.Go("ready", func(ctx context.Context) error { return obs.Serve(ctx, web, readyMux(p.ready)) })
	p.log.Info("istiod-lite serves", obs.F("secure", secure.Addr().String()), obs.F("monitor", monitor.Addr().String()),
		obs.F("source", cfg.SourceDir), obs.F("root", filepath.Join(cfg.CADir, ca.RootFile)))
	return g.Wait()
}

// build makes the rooms; nothing listens or runs yet.
func build(cfg config.Config) (*parts, error) {
	log, levels, err := obs.NewLogger(obs.Stdout(), cfg.LogFormat, cfg.LogLevel)
	if err != nil {
		return nil, err
	}
	p := &parts{log: log, levels: levels, ready: run.NewReady(), metrics: newMetrics(), served: publish.New(), pods: newPodIndex()}
	if p.store, err = filestore.Open(cfg.SourceDir); err != nil {
		return nil, err
	}
	if p.verifier, err = authn.NewTokenVerifier(cfg.TokenJWKS, cfg.TrustDomain); err != nil {
		return nil, err
	}
	if p.authority, err = ca.Open(cfg.CADir, cfg.TrustDomain, time.Now()); err != nil {
		return nil, err
	}
	p.statuses = status.NewWriter(p.store, func(k manifest.Key, err error) {
		log.Named("status").Debug("not written", obs.F("object", k.String()), obs.Err(err))
	})
	p.engine = newEngine(cfg, log.Named("derive"), p.store, p.served, p.statuses, p.pods)
	p.secrets = serve.NewSecrets(p.authority, p.served, cfg.WorkloadTTL)
	streams := log.Named("xds")
	p.discovery = xds.NewServer(xds.ServerConfig{
		Gatekeeper: &serve.Gate{
			Authenticator: p.verifier, Store: p.served, Gateways: p.pods, Secrets: p.secrets,
			NodeAccounts: cfg.TrustedNodeAccounts,
			OnRefuse: func(node string, err error) {
				p.metrics.refused.WithLabelValues().Inc()
				streams.Warn("stream refused", obs.F("node", node), obs.Err(err))
			},
		},
		OnNack: func(node, url, message string) {
			p.metrics.nacks.WithLabelValues(url).Inc()
			streams.Warn("client refused resources", obs.F("node", node), obs.F("type", url), obs.F("reason", message))
		},
	})
	p.metrics.watch(p.discovery)
	return p, nil
}

// server is the gRPC server with discovery and the certificate authority.
func (p *parts) server(cfg config.Config) (*grpc.Server, error) {
	cert, err := p.authority.ServerCertificate(cfg.Names(), time.Now())
	if err != nil {
		return nil, err
	}
	rpc := newServer(cert)
	discovery.RegisterAggregatedDiscoveryServiceServer(rpc, p.discovery)
	capb.RegisterIstioCertificateServiceServer(rpc, ca.NewService(ca.ServiceConfig{
		Authority: p.authority, Authenticator: p.verifier, Pods: p.pods, TrustDomain: cfg.TrustDomain, TrustedNodeAccounts: cfg.TrustedNodeAccounts,
		OnIssue: func(caller authn.Caller, id identity.ID, err error) {
			issued(p.log.Named("ca"), p.metrics, caller, id, err)
		},
	}))
	return rpc, nil
}

// follow takes the source's batches to the engine and tells when the first one, which is everything, is through.
func (p *parts) follow(ctx context.Context, known func()) error {
	first := sync.OnceFunc(known)
	err := file.New(p.store).Run(ctx, func(b source.Batch) error {
		if err := p.engine.handle(b); err != nil {
			return err
		}
		first()
		return nil
	})
	if ctx.Err() != nil {
		err = nil // told to stop
	}
	return err
}

func readyMux(r *run.Ready) http.Handler {
	h, mux := r.Handler(), http.NewServeMux()
	mux.Handle("/healthz/ready", h)
	// Istio's control plane is probed here.
	mux.HandleFunc("/ready", func(w http.ResponseWriter, req *http.Request) {
		probe := req.Clone(req.Context())
		probe.URL.Path = "/healthz/ready"
		h.ServeHTTP(w, probe)
	})
	return mux
}

// newServer is the gRPC server with Istio's limits.
func newServer(cert tls.Certificate) *grpc.Server {
	return grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionAge: 30 * time.Minute, MaxConnectionAgeGrace: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second, PermitWithoutStream: true}),
	)
}

// serveRPC serves until ctx ends; streams then get a moment to end.
func serveRPC(ctx context.Context, rpc *grpc.Server, l net.Listener) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// Discovery streams never end by themselves: they are cut, and clients come back elsewhere.
		t := time.AfterFunc(stopLimit/5, rpc.Stop)
		defer t.Stop()
		rpc.GracefulStop()
	})
	err := rpc.Serve(l)
	if !stop() {
		<-stopped
	}
	if err == nil || ctx.Err() != nil {
		return nil //nolint:nilerr // told to stop
	}
	return fmt.Errorf("serve xDS and CA on %s: %w", l.Addr(), err)
}

func issued(log *obs.Logger, m *metrics, caller authn.Caller, id identity.ID, err error) {
	m.requests.WithLabelValues().Inc()
	if err != nil {
		m.failures.WithLabelValues().Inc()
		log.Warn("certificate refused", obs.F("caller", caller.Identity.String()), obs.F("pod", caller.PodName), obs.F("identity", id.String()), obs.Err(err))
		return
	}
	m.successes.WithLabelValues().Inc()
	log.Debug("certificate issued", obs.F("caller", caller.Identity.String()), obs.F("identity", id.String()))
}
