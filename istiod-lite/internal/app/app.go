package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
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

// Run is the control plane until ctx ends.
func Run(ctx context.Context, cfg config.Config) error {
	log, levels, err := obs.NewLogger(obs.Stdout(), cfg.LogFormat, cfg.LogLevel)
	if err != nil {
		return err
	}
	ready := run.NewReady()
	sourceRead := ready.Task("source")

	store, err := filestore.Open(cfg.SourceDir)
	if err != nil {
		return err
	}
	verifier, err := authn.NewTokenVerifier(cfg.TokenJWKS, cfg.TrustDomain)
	if err != nil {
		return err
	}
	now := time.Now()
	authority, err := ca.Open(cfg.CADir, cfg.TrustDomain, now)
	if err != nil {
		return err
	}
	serverCert, err := authority.ServerCertificate(cfg.Names(), now)
	if err != nil {
		return err
	}

	m := newMetrics()
	served, pods := publish.New(), newPodIndex()
	statuses := status.NewWriter(store, func(k manifest.Key, err error) {
		log.Named("status").Debug("not written", obs.F("object", k.String()), obs.Err(err))
	})
	eng := newEngine(cfg, log.Named("derive"), store, served, statuses, pods)
	secrets := serve.NewSecrets(authority, served, cfg.WorkloadTTL)
	discoveryServer := xds.NewServer(xds.ServerConfig{
		Gatekeeper: &serve.Gate{
			Authenticator: verifier, Store: served, Gateways: pods, Secrets: secrets,
			OnRefuse: func(node string, err error) {
				m.refused.WithLabelValues().Inc()
				log.Named("xds").Warn("stream refused", obs.F("node", node), obs.Err(err))
			},
		},
		OnNack: func(node, url, message string) {
			m.nacks.WithLabelValues(url).Inc()
			log.Named("xds").Warn("client refused resources", obs.F("node", node), obs.F("type", url), obs.F("reason", message))
		},
	})
	m.watch(discoveryServer)

	secure, err := obs.Listen(ctx, cfg.SecureAddr)
	if err != nil {
		return err
	}
	monitor, err := obs.Listen(ctx, cfg.MonitorAddr)
	if err != nil {
		return err
	}
	web, err := obs.Listen(ctx, cfg.HTTPAddr)
	if err != nil {
		return err
	}
	rpc := newServer(serverCert)
	discovery.RegisterAggregatedDiscoveryServiceServer(rpc, discoveryServer)
	capb.RegisterIstioCertificateServiceServer(rpc, ca.NewService(ca.ServiceConfig{
		Authority: authority, Authenticator: verifier, Pods: pods, TrustDomain: cfg.TrustDomain, TrustedNodeAccounts: cfg.TrustedNodeAccounts,
		OnIssue: func(caller authn.Caller, id identity.ID, err error) { issued(log.Named("ca"), m, caller, id, err) },
	}))

	g := run.NewGroup(ctx)
	g.Go("statuses", statuses.Run)
	g.Go("secrets", secrets.Run)
	g.Go("source", func(ctx context.Context) error {
		err := file.New(store).Run(ctx, func(b source.Batch) error {
			if err := eng.handle(b); err != nil {
				return err
			}
			sourceRead.Done()
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	g.Go("xds and ca", func(ctx context.Context) error { return serveRPC(ctx, rpc, secure) })
	g.Go("monitor", func(ctx context.Context) error {
		return obs.Serve(ctx, monitor, obs.NewAdmin(obs.AdminConfig{Title: "istiod-lite", Levels: levels, Pages: pages(m, discoveryServer, served)}))
	})
	g.Go("ready", func(ctx context.Context) error {
		return obs.Serve(ctx, web, readyMux(ready))
	})
	log.Info("istiod-lite serves", obs.F("secure", secure.Addr().String()), obs.F("monitor", monitor.Addr().String()),
		obs.F("source", cfg.SourceDir), obs.F("root", filepath.Join(cfg.CADir, ca.RootFile)))
	return g.Wait()
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
	if ctx.Err() != nil {
		return nil
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
