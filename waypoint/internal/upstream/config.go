package upstream

import (
	"fmt"
	"math"
	"net"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	internalupstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Config is one compiled cluster.
type Config struct {
	Name           string
	Kind           Kind
	EDSName        string // of the endpoints' resource
	ConnectTimeout time.Duration
	Balancer       Balancer
	Protocol       Protocol
	Service        Service
	Subset         string
	Limits         Limits
	Outlier        *Outlier // nil = off
	Panic          float64  // below this share of healthy endpoints, in percent, all are used; 0 = never
	Conns          Conns
	TLS            *TLS        // inside the connection; nil = plaintext
	Proxy          uint8       // version of the PROXY protocol that is spoken first; 0 = none
	Static         *Assignment // of a static cluster
	Names          *Names      // to resolve; nil = the endpoints have addresses
	Outside        *Outside    // of KindOutside
	Check          *Check      // nil = endpoints are believed
}

// Conns is how connections are kept.
type Conns struct {
	Idle        time.Duration
	MaxAge      time.Duration       // no request begins on an older one; 0 = none
	MaxRequests uint32              // no connection carries more; 0 = none
	MaxStreams  uint32              // HTTP/2 requests at a time on one; 0 = what the server allows
	Ping        time.Duration       // how long an HTTP/2 connection is silent before it is asked for life; 0 = never
	PingWait    time.Duration       // for the answer
	KeepAlive   net.KeepAliveConfig // of TCP; not enabled = the dialler's
}

// Kind says where a cluster's endpoints come from.
type Kind uint8

// The kinds of clusters.
const (
	KindEDS      Kind = iota // from the control plane
	KindStatic               // in the cluster itself
	KindTunnel               // the dialled address, through a tunnel
	KindDialled              // the dialled address, directly
	KindPlumbing             // how Envoy's listeners are joined; nothing is ever sent there
	KindNames                // what names mean at the moment
	KindOutside              // a host outside the mesh, by name; for what the waypoint itself asks, never for requests
)

// Protocol is what HTTP is spoken to the endpoints.
type Protocol uint8

// The protocols.
const (
	HTTP1 Protocol = iota
	HTTP2
	AsDownstream
)

// Service names the service behind a cluster, for telemetry.
type Service struct{ Host, Name, Namespace string }

const (
	defaultConnectTimeout = 5 * time.Second
	defaultIdle           = time.Hour
	internalOriginate     = "connect_originate"
	httpOptionsKey        = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
)

// Compile compiles one cluster.
func Compile(p *clusterv3.Cluster) (*Config, error) {
	c, err := compile(p)
	if err != nil {
		return nil, fmt.Errorf("cluster %q: %w", p.GetName(), err)
	}
	return c, nil
}

func compile(p *clusterv3.Cluster) (*Config, error) {
	c := &Config{Name: p.GetName(), ConnectTimeout: defaultConnectTimeout, Conns: Conns{Idle: defaultIdle}, Limits: defaultLimits(), Panic: 50}
	if c.Name == "" {
		return nil, fmt.Errorf("has no name")
	}
	if t := p.GetConnectTimeout().AsDuration(); t > 0 {
		c.ConnectTimeout = t
	}
	if isPlumbing(p) {
		c.Kind = KindPlumbing
		return c, nil
	}
	if isOutside(p) {
		return c, c.compileOutside(p)
	}
	if err := strict.Only(p, "name", "alt_stat_name", "type", "eds_cluster_config", "connect_timeout", "lb_policy", "load_assignment",
		"common_lb_config", "circuit_breakers", "metadata", "typed_extension_protocol_options", "outlier_detection", "transport_socket",
		"upstream_connection_options", "least_request_lb_config", "round_robin_lb_config", "ring_hash_lb_config", "maglev_lb_config",
		"http2_protocol_options", "max_requests_per_connection", "dns_lookup_family", "dns_refresh_rate", "cleanup_interval", "respect_dns_ttl",
		"per_connection_buffer_limit_bytes", "original_dst_lb_config", "health_checks"); err != nil {
		return nil, err
	}
	if err := c.compileKind(p); err != nil {
		return nil, err
	}
	if err := c.compileBalancer(p); err != nil {
		return nil, err
	}
	if err := c.compileTransport(p.GetTransportSocket()); err != nil {
		return nil, fmt.Errorf("transport_socket: %w", err)
	}
	c.Conns.MaxRequests = p.GetMaxRequestsPerConnection().GetValue() //nolint:staticcheck // the older place of the same wish
	if p.GetHttp2ProtocolOptions() != nil {                          //nolint:staticcheck // the older place of the same wish
		c.Protocol = HTTP2
	}
	if a := p.GetTypedExtensionProtocolOptions()[httpOptionsKey]; a != nil {
		o := &httpv3.HttpProtocolOptions{}
		if err := a.UnmarshalTo(o); err != nil {
			return nil, err
		}
		if err := c.compileHTTP(o); err != nil {
			return nil, err
		}
	}
	if err := c.compileLimits(p.GetCircuitBreakers()); err != nil {
		return nil, fmt.Errorf("circuit_breakers: %w", err)
	}
	var err error
	if c.Outlier, err = compileOutlier(p.GetOutlierDetection()); err != nil {
		return nil, fmt.Errorf("outlier_detection: %w", err)
	}
	if c.Check, err = compileChecks(p.GetHealthChecks()); err != nil {
		return nil, fmt.Errorf("health_checks: %w", err)
	}
	if c.Check != nil && (c.Kind == KindTunnel || c.Kind == KindDialled) {
		return nil, fmt.Errorf("health_checks: the cluster has no endpoints of its own: %w", strict.ErrUnsupported)
	}
	if err := c.compileKeepAlive(p.GetUpstreamConnectionOptions()); err != nil {
		return nil, fmt.Errorf("upstream_connection_options: %w", err)
	}
	c.compileMetadata(p.GetMetadata())
	return c, nil
}

// isPlumbing recognizes the clusters that only join Envoy's internal listeners; here a function call does that.
func isPlumbing(p *clusterv3.Cluster) bool {
	return p.GetName() == internalOriginate && p.GetType() == clusterv3.Cluster_ORIGINAL_DST ||
		p.GetType() == clusterv3.Cluster_STATIC && internalListener(p) == "main_internal"
}

// internalListener is the listener that a cluster's only endpoint names, if it has one endpoint and no address of its own.
func internalListener(p *clusterv3.Cluster) string {
	groups := p.GetLoadAssignment().GetEndpoints()
	if len(groups) != 1 || len(groups[0].GetLbEndpoints()) != 1 {
		return ""
	}
	a := groups[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetEnvoyInternalAddress()
	if a.GetEndpointId() != "" {
		return ""
	}
	return a.GetServerListenerName()
}

func (c *Config) compileKind(p *clusterv3.Cluster) error {
	switch p.GetType() {
	case clusterv3.Cluster_EDS:
		c.Kind, c.EDSName = KindEDS, p.GetEdsClusterConfig().GetServiceName()
		if c.EDSName == "" {
			c.EDSName = c.Name
		}
	case clusterv3.Cluster_STATIC:
		if l := internalListener(p); l == internalOriginate {
			c.Kind = KindTunnel
			return nil
		}
		a, err := CompileAssignment(p.GetLoadAssignment())
		if err != nil {
			return err
		}
		c.Kind, c.Static = KindStatic, a
	case clusterv3.Cluster_ORIGINAL_DST:
		c.Kind = KindDialled
	case clusterv3.Cluster_STRICT_DNS, clusterv3.Cluster_LOGICAL_DNS:
		return c.compileNames(p)
	default:
		return fmt.Errorf("type %v: %w", p.GetType(), strict.ErrUnsupported)
	}
	return nil
}

// compileTransport reads what is spoken to the endpoints, from the outside in.
func (c *Config) compileTransport(p *corev3.TransportSocket) error {
	u := p.GetTypedConfig().GetTypeUrl()
	switch u[strings.LastIndexByte(u, '/')+1:] {
	case "", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer":
		return nil
	case "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport":
		m := &internalupstreamv3.InternalUpstreamTransport{}
		if err := strict.Unpack(p.GetTypedConfig(), m, "passthrough_metadata", "transport_socket"); err != nil {
			return err
		}
		return c.compileTransport(m.GetTransportSocket())
	case "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport":
		m := &proxyprotocolv3.ProxyProtocolUpstreamTransport{}
		if err := strict.Unpack(p.GetTypedConfig(), m, "config", "transport_socket"); err != nil {
			return err
		}
		if err := strict.Only(m.GetConfig(), "version"); err != nil {
			return err
		}
		c.Proxy = 1
		if m.GetConfig().GetVersion() == corev3.ProxyProtocolConfig_V2 {
			c.Proxy = 2
		}
		return c.compileTransport(m.GetTransportSocket())
	case "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext":
		m := &tlsv3.UpstreamTlsContext{}
		if err := p.GetTypedConfig().UnmarshalTo(m); err != nil {
			return err
		}
		var err error
		c.TLS, err = compileTLS(m)
		return err
	}
	return fmt.Errorf("type %s: %w", u, strict.ErrUnsupported)
}

func (c *Config) compileHTTP(o *httpv3.HttpProtocolOptions) error {
	if err := strict.Only(o, "common_http_protocol_options", "upstream_http_protocol_options", "explicit_http_config",
		"use_downstream_protocol_config"); err != nil {
		return err
	}
	names := o.GetUpstreamHttpProtocolOptions()
	if err := strict.Only(names, "auto_sni", "auto_san_validation"); err != nil {
		return err
	}
	if c.TLS != nil {
		c.TLS.FromHost = c.TLS.FromHost || names.GetAutoSni()
		c.TLS.MatchName = c.TLS.MatchName || names.GetAutoSanValidation()
	}
	common := o.GetCommonHttpProtocolOptions()
	if err := strict.Only(common, "idle_timeout", "max_connection_duration", "max_requests_per_connection"); err != nil {
		return err
	}
	if t := common.GetIdleTimeout(); t != nil {
		c.Conns.Idle = t.AsDuration()
	}
	c.Conns.MaxAge = max(common.GetMaxConnectionDuration().AsDuration(), 0)
	if n := common.GetMaxRequestsPerConnection(); n != nil {
		c.Conns.MaxRequests = n.GetValue()
	}
	switch u := o.GetUpstreamProtocolOptions().(type) {
	case nil:
	case *httpv3.HttpProtocolOptions_ExplicitHttpConfig_:
		c.Protocol = HTTP1
		if two := u.ExplicitHttpConfig.GetHttp2ProtocolOptions(); two != nil {
			c.Protocol = HTTP2
			return c.compileHTTP2(two)
		}
	case *httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
		c.Protocol = AsDownstream
		return c.compileHTTP2(u.UseDownstreamProtocolConfig.GetHttp2ProtocolOptions())
	default:
		return fmt.Errorf("upstream protocol %T: %w", u, strict.ErrUnsupported)
	}
	return nil
}

// compileHTTP2 reads how HTTP/2 is spoken. Window sizes are this program's own affair.
func (c *Config) compileHTTP2(p *corev3.Http2ProtocolOptions) error {
	if err := strict.Only(p, "max_concurrent_streams", "connection_keepalive", "initial_stream_window_size",
		"initial_connection_window_size", "allow_connect"); err != nil {
		return err
	}
	c.Conns.MaxStreams = p.GetMaxConcurrentStreams().GetValue()
	c.Conns.Ping = max(p.GetConnectionKeepalive().GetInterval().AsDuration(), 0)
	c.Conns.PingWait = max(p.GetConnectionKeepalive().GetTimeout().AsDuration(), 0)
	return nil
}

func (c *Config) compileKeepAlive(p *clusterv3.UpstreamConnectionOptions) error {
	if err := strict.Only(p, "tcp_keepalive"); err != nil {
		return err
	}
	k := p.GetTcpKeepalive()
	if k == nil {
		return nil
	}
	seconds := func(v *wrapperspb.UInt32Value) time.Duration { return time.Duration(v.GetValue()) * time.Second }
	c.Conns.KeepAlive = net.KeepAliveConfig{
		Enable: true, Idle: seconds(k.GetKeepaliveTime()), Interval: seconds(k.GetKeepaliveInterval()),
		Count: int(min(k.GetKeepaliveProbes().GetValue(), math.MaxInt16)),
	}
	return nil
}

func (c *Config) compileMetadata(m *corev3.Metadata) {
	istio := m.GetFilterMetadata()["istio"].GetFields()
	c.Subset = istio["subset"].GetStringValue()
	if list := istio["services"].GetListValue().GetValues(); len(list) > 0 {
		s := list[0].GetStructValue().GetFields()
		c.Service = Service{Host: s["host"].GetStringValue(), Name: s["name"].GetStringValue(), Namespace: s["namespace"].GetStringValue()}
	}
}
