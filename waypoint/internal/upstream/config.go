package upstream

import (
	"fmt"
	"math"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	internalupstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
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
	IdleTimeout    time.Duration
	Static         *Assignment // of a static cluster
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
)

// Balancer chooses among healthy endpoints.
type Balancer uint8

// The balancers.
const (
	LeastRequest Balancer = iota
	RoundRobin
	Random
	Hash
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

// Limits are the circuit breakers.
type Limits struct{ Connections, Pending, Requests, Retries uint32 }

// Outlier takes endpoints out of rotation by what they answer.
type Outlier struct {
	Consecutive5xx     uint32 // 0 = off
	ConsecutiveGateway uint32 // 0 = off
	ConsecutiveLocal   uint32 // 0 = off; used when Split is set
	Split              bool
	Base, Max          time.Duration
	MaxPercent         uint32
}

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
	c := &Config{Name: p.GetName(), ConnectTimeout: defaultConnectTimeout, IdleTimeout: defaultIdle, Limits: defaultLimits(), Panic: 50}
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
	if err := strict.Only(p, "name", "alt_stat_name", "type", "eds_cluster_config", "connect_timeout", "lb_policy", "load_assignment",
		"common_lb_config", "circuit_breakers", "metadata", "typed_extension_protocol_options", "outlier_detection", "transport_socket",
		"upstream_connection_options", "least_request_lb_config", "round_robin_lb_config", "ring_hash_lb_config", "maglev_lb_config",
		"http2_protocol_options", "max_requests_per_connection", "cleanup_interval", "respect_dns_ttl",
		"per_connection_buffer_limit_bytes", "original_dst_lb_config"); err != nil {
		return nil, err
	}
	if err := c.compileKind(p); err != nil {
		return nil, err
	}
	if err := c.compileBalancer(p); err != nil {
		return nil, err
	}
	if err := checkTransport(p.GetTransportSocket()); err != nil {
		return nil, fmt.Errorf("transport_socket: %w", err)
	}
	if p.GetHttp2ProtocolOptions() != nil { //nolint:staticcheck // the older place of the same wish
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
	c.compileLimits(p.GetCircuitBreakers())
	c.Outlier = compileOutlier(p.GetOutlierDetection())
	if t := p.GetCommonLbConfig().GetHealthyPanicThreshold(); t != nil {
		c.Panic = t.GetValue()
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
	default:
		return fmt.Errorf("type %v: %w", p.GetType(), strict.ErrUnsupported)
	}
	return nil
}

func (c *Config) compileBalancer(p *clusterv3.Cluster) error {
	switch p.GetLbPolicy() {
	case clusterv3.Cluster_LEAST_REQUEST:
		c.Balancer = LeastRequest
	case clusterv3.Cluster_ROUND_ROBIN:
		c.Balancer = RoundRobin
	case clusterv3.Cluster_RANDOM:
		c.Balancer = Random
	case clusterv3.Cluster_RING_HASH, clusterv3.Cluster_MAGLEV:
		c.Balancer = Hash
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		if c.Kind != KindDialled {
			return fmt.Errorf("lb_policy CLUSTER_PROVIDED for a cluster of type %v: %w", p.GetType(), strict.ErrUnsupported)
		}
	default:
		return fmt.Errorf("lb_policy %v: %w", p.GetLbPolicy(), strict.ErrUnsupported)
	}
	return nil
}

// checkTransport accepts plaintext, which internal endpoints carry inside their tunnel. Anything else would change what is promised
// about the connection, so it is refused.
func checkTransport(p *corev3.TransportSocket) error {
	u := p.GetTypedConfig().GetTypeUrl()
	switch u[strings.LastIndexByte(u, '/')+1:] {
	case "", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer":
		return nil
	case "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport":
		m := &internalupstreamv3.InternalUpstreamTransport{}
		if err := strict.Unpack(p.GetTypedConfig(), m, "passthrough_metadata", "transport_socket"); err != nil {
			return err
		}
		return checkTransport(m.GetTransportSocket())
	}
	return fmt.Errorf("type %s: %w", u, strict.ErrUnsupported)
}

func (c *Config) compileHTTP(o *httpv3.HttpProtocolOptions) error {
	if err := strict.Only(o, "common_http_protocol_options", "explicit_http_config", "use_downstream_protocol_config"); err != nil {
		return err
	}
	if t := o.GetCommonHttpProtocolOptions().GetIdleTimeout(); t != nil {
		c.IdleTimeout = t.AsDuration()
	}
	switch u := o.GetUpstreamProtocolOptions().(type) {
	case nil:
	case *httpv3.HttpProtocolOptions_ExplicitHttpConfig_:
		c.Protocol = HTTP1
		if u.ExplicitHttpConfig.GetHttp2ProtocolOptions() != nil {
			c.Protocol = HTTP2
		}
	case *httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
		c.Protocol = AsDownstream
	default:
		return fmt.Errorf("upstream protocol %T: %w", u, strict.ErrUnsupported)
	}
	return nil
}

// defaultLimits are Envoy's.
func defaultLimits() Limits {
	return Limits{Connections: 1024, Pending: 1024, Requests: 1024, Retries: 3}
}

func (c *Config) compileLimits(p *clusterv3.CircuitBreakers) {
	for _, t := range p.GetThresholds() {
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue
		}
		set := func(into *uint32, v *wrapperspb.UInt32Value) {
			if v != nil {
				*into = v.GetValue()
			}
		}
		set(&c.Limits.Connections, t.GetMaxConnections())
		set(&c.Limits.Pending, t.GetMaxPendingRequests())
		set(&c.Limits.Requests, t.GetMaxRequests())
		set(&c.Limits.Retries, t.GetMaxRetries())
		if t.GetRetryBudget() != nil { // a share of the open requests is not counted here; it must not become a limit of three
			c.Limits.Retries = math.MaxUint32
		}
	}
}

func compileOutlier(p *clusterv3.OutlierDetection) *Outlier {
	if p == nil {
		return nil
	}
	value := func(v *wrapperspb.UInt32Value, def uint32) uint32 {
		if v == nil {
			return def
		}
		return v.GetValue()
	}
	o := &Outlier{
		Consecutive5xx: value(p.GetConsecutive_5Xx(), 5), ConsecutiveGateway: value(p.GetConsecutiveGatewayFailure(), 5),
		ConsecutiveLocal: value(p.GetConsecutiveLocalOriginFailure(), 5), Split: p.GetSplitExternalLocalOriginErrors(),
		Base: 30 * time.Second, Max: 300 * time.Second, MaxPercent: value(p.GetMaxEjectionPercent(), 10),
	}
	if value(p.GetEnforcingConsecutive_5Xx(), 100) == 0 {
		o.Consecutive5xx = 0
	}
	if value(p.GetEnforcingConsecutiveGatewayFailure(), 0) == 0 {
		o.ConsecutiveGateway = 0
	}
	if t := p.GetBaseEjectionTime().AsDuration(); t > 0 {
		o.Base = t
	}
	if t := p.GetMaxEjectionTime().AsDuration(); t > 0 {
		o.Max = t
	}
	o.Max = max(o.Max, o.Base)
	return o
}

func (c *Config) compileMetadata(m *corev3.Metadata) {
	istio := m.GetFilterMetadata()["istio"].GetFields()
	c.Subset = istio["subset"].GetStringValue()
	if list := istio["services"].GetListValue().GetValues(); len(list) > 0 {
		s := list[0].GetStructValue().GetFields()
		c.Service = Service{Host: s["host"].GetStringValue(), Name: s["name"].GetStringValue(), Namespace: s["namespace"].GetStringValue()}
	}
}
