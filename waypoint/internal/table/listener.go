package table

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// CompileTerminate compiles the listener that ends the tunnels. Its inner workings are this program's own; what it demands of a
// client is not, so anything but mutual TLS with a trust domain is refused.
func CompileTerminate(p *listenerv3.Listener) (*Terminate, error) {
	if err := strict.Only(p, "name", "address", "additional_addresses", "stat_prefix", "filter_chains", "connection_balance_config",
		"access_log", "per_connection_buffer_limit_bytes", "traffic_direction", "enable_reuse_port", "metadata"); err != nil {
		return nil, err
	}
	if n := len(p.GetFilterChains()); n != 1 {
		return nil, fmt.Errorf("listener has %d filter chains, want 1", n)
	}
	chain := p.GetFilterChains()[0]
	if err := strict.Only(chain, "name", "filters", "transport_socket"); err != nil {
		return nil, err
	}
	t := &Terminate{Port: uint16(p.GetAddress().GetSocketAddress().GetPortValue())}
	tls := &tlsv3.DownstreamTlsContext{}
	if err := strict.Unpack(chain.GetTransportSocket().GetTypedConfig(), tls, "common_tls_context", "require_client_certificate"); err != nil {
		return nil, fmt.Errorf("transport socket: %w", err)
	}
	if !tls.GetRequireClientCertificate().GetValue() {
		return nil, errors.New("transport socket: require_client_certificate is not set: without it nobody is known")
	}
	common := tls.GetCommonTlsContext()
	sans := common.GetCombinedValidationContext().GetDefaultValidationContext().GetMatchTypedSubjectAltNames()
	for _, m := range sans {
		prefix, ok := strings.CutPrefix(m.GetMatcher().GetPrefix(), "spiffe://")
		if m.GetSanType() != tlsv3.SubjectAltNameMatcher_URI || !ok || !strings.HasSuffix(prefix, "/") {
			return nil, fmt.Errorf("transport socket: SAN matcher %v is no prefix of a trust domain: %w", m, strict.ErrUnsupported)
		}
		t.TrustDomains = append(t.TrustDomains, strings.TrimSuffix(prefix, "/"))
	}
	if n := len(chain.GetFilters()); n != 1 {
		return nil, fmt.Errorf("listener has %d network filters, want the connection manager alone", n)
	}
	m := &hcmv3.HttpConnectionManager{}
	if err := chain.GetFilters()[0].GetTypedConfig().UnmarshalTo(m); err != nil {
		return nil, fmt.Errorf("connection manager: %w", err)
	}
	t.MaxStreams = m.GetHttp2ProtocolOptions().GetMaxConcurrentStreams().GetValue()
	return t, checkTerminateFilters(m)
}

// checkTerminateFilters lets pass what this program does by itself: remembering who came and where to.
func checkTerminateFilters(m *hcmv3.HttpConnectionManager) error {
	for _, f := range m.GetHttpFilters() {
		switch u := f.GetTypedConfig().GetTypeUrl(); u[strings.LastIndexByte(u, '/')+1:] {
		case "envoy.extensions.filters.http.set_filter_state.v3.Config", "envoy.extensions.filters.http.router.v3.Router":
		default:
			return fmt.Errorf("HTTP filter %q of the outer listener, type %s: %w", f.GetName(), u, strict.ErrUnsupported)
		}
	}
	return nil
}

// CompileInternal compiles the inner listener: its chains and how they are chosen.
func CompileInternal(p *listenerv3.Listener) (*Internal, error) {
	if err := strict.Only(p, "name", "internal_listener", "traffic_direction", "access_log", "filter_chains", "filter_chain_matcher",
		"listener_filters", "listener_filters_timeout", "continue_on_listener_filters_timeout", "stat_prefix", "metadata",
		"per_connection_buffer_limit_bytes", "use_original_dst"); err != nil {
		return nil, err
	}
	for _, f := range p.GetListenerFilters() {
		switch u := f.GetTypedConfig().GetTypeUrl(); u[strings.LastIndexByte(u, '/')+1:] {
		case "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
			"envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
			"envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":
			// The tree of the matcher says where bytes have to be looked at; that is done there and nowhere else.
		default:
			return nil, fmt.Errorf("listener filter %q, type %s: %w", f.GetName(), u, strict.ErrUnsupported)
		}
	}
	in := &Internal{Chains: make(map[string]*Chain, len(p.GetFilterChains())), DetectTimeout: p.GetListenerFiltersTimeout().AsDuration()}
	for _, fc := range p.GetFilterChains() {
		c, err := compileChain(fc)
		if err != nil {
			return nil, fmt.Errorf("chain %q: %w", fc.GetName(), err)
		}
		if _, twice := in.Chains[c.Name]; twice {
			return nil, fmt.Errorf("chain %q is there twice", c.Name)
		}
		in.Chains[c.Name] = c
	}
	var err error
	if m := p.GetFilterChainMatcher(); m != nil {
		in.Choose, err = compileMatcher(m, func(name string) bool { return in.Chains[name] != nil })
	} else {
		in.Choose, err = compileClassic(p.GetFilterChains())
	}
	if err != nil {
		return nil, fmt.Errorf("filter_chain_matcher: %w", err)
	}
	return in, nil
}

