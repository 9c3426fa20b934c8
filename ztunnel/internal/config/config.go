package config

import (
	"net"
	"net/netip"
	"time"

	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/obs"
)

// Config is everything that can be set. Times are durations; a zero means what
// the field says.
type Config struct {
	Node   Node     `json:"node"`
	XDS    Endpoint `json:"xds"`
	CA     Endpoint `json:"ca"`
	Auth   Auth     `json:"auth"`
	Data   Data     `json:"dataPlane"`
	HBONE  HBONE    `json:"hbone"`
	TLS    TLS      `json:"tls"`
	Ports  Ports    `json:"ports"`
	Log    Log      `json:"log"`
	Policy Policy   `json:"policy"`
	// SecretTTL is the certificate life asked for; 0 leaves it to the authority.
	SecretTTL time.Duration `json:"secretTtl"`
	// Drain is how long connections may finish after the signal; 0 cuts at once.
	Drain time.Duration `json:"connectionTerminationDeadline"`
	// Workers is how many threads may run at once when there is work for them; 0 leaves that to the runtime.
	Workers int `json:"numWorkerThreads"`
	// Metajson is further metadata for the control plane, each value JSON.
	Metajson map[string]string `json:"-"`
	// Ignored are names that are set but change nothing here.
	Ignored []string `json:"ignored,omitempty"`
}

// Node says who this proxy is.
type Node struct {
	Name           string            `json:"localNode"`      // Kubernetes node; pods of other nodes are not ours
	PodName        string            `json:"podName"`        // may be empty
	PodNamespace   string            `json:"podNamespace"`   // may be empty
	ServiceAccount string            `json:"serviceAccount"` // may be empty
	InstanceIP     netip.Addr        `json:"instanceIp"`     // zero: announced as 1.1.1.1
	TrustDomain    string            `json:"trustDomain"`    // of the own identity
	ClusterID      string            `json:"clusterId"`
	ClusterDomain  string            `json:"clusterDomain"`
	Network        string            `json:"network"`       // empty: the default network
	Metadata       map[string]string `json:"proxyMetadata"` // sent to the control plane
	IstioVersion   string            `json:"istioVersion"`
}

// Endpoint is a service of the control plane.
type Endpoint struct {
	Address string            `json:"address"` // https://host:port; empty: not used
	RootCA  string            `json:"rootCert"`
	AltName string            `json:"altHostname,omitempty"`
	Headers map[string]string `json:"-"` // may hold credentials
}

// Auth is how this proxy proves itself to the control plane.
type Auth struct {
	TokenPath string `json:"tokenPath,omitempty"` // read at each request; empty: see Token
	Token     string `json:"-"`                   // literal; both empty: no authentication
}

// Data is the behaviour of the data plane's sockets.
type Data struct {
	Socket     string              `json:"inpodUds"`
	Mark       uint32              `json:"packetMark"`
	ReusePort  bool                `json:"inpodPortReuse"`
	IPv6       bool                `json:"ipv6Enabled"`
	KeepSource *bool               `json:"requireOriginalSource,omitempty"` // nil: if the kernel allows
	KeepAlive  net.KeepAliveConfig `json:"-"`
}

// HBONE is the transport's settings.
type HBONE struct {
	StreamWindow  uint32        `json:"windowSize"`           // bytes
	ConnWindow    uint32        `json:"connectionWindowSize"` // bytes
	FrameSize     uint32        `json:"frameSize"`            // bytes
	MaxStreams    int           `json:"poolMaxStreamsPerConn"`
	UnusedRelease time.Duration `json:"poolUnusedReleaseTimeout"` // 0: never
	Baggage       bool          `json:"enableResponseBaggage"`
	LoopbackApp   bool          `json:"localhostAppTunnel"`
	SameNode      string        `json:"sameNode"` // splice or tunnel
	Penalty       bool          `json:"peerPenalty"`
}

// How pods of this node reach each other. Who may is the same.
const (
	SameNodeSplice = "splice"
	SameNodeTunnel = "tunnel"
)

// TLS is how tunnels are encrypted.
type TLS struct {
	StdRecords  bool `json:"stdRecords"`  // leave records to the standard library
	PostQuantum bool `json:"postQuantum"` // no key exchange but X25519MLKEM768
}

// Ports are those of this proxy's own namespace; 0 lets the kernel choose.
type Ports struct {
	Admin uint16 `json:"adminPort"` // on loopback only
	Stats uint16 `json:"statsPort"`
	Ready uint16 `json:"readinessPort"`
}

