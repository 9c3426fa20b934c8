package waypoint

import (
	"cmp"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingapi "istio.io/api/networking/v1alpha3"
)

// applyBalancer chooses the algorithm; LEAST_REQUEST is the mesh's default.
func applyBalancer(c *clusterv3.Cluster, lb *networkingapi.LoadBalancerSettings) {
	// Unhealthy endpoints are sent too, so that they can be told from absent ones; they must never be tried.
	c.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: 0}
	hash := lb.GetConsistentHash()
	if hash == nil {
		slow := slowStart(lb)
		switch lb.GetSimple() {
		case networkingapi.LoadBalancerSettings_RANDOM:
			c.LbPolicy = clusterv3.Cluster_RANDOM
		case networkingapi.LoadBalancerSettings_ROUND_ROBIN:
			c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
			if slow != nil {
				c.LbConfig = &clusterv3.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &clusterv3.Cluster_RoundRobinLbConfig{SlowStartConfig: slow}}
			}
		default: // the mesh's default stands
			if slow != nil {
				c.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{SlowStartConfig: slow}}
			}
		}
		return
	}
	if m := hash.GetMaglev(); m != nil {
		c.LbPolicy = clusterv3.Cluster_MAGLEV
		c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{
			TableSize: wrapperspb.UInt64(cmp.Or(m.GetTableSize(), 65537)),
		}}
		return
	}
	size := cmp.Or(hash.GetRingHash().GetMinimumRingSize(), hash.GetMinimumRingSize(), 1024) //nolint:staticcheck // older rules say it here
	c.LbPolicy = clusterv3.Cluster_RING_HASH
	c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{
		MinimumRingSize: wrapperspb.UInt64(min(size, 8<<20)),
		// Envoy wants maximum >= minimum.
		MaximumRingSize: wrapperspb.UInt64(8 << 20),
	}}
}

// slowStart gives fresh endpoints little at first.
func slowStart(lb *networkingapi.LoadBalancerSettings) *clusterv3.Cluster_SlowStartConfig {
	window, w := lb.GetWarmupDurationSecs(), lb.GetWarmup() // the first of older rules
	if w != nil {
		window = w.GetDuration()
	}
	if window.AsDuration() <= 0 {
		return nil
	}
	out := &clusterv3.Cluster_SlowStartConfig{SlowStartWindow: window}
	if a := w.GetAggression(); a.GetValue() > 0 {
		out.Aggression = &corev3.RuntimeDouble{DefaultValue: a.GetValue(), RuntimeKey: "marrow.slow_start.aggression"}
	}
	if m := w.GetMinimumPercent(); m != nil {
		out.MinWeightPercent = &typev3.Percent{Value: min(max(m.GetValue(), 0), 100)}
	}
	return out
}

// hashPolicy says what a consistent-hash cluster hashes.
func hashPolicy(lb *networkingapi.LoadBalancerSettings) []*routev3.RouteAction_HashPolicy {
	hash := lb.GetConsistentHash()
	p := &routev3.RouteAction_HashPolicy{}
	switch {
	case hash == nil:
		return nil
	case hash.GetHttpHeaderName() != "":
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{
			Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: hash.GetHttpHeaderName()},
		}
	case hash.GetHttpCookie().GetName() != "":
		c := hash.GetHttpCookie()
		cookie := &routev3.RouteAction_HashPolicy_Cookie{Name: c.GetName(), Path: c.GetPath(), Ttl: c.GetTtl()}
		for _, a := range c.GetAttributes() {
			cookie.Attributes = append(cookie.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
		}
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: cookie}
	case hash.GetUseSourceIp():
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}
	case hash.GetHttpQueryParameterName() != "":
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: hash.GetHttpQueryParameterName()},
		}
	default:
		return nil
	}
	return []*routev3.RouteAction_HashPolicy{p}
}

func applyConnections(c *clusterv3.Cluster, pool *networkingapi.ConnectionPoolSettings) {
	if t := pool.GetTcp().GetConnectTimeout(); t.AsDuration() > 0 {
		c.ConnectTimeout = t
	}
	if k := pool.GetTcp().GetTcpKeepalive(); k != nil {
		alive := &corev3.TcpKeepalive{}
		if k.GetProbes() > 0 {
			alive.KeepaliveProbes = uintValue(k.GetProbes())
		}
		if s := seconds(k.GetTime()); s > 0 {
			alive.KeepaliveTime = uintValue(s)
		}
		if s := seconds(k.GetInterval()); s > 0 {
			alive.KeepaliveInterval = uintValue(s)
		}
		c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: alive}
	}
}

func seconds(d *durationpb.Duration) uint32 { return uint32(d.AsDuration() / time.Second) }

