package phases

import (
	"strings"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/filters"
)

// told counts and logs what policies say that refuse nothing: those of action AUDIT, and those in dry-run.
func (h *Handler) told(f *filters.RBAC, v filters.Verdict, s *Session, path string) {
	if f.Audits() && v.Policy != "" {
		h.cfg.Telemetry.Audited(v.Policy)
		h.cfg.Log.Info("audited", obs.F("policy", v.Policy), obs.F("src.identity", s.principal()), obs.F("dst", s.Authority), obs.F("path", path))
	}
	// Shadow rules that choose what a server is asked about are on no trial.
	if v.Tried && strings.HasPrefix(f.ShadowKey(), "istio_dry_run_") {
		h.cfg.Telemetry.Tried(v.Shadow, v.Would)
		h.cfg.Log.Debug("policies on trial", obs.F("policy", v.Shadow), obs.F("allowed", v.Would), obs.F("path", path))
	}
}

// forgeable are headers that proxies write for each other and for applications. A client of the mesh is no proxy.
func forgeable() []string {
	return []string{
		"X-Forwarded-Client-Cert", // only a proxy that ends the client's TLS may say this; the chain's mode is SANITIZE
		"X-Envoy-Internal", "X-Envoy-Original-Path", "X-Envoy-Original-Url", "X-Envoy-Decorator-Operation", "X-Envoy-Ip-Tags",
		"X-Envoy-Downstream-Service-Cluster", "X-Envoy-Downstream-Service-Node", "X-Envoy-Expected-Rq-Timeout-Ms", "X-Envoy-Retry-On",
		"X-Envoy-Retry-Grpc-On", "X-Envoy-Max-Retries", "X-Envoy-Retriable-Status-Codes", "X-Envoy-Retriable-Header-Names",
		"X-Envoy-Upstream-Alt-Stat-Name", "X-Envoy-Upstream-Rq-Timeout-Ms", "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms",
		"X-Envoy-Upstream-Rq-Timeout-Alt-Response", "X-Envoy-Hedge-On-Per-Try-Timeout", "X-Envoy-Auth-Partial-Body",
		"X-Envoy-Auth-Failure-Mode-Allowed",
	}
}