func compileChain(p *listenerv3.FilterChain) (*Chain, error) { return compileChainOf(p, nil, nil) }

// compileChainOf lets own read from a connection manager what the rest does not know.
func compileChainOf(p *listenerv3.FilterChain, own func(*EdgeChain, *hcmv3.HttpConnectionManager, *HTTPChain) error, edge *EdgeChain) (*Chain, error) {
	if err := strict.Only(p, "name", "filters", "filter_chain_match", "metadata"); err != nil {
		return nil, err
	}
	c := &Chain{Name: p.GetName()}
	fs := p.GetFilters()
	if len(fs) == 0 {
		return nil, errors.New("no filters: such a chain would close every connection")
	}
	counted, err := compileMetrics(p.GetMetadata())
	if err != nil {
		return nil, err
	}
	var before []filters.Network
	for _, f := range fs[:len(fs)-1] {
		n, err := filters.CompileNetwork(f)
		if err != nil {
			return nil, err
		}
		before = append(before, n)
	}
	last := fs[len(fs)-1]
	switch u := last.GetTypedConfig().GetTypeUrl(); u[strings.LastIndexByte(u, '/')+1:] {
	case "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager":
		for _, n := range before {
			if _, ok := n.(filters.KeepDestination); !ok {
				return nil, fmt.Errorf("network filter %T before an HTTP connection manager: %w", n, strict.ErrUnsupported)
			}
		}
		m := &hcmv3.HttpConnectionManager{}
		if err := last.GetTypedConfig().UnmarshalTo(m); err != nil {
			return nil, err
		}
		var at HTTPChain
		if own != nil {
			if err := own(edge, m, &at); err != nil {
				return nil, err
			}
		}
		h, err := compileManager(m)
		if h != nil {
			h.Edge, h.TrustedHops, h.ClientCert = at.Edge, at.TrustedHops, at.ClientCert
		}
		c.HTTP = h
		if err == nil {
			h.Metrics = counted
			for _, f := range h.Filters {
				f.Place("chain " + c.Name)
			}
		}
		return c, err
	case "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":
		m := &tcpproxyv3.TcpProxy{}
		if err := last.GetTypedConfig().UnmarshalTo(m); err != nil {
			return nil, err
		}
		t, err := compileTCP(m)
		if err != nil {
			return nil, err
		}
		t.Filters, t.Metrics, c.TCP = before, counted, t
		t.Named = slices.ContainsFunc(before, func(n filters.Network) bool {
			r, ok := n.(*filters.RBAC)
			return ok && r.AsksServerName()
		})
		return c, nil
	default:
		return nil, fmt.Errorf("network filter %q at the end, type %s: %w", last.GetName(), u, strict.ErrUnsupported)
	}
}

func compileTCP(p *tcpproxyv3.TcpProxy) (*TCPChain, error) {
	if err := strict.Only(p, "stat_prefix", "cluster", "weighted_clusters", "idle_timeout", "access_log", "hash_policy",
		"max_downstream_connection_duration", "max_connect_attempts"); err != nil {
		return nil, err
	}
	const defaultIdle = time.Hour // as in Envoy
	t := &TCPChain{
		Idle: defaultIdle, Attempts: int(max(p.GetMaxConnectAttempts().GetValue(), 1)),
		MaxAge: positive(p.GetMaxDownstreamConnectionDuration(), p.GetMaxDownstreamConnectionDuration() != nil),
	}
	if p.GetIdleTimeout() != nil {
		t.Idle = positive(p.GetIdleTimeout(), true)
	}
	for _, h := range p.GetHashPolicy() {
		if h.GetSourceIp() == nil {
			return nil, fmt.Errorf("hash_policy %T: %w", h.GetPolicySpecifier(), strict.ErrUnsupported)
		}
	}
	var err error
	if t.Logs, err = compileLogs(p.GetAccessLog()); err != nil {
		return nil, err
	}
	if c := p.GetCluster(); c != "" {
		t.Clusters, t.Total = []Weighted{{Cluster: c, Weight: 1}}, 1
		return t, nil
	}
	for _, w := range p.GetWeightedClusters().GetClusters() {
		if err := strict.Only(w, "name", "weight"); err != nil {
			return nil, err
		}
		t.Clusters, t.Total = append(t.Clusters, Weighted{Cluster: w.GetName(), Weight: w.GetWeight()}), t.Total+uint64(w.GetWeight())
	}
	if t.Total == 0 {
		return nil, errors.New("tcp_proxy has no cluster with a weight above zero")
	}
	return t, nil
}

