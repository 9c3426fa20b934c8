package config

import (
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/conf"
)

// Config is what app composes from.
type Config struct {
	// SourceDir is the object directory of the file source.
	SourceDir string
	// CADir holds the certificate authority's key and root.
	CADir string
	// TokenJWKS is the file with the keys that service-account tokens are checked against.
	TokenJWKS string
	// TrustedNodeAccounts ("namespace/name") may fetch certificates for pods of their node, and follow the whole mesh.
	TrustedNodeAccounts []string

	ClusterID     string
	ClusterDomain string
	RootNamespace string
	TrustDomain   string
	Revision      string
	// WaypointRequired has node proxies refuse what passes by a waypoint that has to judge it.
	WaypointRequired bool

	SecureAddr  string // xDS and CA over TLS
	MonitorAddr string // metrics
	AdminAddr   string // debug pages, log levels, profiles
	HTTPAddr    string // /ready
	ServerNames []string
	WorkloadTTL time.Duration

	LogFormat string
	LogLevel  string
}

// Load reads the configuration; its error joins all problems.
func Load(r *conf.Reader) (Config, error) {
	c := Config{
		CADir:               r.Path("MARROW_CA_DIR", "./etc/cacerts", "directory of ca-cert.pem, ca-key.pem and root-cert.pem; a self-signed root is made in an empty one"),
		TokenJWKS:           r.Path("MARROW_TOKEN_JWKS", "", "JWKS file that service-account tokens are verified with; required by the file source"),
		TrustedNodeAccounts: r.List("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel", "comma list of namespace/serviceaccount of node proxies: they may fetch certificates for pods of their node and alone follow the whole mesh; empty: nobody may fetch, everybody may follow"),
		ClusterID:           r.String("CLUSTER_ID", "Kubernetes", "name of this cluster, in every workload's uid"),
		ClusterDomain:       r.String("MARROW_CLUSTER_DOMAIN", "cluster.local", "suffix of service hostnames"),
		RootNamespace:       r.String("POD_NAMESPACE", "istio-system", "root namespace: its policies hold for the whole mesh"),
		TrustDomain:         r.String("MARROW_TRUST_DOMAIN", "cluster.local", "trust domain of the identities that are signed"),
		Revision:            r.String("REVISION", "", "only objects labelled istio.io/rev with this revision, or without the label, are read; empty reads all"),
		WaypointRequired:    r.Bool("MARROW_WAYPOINT_REQUIRED", true, "refuse traffic that passes by a waypoint whose policies protect its destination; false lets it pass, as Istio does"),
		SecureAddr:          r.Addr("MARROW_SECURE_ADDR", ":15012", "xDS and CA over TLS"),
		MonitorAddr:         r.Addr("MARROW_MONITOR_ADDR", ":15014", "metrics"),
		AdminAddr:           r.Addr("MARROW_ADMIN_ADDR", "127.0.0.1:15000", "debug pages, log levels and profiles; keep it on loopback"),
		HTTPAddr:            r.Addr("MARROW_HTTP_ADDR", ":8080", "/ready"),
		ServerNames:         r.List("ISTIOD_CUSTOM_HOST", "", "comma list of further DNS names for the control plane's certificate"),
		WorkloadTTL:         r.Duration("DEFAULT_WORKLOAD_CERT_TTL", 24*time.Hour, "life of certificates made for SDS"),
		LogFormat:           r.Enum("LOG_FORMAT", "plain", []string{"plain", "json"}),
		LogLevel:            r.String("MARROW_LOG", "info", "level, or comma list of scope=level"),
	}
	source := r.Required("MARROW_SOURCE", "where objects come from: file:<directory>")
	dir, isFile := strings.CutPrefix(source, "file:")
	switch {
	case source == "":
	case !isFile || dir == "":
		r.Fail("MARROW_SOURCE", source, "want file:<directory>")
	case c.TokenJWKS == "":
		r.Fail("MARROW_TOKEN_JWKS", "", "must name a JWKS file: without it no proxy could prove who it is")
	}
	c.SourceDir = dir
	for _, a := range c.TrustedNodeAccounts {
		if ns, name, ok := strings.Cut(a, "/"); !ok || ns == "" || name == "" {
			r.Fail("CA_TRUSTED_NODE_ACCOUNTS", a, "want namespace/serviceaccount")
		}
	}
	return c, r.Err()
}

// Names are the DNS names of the control plane's own certificate.
func (c Config) Names() []string {
	names := []string{"istiod." + c.RootNamespace + ".svc", "istiod." + c.RootNamespace + ".svc." + c.ClusterDomain, "istiod." + c.RootNamespace, "istio-pilot." + c.RootNamespace + ".svc", "localhost"}
	if c.Revision != "" && c.Revision != "default" {
		names = append(names, "istiod-"+c.Revision+"."+c.RootNamespace+".svc")
	}
	return append(names, c.ServerNames...)
}
