package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Check asks endpoints whether they are well, whoever else speaks to them. An endpoint is out of rotation until its first check succeeds.
type Check struct {
	Timeout       time.Duration // of one check
	Every         time.Duration // while the endpoint is well
	EveryIll      time.Duration
	EveryIllFirst time.Duration // right after it was found ill
	EveryFirst    time.Duration // right after it was found well
	Unused        time.Duration // instead of Every, while the cluster has had no connection yet; ill endpoints too
	UnusedWell    time.Duration // the same, while the endpoint is well
	Spread        time.Duration // the first check waits up to so long
	Jitter        time.Duration // every wait is up to so much longer
	JitterPercent uint32        // of the wait, the same
	Failures      uint32        // in a row make a well endpoint ill
	Successes     uint32        // in a row make an ill endpoint well, but the first ever is enough
	Probe         probe
}

// EndpointCheck is what an endpoint says of its checks.
type EndpointCheck struct {
	Off  bool   // it is well as long as nobody says otherwise
	Port uint16 // to be asked; 0 = its own
	Host string // authority of HTTP and gRPC checks; empty = the check's
}

// probe is one kind of check: httpProbe, tcpProbe or grpcProbe.
type probe interface{ isProbe() }

type httpProbe struct {
	host, path, method string
	two                bool
	put                http.Header
	remove             []string
	good, later        []span // statuses: well; ill only after several. Any other is ill at once
}

type tcpProbe struct {
	send    []byte
	receive [][]byte // in this order in the answer; none = a connection is enough
}

type grpcProbe struct{ service, authority string }

func (httpProbe) isProbe() {}
func (tcpProbe) isProbe()  {}
func (grpcProbe) isProbe() {}

// span is a range of statuses; the end does not belong to it.
type span struct{ from, to int }

func among(list []span, status int) bool {
	return slices.ContainsFunc(list, func(s span) bool { return status >= s.from && status < s.to })
}

const (
	leastInterval   = 10 * time.Millisecond
	defaultUnused   = time.Minute // as in Envoy
	defaultGRPCPath = "/grpc.health.v1.Health/Check"
)

// compileChecks compiles what a cluster says of checks; nil = none.
func compileChecks(list []*corev3.HealthCheck) (*Check, error) {
	switch len(list) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, fmt.Errorf("%d health checks, want one at most: %w", len(list), strict.ErrUnsupported)
	}
	p := list[0]
	if err := strict.Only(p, "timeout", "interval", "initial_jitter", "interval_jitter", "interval_jitter_percent", "unhealthy_threshold",
		"healthy_threshold", "reuse_connection", "http_health_check", "tcp_health_check", "grpc_health_check", "no_traffic_interval",
		"no_traffic_healthy_interval", "unhealthy_interval", "unhealthy_edge_interval", "healthy_edge_interval",
		"always_log_health_check_failures", "always_log_health_check_success"); err != nil {
		return nil, err
	}
	c := &Check{JitterPercent: p.GetIntervalJitterPercent()}
	var bad error
	period := func(field string, d *durationpb.Duration, unset time.Duration) time.Duration {
		switch {
		case d == nil && unset > 0:
			return unset
		case d.AsDuration() < leastInterval:
			bad = fmt.Errorf("%s: %v is less than %v", field, d.AsDuration(), leastInterval)
		}
		return d.AsDuration()
	}
	c.Timeout = period("timeout", p.GetTimeout(), 0)
	c.Every = period("interval", p.GetInterval(), 0)
	c.EveryIll = period("unhealthy_interval", p.GetUnhealthyInterval(), c.Every)
	c.EveryIllFirst = period("unhealthy_edge_interval", p.GetUnhealthyEdgeInterval(), c.EveryIll)
	c.EveryFirst = period("healthy_edge_interval", p.GetHealthyEdgeInterval(), c.Every)
	c.Unused = period("no_traffic_interval", p.GetNoTrafficInterval(), defaultUnused)
	c.UnusedWell = period("no_traffic_healthy_interval", p.GetNoTrafficHealthyInterval(), c.Unused)
	c.Spread, c.Jitter = max(p.GetInitialJitter().AsDuration(), 0), max(p.GetIntervalJitter().AsDuration(), 0)
	for field, v := range map[string]*wrapperspb.UInt32Value{"unhealthy_threshold": p.GetUnhealthyThreshold(), "healthy_threshold": p.GetHealthyThreshold()} {
		if v == nil {
			bad = fmt.Errorf("%s is missing", field)
		}
	}
	c.Failures, c.Successes = max(p.GetUnhealthyThreshold().GetValue(), 1), max(p.GetHealthyThreshold().GetValue(), 1)
	if bad != nil {
		return nil, bad
	}
	var err error
	switch k := p.GetHealthChecker().(type) {
	case *corev3.HealthCheck_HttpHealthCheck_:
		c.Probe, err = compileHTTPProbe(k.HttpHealthCheck)
	case *corev3.HealthCheck_TcpHealthCheck_:
		c.Probe, err = compileTCPProbe(k.TcpHealthCheck)
	case *corev3.HealthCheck_GrpcHealthCheck_:
		if err = strict.Only(k.GrpcHealthCheck, "service_name", "authority"); err == nil {
			c.Probe = grpcProbe{service: k.GrpcHealthCheck.GetServiceName(), authority: k.GrpcHealthCheck.GetAuthority()}
		}
	default:
		err = fmt.Errorf("%T: %w", k, strict.ErrUnsupported)
	}
	return c, err
}