func breakers(pool *networkingapi.ConnectionPoolSettings, budget *networkingapi.TrafficPolicy_RetryBudget) *clusterv3.CircuitBreakers {
	limit := func(n int32) *wrapperspb.UInt32Value {
		if n <= 0 {
			return uintValue(unlimited)
		}
		return uintValue(uint32(n))
	}
	t := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections:     limit(pool.GetTcp().GetMaxConnections()),
		MaxPendingRequests: limit(pool.GetHttp().GetHttp1MaxPendingRequests()),
		MaxRequests:        limit(pool.GetHttp().GetHttp2MaxRequests()),
		MaxRetries:         limit(pool.GetHttp().GetMaxRetries()),
		TrackRemaining:     true,
	}
	if budget != nil { // stands in the place of the number
		t.MaxRetries = nil
		t.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{BudgetPercent: &typev3.Percent{Value: 20}}
		if p := budget.GetPercent(); p != nil {
			t.RetryBudget.BudgetPercent.Value = min(max(p.GetValue(), 0), 100)
		}
		if n := budget.GetMinRetryConcurrency(); n > 0 {
			t.RetryBudget.MinRetryConcurrency = uintValue(n)
		}
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
}

// serviceHTTPOptions speaks to the application what its port declares, or what the client spoke.
func serviceHTTPOptions(p Protocol, pool *networkingapi.ConnectionPoolSettings) *httpv3.HttpProtocolOptions {
	h := pool.GetHttp()
	common := &corev3.HttpProtocolOptions{}
	if t := h.GetIdleTimeout(); t.AsDuration() > 0 {
		common.IdleTimeout = t
	}
	if n := h.GetMaxRequestsPerConnection(); n > 0 {
		common.MaxRequestsPerConnection = uintValue(uint32(n))
	}
	if t := pool.GetTcp().GetMaxConnectionDuration(); t.AsDuration() > 0 {
		common.MaxConnectionDuration = t
	}
	o := &httpv3.HttpProtocolOptions{CommonHttpProtocolOptions: common}
	h2 := &corev3.Http2ProtocolOptions{}
	if n := h.GetMaxConcurrentStreams(); n > 0 {
		h2.MaxConcurrentStreams = uintValue(uint32(n))
	}
	if k := h.GetHttp2KeepAlive(); k.GetInterval().AsDuration() > 0 && k.GetTimeout().AsDuration() > 0 {
		h2.ConnectionKeepalive = &corev3.KeepaliveSettings{Interval: k.GetInterval(), Timeout: k.GetTimeout()}
	}
	switch {
	case h.GetUseClientProtocol(), p == Sniffed:
		use := downstreamProtocol()
		use.UseDownstreamProtocolConfig.Http2ProtocolOptions = h2
		o.UpstreamProtocolOptions = use
	case p == HTTP2, h.GetH2UpgradePolicy() == networkingapi.ConnectionPoolSettings_HTTPSettings_UPGRADE:
		o.UpstreamProtocolOptions = explicitHTTP2(h2)
	default:
		o.UpstreamProtocolOptions = explicitHTTP1()
	}
	return o
}

// outlierDetection takes endpoints out of rotation by what they answer. Success rates are never judged.
func outlierDetection(c *clusterv3.Cluster, o *networkingapi.OutlierDetection) *clusterv3.OutlierDetection {
	if o == nil {
		return nil
	}
	out := &clusterv3.OutlierDetection{
		EnforcingSuccessRate:               uintValue(0),
		SplitExternalLocalOriginErrors:     o.GetSplitExternalLocalOriginErrors(),
		ConsecutiveLocalOriginFailure:      o.GetConsecutiveLocalOriginFailures(),
		EnforcingConsecutive_5Xx:           uintValue(100),
		EnforcingConsecutiveGatewayFailure: uintValue(0),
		// A tenth of three endpoints is none: somebody who asks for ejection means one at least.
		AlwaysEjectOneHost: boolValue(true),
	}
	if e := o.GetConsecutive_5XxErrors(); e != nil {
		out.Consecutive_5Xx = e
		if e.GetValue() == 0 {
			out.EnforcingConsecutive_5Xx = uintValue(0)
		}
	}
	if e := o.GetConsecutiveGatewayErrors(); e.GetValue() > 0 {
		out.ConsecutiveGatewayFailure = e
		out.EnforcingConsecutiveGatewayFailure = uintValue(100)
	}
	if t := o.GetInterval(); t.AsDuration() > 0 {
		out.Interval = t
	}
	if t := o.GetBaseEjectionTime(); t.AsDuration() > 0 {
		out.BaseEjectionTime = t
	}
	if p := o.GetMaxEjectionPercent(); p > 0 {
		out.MaxEjectionPercent = uintValue(uint32(p))
	}
	c.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: float64(o.GetMinHealthPercent())}
	return out
}