// Log says what is written and how.
type Log struct {
	Format string `json:"format"` // plain or json
	Filter string `json:"filter"` // level or scope=level, comma-separated
}

// Policy tells about logging of decisions.
type Policy struct {
	InfoLogging bool `json:"authzPolicyInfoLogging"`
}

const (
	defaultRoot  = "./var/run/secrets/istio/root-cert.pem"
	defaultToken = "./var/run/secrets/tokens/istio-token"
	meshFile     = "./etc/istio/config/mesh"
	metaPrefix   = "ISTIO_META_"
)

// Files gives the content of a file and whether there is one.
type Files func(path string) (content []byte, found bool)

// Load reads the configuration. The error is a *conf.Error with all problems.
func Load(r *conf.Reader, files Files) (*Config, error) {
	l := loader{r: r, files: files}
	pc := l.proxyConfig()
	meta := pc.metadata(r.WithPrefix(metaPrefix, "proxy metadata, goes to the control plane"))
	inCluster := l.present("KUBERNETES_SERVICE_HOST")
	c := &Config{
		Node:      l.node(meta),
		XDS:       l.endpoint("XDS", inCluster, pc.DiscoveryAddress),
		CA:        l.endpoint("CA", inCluster, ""),
		Auth:      l.auth(),
		Data:      l.data(),
		HBONE:     l.hbone(),
		TLS:       l.tls(),
		Ports:     Ports{Admin: pc.port(pc.AdminPort, 15000), Stats: pc.port(pc.StatsPort, 15020), Ready: 15021},
		SecretTTL: r.Duration("SECRET_TTL", 24*time.Hour, "certificate life asked for; 0: the authority decides"),
		Drain:     l.drain(),
		Workers:   l.workers(pc.Concurrency),
		Metajson:  l.metajson(),
	}
	c.Log.Format = r.Enum("LOG_FORMAT", "plain", []string{"plain", "json"}, "form of log lines")
	c.Log.Filter = r.String("RUST_LOG", "info", "level or scope=level, comma-separated")
	if err := obs.CheckFilter(c.Log.Filter); err != nil {
		r.Fail("RUST_LOG", c.Log.Filter, err.Error())
	}
	v, _ := r.Optional("AUTHZ_POLICY_INFO_LOGGING", "true: name the deciding policy of refusals at level info")
	c.Policy.InfoLogging = v == "true"
	l.refuse()
	c.Ignored = l.ignored()
	r.Known("INPOD_ENABLED", "RUST_BACKTRACE")
	return c, r.Err()
}

type loader struct {
	r     *conf.Reader
	files Files
}

func (l *loader) present(name string) bool {
	v, ok := l.r.Optional(name, "only its presence matters")
	return ok && v != ""
}

func (l *loader) node(meta map[string]string) Node {
	r := l.r
	n := Node{
		Name:           r.Required("NODE_NAME", "the Kubernetes node whose pods are served"),
		PodName:        r.String("POD_NAME", "", "own pod"),
		PodNamespace:   r.String("POD_NAMESPACE", "", "own namespace"),
		ServiceAccount: r.String("SERVICE_ACCOUNT", "", "own service account"),
		InstanceIP:     r.IP("INSTANCE_IP", netip.Addr{}, "own address"),
		TrustDomain:    r.String("TRUST_DOMAIN", "cluster.local", "of the own identity"),
		ClusterID:      r.String("CLUSTER_ID", "Kubernetes", "cluster of this node; ISTIO_META_CLUSTER_ID wins"),
		ClusterDomain:  r.String("CLUSTER_DOMAIN", "cluster.local", "DNS domain of services"),
		Network:        r.String("NETWORK", "", "network of this node; empty: the default one"),
		Metadata:       meta,
		IstioVersion:   meta["ISTIO_VERSION"],
	}
	if id := meta["CLUSTER_ID"]; id != "" {
		n.ClusterID = id
	}
	return n
}

