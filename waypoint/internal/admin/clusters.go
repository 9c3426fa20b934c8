package admin

import (
	"fmt"
	"net/http"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// clusters answers /clusters, as text or as JSON.
func (s *Sources) clusters(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("format") == "json" {
		out := &adminv3.Clusters{}
		for _, c := range s.Upstreams.All() {
			out.ClusterStatuses = append(out.ClusterStatuses, s.clusterStatus(c))
		}
		writeProto(w, out)
		return
	}
	var b strings.Builder
	for _, c := range s.Upstreams.All() {
		s.clusterText(&b, c)
	}
	writeText(w, http.StatusOK, b.String())
}

func (s *Sources) clusterStatus(c *upstream.Cluster) *adminv3.ClusterStatus {
	l := c.Config.Limits
	st := &adminv3.ClusterStatus{
		Name: c.Config.Name, AddedViaApi: true, ObservabilityName: c.Config.Name, EdsServiceName: c.Config.EDSName,
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: wrapperspb.UInt32(l.Connections), MaxPendingRequests: wrapperspb.UInt32(l.Pending),
			MaxRequests: wrapperspb.UInt32(l.Requests), MaxRetries: wrapperspb.UInt32(l.Retries),
		}}},
	}
	now := s.Now()
	for _, h := range c.Hosts {
		g := c.Locality(h)
		hs := &adminv3.HostStatus{
			Address: address(h), Weight: h.Weight, Priority: h.Priority,
			Locality: &corev3.Locality{Region: g.Region, Zone: g.Zone, SubZone: g.Subzone},
			Stats:    []*adminv3.SimpleMetric{{Name: "rq_active", Type: adminv3.SimpleMetric_GAUGE, Value: uint64(max(h.Active(), 0))}},
			HealthStatus: &adminv3.HostHealthStatus{
				EdsHealthStatus: corev3.HealthStatus_HEALTHY, FailedOutlierCheck: !h.EjectedUntil(now).IsZero(), FailedActiveHealthCheck: !c.Well(h),
			},
		}
		if !h.Healthy {
			hs.HealthStatus.EdsHealthStatus = corev3.HealthStatus_UNHEALTHY
		}
		st.HostStatuses = append(st.HostStatuses, hs)
	}
	return st
}

// address is the endpoint's, in the form in which the configuration gave it.
func address(h *upstream.Host) *corev3.Address {
	if h.Tunnelled() {
		return &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
			AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: "connect_originate"}, EndpointId: h.Addr.String(),
		}}}
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: h.Addr.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(h.Addr.Port())},
	}}}
}

func (s *Sources) clusterText(b *strings.Builder, c *upstream.Cluster) {
	name, l, now := c.Config.Name, c.Config.Limits, s.Now()
	line := func(format string, args ...any) { fmt.Fprintf(b, "%s::"+format+"\n", append([]any{name}, args...)...) }
	line("observability_name::%s", name)
	line("default_priority::max_connections::%d", l.Connections)
	line("default_priority::max_pending_requests::%d", l.Pending)
	line("default_priority::max_requests::%d", l.Requests)
	line("default_priority::max_retries::%d", l.Retries)
	line("added_via_api::true")
	if c.Config.EDSName != "" {
		line("eds_service_name::%s", c.Config.EDSName)
	}
	for _, h := range c.Hosts {
		g, host := c.Locality(h), h.Host()
		line("%s::rq_active::%d", host, h.Active())
		line("%s::hostname::", host)
		line("%s::health_flags::%s", host, healthFlags(h.Healthy, !h.EjectedUntil(now).IsZero(), c.Well(h)))
		line("%s::weight::%d", host, h.Weight)
		line("%s::region::%s", host, g.Region)
		line("%s::zone::%s", host, g.Zone)
		line("%s::sub_zone::%s", host, g.Subzone)
		line("%s::canary::false", host)
		line("%s::priority::%d", host, h.Priority)
	}
}

func healthFlags(healthy, ejected, well bool) string {
	var out []string
	if !well {
		out = append(out, "/failed_active_hc")
	}
	if !healthy {
		out = append(out, "/failed_eds_health")
	}
	if ejected {
		out = append(out, "/failed_outlier_check")
	}
	if out == nil {
		return "healthy"
	}
	return strings.Join(out, "")
}

// listeners answers /listeners, as text or as JSON.
func (s *Sources) listeners(w http.ResponseWriter, r *http.Request) {
	t := s.Intake.Table()
	out := &adminv3.Listeners{}
	if t.Terminate != nil {
		out.ListenerStatuses = append(out.ListenerStatuses, &adminv3.ListenerStatus{Name: "connect_terminate", LocalAddress: &corev3.Address{
			Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: "0.0.0.0", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(s.Config.Ports.HBONE)},
			}},
		}})
	}
	if t.Internal != nil {
		out.ListenerStatuses = append(out.ListenerStatuses, &adminv3.ListenerStatus{Name: "main_internal", LocalAddress: &corev3.Address{
			Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
				AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: "main_internal"},
			}},
		}})
	}
	if r.URL.Query().Get("format") == "json" {
		writeProto(w, out)
		return
	}
	var b strings.Builder
	for _, l := range out.GetListenerStatuses() {
		if a := l.GetLocalAddress().GetSocketAddress(); a != nil {
			fmt.Fprintf(&b, "%s::%s:%d\n", l.GetName(), a.GetAddress(), a.GetPortValue())
		} else {
			fmt.Fprintf(&b, "%s::envoy://%[1]s/\n", l.GetName())
		}
	}
	writeText(w, http.StatusOK, b.String())
}