func compileHTTPProbe(p *corev3.HealthCheck_HttpHealthCheck) (probe, error) {
	if err := strict.Only(p, "host", "path", "method", "codec_client_type", "request_headers_to_add", "request_headers_to_remove",
		"expected_statuses", "retriable_statuses"); err != nil {
		return nil, err
	}
	h := httpProbe{host: p.GetHost(), path: p.GetPath(), method: http.MethodGet, put: http.Header{}, remove: p.GetRequestHeadersToRemove()}
	if !strings.HasPrefix(h.path, "/") || strings.ContainsAny(h.path, " \t\r\n") {
		return nil, fmt.Errorf("path %q has to begin with a slash and have no spaces", h.path)
	}
	switch m := p.GetMethod(); m {
	case corev3.RequestMethod_METHOD_UNSPECIFIED:
	case corev3.RequestMethod_CONNECT:
		return nil, errors.New("method CONNECT asks nothing")
	default:
		h.method = m.String()
	}
	switch p.GetCodecClientType() {
	case typev3.CodecClientType_HTTP1:
	case typev3.CodecClientType_HTTP2:
		h.two = true
	default:
		return nil, fmt.Errorf("codec_client_type %v: %w", p.GetCodecClientType(), strict.ErrUnsupported)
	}
	for _, o := range p.GetRequestHeadersToAdd() {
		name, value := o.GetHeader().GetKey(), o.GetHeader().GetValue()
		if name == "" || name[0] == ':' || strings.Contains(value, "%") {
			return nil, fmt.Errorf("request_headers_to_add: %q: only fixed values of ordinary headers are sent: %w", name, strict.ErrUnsupported)
		}
		h.put.Add(name, value)
	}
	spans := func(field string, list []*typev3.Int64Range) ([]span, error) {
		var out []span
		for _, r := range list {
			if r.GetStart() < 100 || r.GetEnd() > 600 || r.GetStart() >= r.GetEnd() {
				return nil, fmt.Errorf("%s: [%d, %d) is no range within [100, 600)", field, r.GetStart(), r.GetEnd())
			}
			out = append(out, span{int(r.GetStart()), int(r.GetEnd())})
		}
		return out, nil
	}
	var err error
	if h.good, err = spans("expected_statuses", p.GetExpectedStatuses()); err != nil {
		return nil, err
	}
	if len(h.good) == 0 {
		h.good = []span{{http.StatusOK, http.StatusOK + 1}}
	}
	h.later, err = spans("retriable_statuses", p.GetRetriableStatuses())
	return h, err
}

func compileTCPProbe(p *corev3.HealthCheck_TcpHealthCheck) (probe, error) {
	if err := strict.Only(p, "send", "receive"); err != nil {
		return nil, err
	}
	payload := func(p *corev3.HealthCheck_Payload) ([]byte, error) {
		switch v := p.GetPayload().(type) {
		case *corev3.HealthCheck_Payload_Text:
			return unhex(v.Text)
		case *corev3.HealthCheck_Payload_Binary:
			return v.Binary, nil
		}
		return nil, errors.New("is empty")
	}
	var t tcpProbe
	var err error
	if p.GetSend() != nil {
		if t.send, err = payload(p.GetSend()); err != nil {
			return nil, fmt.Errorf("send: %w", err)
		}
	}
	for _, r := range p.GetReceive() {
		b, err := payload(r)
		if err != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
		t.receive = append(t.receive, b)
	}
	return t, nil
}

// compileEndpointCheck reads what an endpoint says of its checks.
func compileEndpointCheck(p *endpointv3.Endpoint_HealthCheckConfig) (EndpointCheck, error) {
	if err := strict.Only(p, "port_value", "hostname", "disable_active_health_check"); err != nil {
		return EndpointCheck{}, fmt.Errorf("health_check_config: %w", err)
	}
	if p.GetPortValue() > 65535 {
		return EndpointCheck{}, fmt.Errorf("health_check_config: %d is no port", p.GetPortValue())
	}
	return EndpointCheck{Off: p.GetDisableActiveHealthCheck(), Port: uint16(p.GetPortValue()), Host: p.GetHostname()}, nil
}
