package config

import (
	"net/netip"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/identity"
)

// Config is everything that can be set.
type Config struct {
	Pod          string            `json:"podName"`
	Namespace    string            `json:"podNamespace"`
	IP           netip.Addr        `json:"instanceIp"`
	Identity     string            `json:"identity"` // spiffe://…
	ClusterID    string            `json:"clusterId"`
	Domain       string            `json:"clusterDomain"`
	Metadata     map[string]string `json:"proxyMetadata"` // goes to the control plane
	IstioVersion string            `json:"istioVersion"`
	XDS          Endpoint          `json:"xds"`
	CA           Endpoint          `json:"ca"`
	Token        string            `json:"tokenPath"`
	SecretTTL    time.Duration     `json:"secretTtl"`  // certificate life asked for; 0 = the authority decides
	Drain        time.Duration     `json:"drain"`      // how long clients get to go elsewhere after the signal
	Deadline     time.Duration     `json:"deadline"`   // when what is left is cut, from the signal
	Detect       time.Duration     `json:"detect"`     // wait for the first bytes where no protocol is declared; 0 = as configured by xDS
	TunnelIdle   time.Duration     `json:"tunnelIdle"` // a tunnel to a node proxy without streams ends after it
	Ports        Ports             `json:"ports"`
	TLS          TLS               `json:"tls"`
	LogFormat    string            `json:"logFormat"`
	LogFilter    string            `json:"logFilter"`
}

// Endpoint is a service of the control plane.
type Endpoint struct {
	Address string `json:"address"`
	RootCA  string `json:"rootCert"`
	AltName string `json:"altHostname,omitempty"`
}

// TLS is how tunnels are encrypted.
type TLS struct {
	StdRecords  bool `json:"stdRecords"`  // leave records to the standard library
	PostQuantum bool `json:"postQuantum"` // no key exchange but X25519MLKEM768
}

// Ports are where the waypoint listens; 0 lets the kernel choose.
type Ports struct {
	HBONE uint16 `json:"hbone"`
	Admin uint16 `json:"admin"` // on loopback only
	Stats uint16 `json:"stats"`
	Ready uint16 `json:"ready"`
	// EdgeConnections is how many connections a listener at the mesh's border may have open.
	EdgeConnections int64 `json:"edgeConnections"`
}

const (
	defaultRoot  = "/var/run/secrets/istio/root-cert.pem"
	defaultToken = "/var/run/secrets/tokens/istio-token" //nolint:gosec // the path of a token, not a token
	defaultPlane = "https://istiod.istio-system.svc:15012"
)

// Load reads the configuration. The error is a *conf.Error with all problems.
func Load(r *conf.Reader) (*Config, error) {
	meta := r.WithPrefix("ISTIO_META_", "proxy metadata, goes to the control plane")
	c := &Config{
		Pod:          r.Required("POD_NAME", "this pod"),
		Namespace:    r.Required("POD_NAMESPACE", "of this pod"),
		IP:           r.IP("INSTANCE_IP", netip.Addr{}, "of this pod"),
		ClusterID:    r.String("CLUSTER_ID", "Kubernetes", "ISTIO_META_CLUSTER_ID wins"),
		Domain:       r.String("CLUSTER_DOMAIN", "cluster.local", "DNS suffix of services"),
		IstioVersion: r.String("ISTIO_VERSION", "1.32.0", "announced to the control plane"),
		Metadata:     meta,
		Token:        r.Path("AUTH_TOKEN_PATH", defaultToken, "service account token, read at each use"),
		SecretTTL:    r.Duration("SECRET_TTL", 24*time.Hour, "certificate life asked for; 0: the authority decides"),
		Drain:        seconds(r, "TERMINATION_DRAIN_DURATION_SECONDS", 5, "how long clients get to go elsewhere after the signal"),
		Detect:       r.Duration("MARROW_PROTOCOL_DETECTION_TIMEOUT", 0, "wait for the first bytes where no protocol is declared; 0: as the control plane says"),
		TunnelIdle:   r.Duration("MARROW_TUNNEL_IDLE_TIMEOUT", time.Hour, "a tunnel to a node proxy without streams ends after it"),
		Ports: Ports{
			HBONE: r.Port("MARROW_HBONE_PORT", 15008), Admin: r.Port("MARROW_ADMIN_PORT", 15000),
			Stats: r.Port("MARROW_STATS_PORT", 15020), Ready: r.Port("MARROW_READINESS_PORT", 15021),
			EdgeConnections: int64(r.IntIn("MARROW_EDGE_CONNECTIONS", 16384, 1, 1<<20, "that a gateway's listener may have open; more are turned away")),
		},
		LogFormat: r.Enum("LOG_FORMAT", "plain", []string{"plain", "json"}, "form of log lines"),
		LogFilter: r.String("MARROW_LOG", "info", "level or scope=level, comma-separated"),
	}
	c.TLS = secure(r)
	if id := meta["CLUSTER_ID"]; id != "" {
		c.ClusterID = id
	}
	if d := meta["DNS_DOMAIN"]; d != "" {
		c.Domain = strings.TrimPrefix(d, c.Namespace+".svc.")
	}
	c.XDS = endpoint(r, "XDS", defaultPlane)
	c.CA = endpoint(r, "CA", c.XDS.Address)
	grace := seconds(r, "TERMINATION_GRACE_PERIOD_SECONDS", 30, "after it the kernel kills this process")
	c.Deadline = max(grace-2*time.Second, c.Drain)
	account := r.Required("SERVICE_ACCOUNT", "of this pod; it is part of the identity")
	domain := r.String("TRUST_DOMAIN", "cluster.local", "of this pod's identity")
	if id, err := identity.New(domain, c.Namespace, account); err == nil {
		c.Identity = id.String()
	} else if c.Namespace != "" && account != "" {
		r.Fail("SERVICE_ACCOUNT", account, err.Error())
	}
	// Set by Istio's Deployment; what they say is either settled above or plays no part in this proxy.
	r.Known("GATEWAY_NAME", "NODE_NAME", "PILOT_CERT_PROVIDER", "CA_ADDR", "HOST_IP", "ISTIO_CPU_LIMIT", "PROXY_CONFIG", "GOMEMLIMIT",
		"GOMAXPROCS", "TRUST_DOMAIN", "ISTIO_VERSION")
	return c, r.Err()
}

func secure(r *conf.Reader) TLS {
	const name = "COMPLIANCE_POLICY"
	policy := r.String(name, "", "pqc: only post-quantum key exchange, with every peer")
	if policy != "" && policy != "pqc" {
		r.Fail(name, policy, "no compliance policy but pqc is implemented; unset it")
	}
	records := r.Enum("MARROW_TLS_RECORDS", "own", []string{"own", "std"}, "who encrypts tunnels after the handshake: our own code or the standard library")
	return TLS{StdRecords: records == "std", PostQuantum: policy == "pqc"}
}

func seconds(r *conf.Reader, name string, def int, about string) time.Duration {
	return time.Duration(r.IntIn(name, def, 0, 86400, about)) * time.Second
}

func endpoint(r *conf.Reader, kind, address string) Endpoint {
	return Endpoint{
		Address: r.String(kind+"_ADDRESS", address, "host:port or https://host:port"),
		RootCA:  r.String(kind+"_ROOT_CA", defaultRoot, "file, SYSTEM or PEM text that verifies it"),
		AltName: r.String("ALT_"+kind+"_HOSTNAME", "", "accepted in its certificate beside the address"),
	}
}