func (l *loader) endpoint(kind string, inCluster bool, fromProxyConfig string) Endpoint {
	def := "https://localhost:15012"
	if inCluster {
		def = "https://istiod.istio-system.svc:15012"
	}
	if fromProxyConfig != "" {
		def = fromProxyConfig
	}
	e := Endpoint{
		Address: l.r.String(kind+"_ADDRESS", def, "host:port of the control plane, TLS"),
		RootCA:  l.r.String(kind+"_ROOT_CA", defaultRoot, "file, SYSTEM or PEM text that verifies it"),
		AltName: l.r.String("ALT_"+kind+"_HOSTNAME", "", "further name accepted in its certificate"),
		Headers: l.r.WithPrefix(kind+"_HEADER_", "further metadata of each call"),
	}
	if e.Address == "" {
		l.r.Fail(kind+"_ADDRESS", "", "must not be empty: ztunnel serves nothing without its control plane")
	}
	return e
}

func (l *loader) auth() Auth {
	v := l.r.Secret("AUTH_TOKEN", "", "file or literal token; default "+defaultToken+" if it exists")
	if v == "" {
		v = defaultToken
		if _, found := l.files(v); !found {
			return Auth{}
		}
	}
	if _, found := l.files(v); found {
		return Auth{TokenPath: v}
	}
	return Auth{Token: v}
}

func (l *loader) data() Data {
	r := l.r
	d := Data{
		Socket:    r.Path("INPOD_UDS", "/var/run/ztunnel/ztunnel.sock", "socket of the node agent"),
		Mark:      r.Uint32("PACKET_MARK", 1337, "SO_MARK of all sockets in pods"),
		ReusePort: r.Bool("INPOD_PORT_REUSE", true, "let an old and a new ztunnel share ports"),
		IPv6:      r.Bool("IPV6_ENABLED", true, "listen on IPv6 as well"),
	}
	if d.Mark&0xfff != 1337 {
		r.Fail("PACKET_MARK", r.String("PACKET_MARK", ""), "its lower 12 bits must be 1337 (0x539): the redirection rules recognise ztunnel by them")
	}
	if _, set := r.Optional("ENABLE_ORIG_SRC", "keep client addresses; unset: if the kernel allows"); set {
		keep := r.Bool("ENABLE_ORIG_SRC", true)
		d.KeepSource = &keep
	}
	d.KeepAlive = net.KeepAliveConfig{
		Enable:   r.Bool("KEEPALIVE_ENABLED", true, "TCP keepalive"),
		Idle:     r.Duration("KEEPALIVE_TIME", 180*time.Second, "silence before the first probe"),
		Interval: r.Duration("KEEPALIVE_INTERVAL", 180*time.Second, "between probes"),
		Count:    r.IntIn("KEEPALIVE_RETRIES", 9, 1, 127, "unanswered probes that end a connection"),
	}
	return d
}

func (l *loader) hbone() HBONE {
	r := l.r
	window := func(name string, def, low uint32) uint32 {
		v := r.Uint32(name, def, "bytes")
		if v < low || v > 1<<31-1 {
			r.Fail(name, r.String(name, ""), "must be between "+itoa(low)+" and 2147483647 bytes")
		}
		return v
	}
	h := HBONE{
		StreamWindow:  window("HTTP2_STREAM_WINDOW_SIZE", 4<<20, 1<<14),
		ConnWindow:    window("HTTP2_CONNECTION_WINDOW_SIZE", 16<<20, 65535),
		FrameSize:     r.Uint32("HTTP2_FRAME_SIZE", 1<<20, "bytes"),
		MaxStreams:    r.IntIn("POOL_MAX_STREAMS_PER_CONNECTION", 100, 1, 1<<20, "before another tunnel is opened"),
		UnusedRelease: r.Duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute, "unused tunnels are closed after it; 0: never"),
		Baggage:       r.Bool("ENABLE_RESPONSE_BAGGAGE", true, "tell and believe workload names in tunnels"),
		LoopbackApp:   r.Bool("LOCALHOST_APP_TUNNEL", true, "PROXY tunnels go to loopback"),
		SameNode: r.Enum("MARROW_SAME_NODE", SameNodeSplice, []string{SameNodeSplice, SameNodeTunnel},
			"how pods of this node reach each other: from socket to socket, or through a tunnel like pods of other nodes"),
		Penalty: r.Bool("MARROW_PEER_PENALTY", true, "keep peers out for a while that break the rules of HTTP/2 again"),
	}
	if h.FrameSize < 1<<14 || h.FrameSize > 1<<24-1 {
		r.Fail("HTTP2_FRAME_SIZE", r.String("HTTP2_FRAME_SIZE", ""), "must be between 16384 and 16777215 bytes")
	}
	return h
}