func compileManager(p *hcmv3.HttpConnectionManager) (*HTTPChain, error) {
	if err := strict.Only(p, "codec_type", "stat_prefix", "rds", "route_config", "http_filters", "common_http_protocol_options",
		"http_protocol_options", "http2_protocol_options", "server_name", "server_header_transformation", "stream_idle_timeout",
		"access_log", "use_remote_address", "xff_num_trusted_hops", "generate_request_id", "preserve_external_request_id",
		"forward_client_cert_details", "proxy_100_continue", "upgrade_configs", "normalize_path", "merge_slashes",
		"path_with_escaped_slashes_action", "request_id_extension", "tracing", "request_timeout", "drain_timeout", "max_request_headers_kb",
		"request_headers_timeout", "delayed_close_timeout"); err != nil {
		return nil, err
	}
	if p.GetUseRemoteAddress().GetValue() || p.GetXffNumTrustedHops() > 0 {
		return nil, fmt.Errorf("use_remote_address and xff_num_trusted_hops: %w", strict.ErrUnsupported)
	}
	if f := p.GetForwardClientCertDetails(); f != hcmv3.HttpConnectionManager_SANITIZE {
		return nil, fmt.Errorf("forward_client_cert_details %v: %w", f, strict.ErrUnsupported)
	}
	if d := p.GetStreamIdleTimeout().AsDuration(); d != 0 {
		return nil, fmt.Errorf("stream_idle_timeout %v: %w", d, strict.ErrUnsupported)
	}
	h := &HTTPChain{
		Normalization: match.Normalization{Base: p.GetNormalizePath().GetValue(), MergeSlashes: p.GetMergeSlashes()},
		ServerName:    p.GetServerName(),
		RequestID:     p.GetGenerateRequestId() == nil || p.GetGenerateRequestId().GetValue(),
	}
	if h.ServerName == "" {
		h.ServerName = "envoy"
	}
	if err := h.compileModes(p); err != nil {
		return nil, err
	}
	for _, f := range p.GetHttpFilters() {
		n, err := filters.CompileHTTP(f)
		if err != nil {
			return nil, err
		}
		h.Filters = append(h.Filters, n)
	}
	if n := len(h.Filters); n == 0 || !isRouter(h.Filters[n-1].Filter) {
		return nil, errors.New("the last HTTP filter has to be the router")
	}
	var err error
	if h.Logs, err = compileLogs(p.GetAccessLog()); err != nil {
		return nil, err
	}
	if h.Tracing, err = compileTracing(p); err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	switch r := p.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_Rds:
		h.RouteName = r.Rds.GetRouteConfigName()
	case *hcmv3.HttpConnectionManager_RouteConfig:
		h.Inline, err = CompileRules(r.RouteConfig)
	default:
		err = fmt.Errorf("route specifier %T: %w", r, strict.ErrUnsupported)
	}
	return h, err
}

func isRouter(f filters.HTTP) bool {
	_, ok := f.(*filters.Router)
	return ok
}

func (h *HTTPChain) compileModes(p *hcmv3.HttpConnectionManager) error {
	switch p.GetPathWithEscapedSlashesAction() {
	case hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmv3.HttpConnectionManager_KEEP_UNCHANGED:
	case hcmv3.HttpConnectionManager_REJECT_REQUEST:
		h.Normalization.Slashes = match.SlashReject
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		h.Normalization.Slashes = match.SlashUnescape
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		h.Normalization.Slashes = match.SlashRedirect
	}
	switch p.GetServerHeaderTransformation() {
	case hcmv3.HttpConnectionManager_OVERWRITE:
	case hcmv3.HttpConnectionManager_APPEND_IF_ABSENT:
		h.ServerMode = ServerIfAbsent
	case hcmv3.HttpConnectionManager_PASS_THROUGH:
		h.ServerMode = ServerPass
	}
	for _, u := range p.GetUpgradeConfigs() {
		if err := strict.Only(u, "upgrade_type", "enabled"); err != nil {
			return err
		}
		if !strings.EqualFold(u.GetUpgradeType(), "websocket") {
			return fmt.Errorf("upgrade %q: %w", u.GetUpgradeType(), strict.ErrUnsupported)
		}
		h.WebSocket = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	return nil
}
