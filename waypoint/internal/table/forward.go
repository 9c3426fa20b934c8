package table

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// defaultTimeout is Envoy's when a route names none. Istio's control planes always name one, usually zero for none.
const defaultTimeout = 15 * time.Second

func compileForward(p *routev3.RouteAction, inherited *Retry) (Action, error) {
	if err := strict.Only(p, "cluster", "weighted_clusters", "cluster_not_found_response_code", "prefix_rewrite", "regex_rewrite",
		"host_rewrite_literal", "host_rewrite_header", "auto_host_rewrite", "append_x_forwarded_host", "timeout", "idle_timeout",
		"retry_policy", "request_mirror_policies", "hash_policy", "max_grpc_timeout", "upgrade_configs", "max_stream_duration",
		"rate_limits", "include_vh_rate_limits"); err != nil {
		return nil, err
	}
	if d := p.GetIdleTimeout().AsDuration(); d != 0 {
		return nil, fmt.Errorf("idle_timeout %v: %w", d, strict.ErrUnsupported)
	}
	f := &Forward{Timeout: defaultTimeout, Retry: inherited}
	if t := p.GetTimeout(); t != nil {
		f.Timeout = max(t.AsDuration(), 0)
	}
	if err := f.compileClusters(p); err != nil {
		return nil, err
	}
	if err := f.compileLimits(p); err != nil {
		return nil, err
	}
	if err := f.compileRewrite(p); err != nil {
		return nil, err
	}
	if rp := p.GetRetryPolicy(); rp != nil {
		r, err := compileRetry(rp)
		if err != nil {
			return nil, fmt.Errorf("retry_policy: %w", err)
		}
		f.Retry = r
	}
	for _, m := range p.GetRequestMirrorPolicies() {
		if err := strict.Only(m, "cluster", "runtime_fraction", "trace_sampled", "disable_shadow_host_suffix_append"); err != nil {
			return nil, err
		}
		share, err := match.CompileRuntime(m.GetRuntimeFraction())
		if err != nil {
			return nil, fmt.Errorf("request_mirror_policies: %w", err)
		}
		f.Mirrors = append(f.Mirrors, Mirror{Cluster: m.GetCluster(), Share: share, Suffix: !m.GetDisableShadowHostSuffixAppend()})
	}
	for _, h := range p.GetHashPolicy() {
		k, err := compileHash(h)
		if err != nil {
			return nil, fmt.Errorf("hash_policy: %w", err)
		}
		f.Hash = append(f.Hash, k)
	}
	for _, u := range p.GetUpgradeConfigs() {
		if u.GetUpgradeType() != "websocket" || u.GetConnectConfig() != nil {
			return nil, fmt.Errorf("upgrade %q: %w", u.GetUpgradeType(), strict.ErrUnsupported)
		}
		on := u.GetEnabled() == nil || u.GetEnabled().GetValue()
		f.WebSocket = &on
	}
	return f, nil
}

func (f *Forward) compileClusters(p *routev3.RouteAction) error {
	switch p.GetClusterNotFoundResponseCode() {
	case routev3.RouteAction_SERVICE_UNAVAILABLE:
		f.NotFound = http.StatusServiceUnavailable
	case routev3.RouteAction_NOT_FOUND:
		f.NotFound = http.StatusNotFound
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		f.NotFound = http.StatusInternalServerError
	default:
		return fmt.Errorf("cluster_not_found_response_code %v: %w", p.GetClusterNotFoundResponseCode(), strict.ErrUnsupported)
	}
	if c := p.GetCluster(); c != "" {
		f.Clusters, f.Total = []Weighted{{Cluster: c, Weight: 1}}, 1
		return nil
	}
	wc := p.GetWeightedClusters()
	if err := strict.Only(wc, "clusters", "total_weight", "runtime_key_prefix"); err != nil {
		return err
	}
	for _, w := range wc.GetClusters() {
		if err := strict.Only(w, "name", "weight", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add",
			"response_headers_to_remove", "typed_per_filter_config", "host_rewrite_literal"); err != nil {
			return err
		}
		out := Weighted{Cluster: w.GetName(), Weight: w.GetWeight().GetValue(), Host: w.GetHostRewriteLiteral()}
		var err error
		if out.Request, err = compileMutations(w.GetRequestHeadersToAdd(), w.GetRequestHeadersToRemove()); err != nil {
			return err
		}
		if out.Response, err = compileMutations(w.GetResponseHeadersToAdd(), w.GetResponseHeadersToRemove()); err != nil {
			return err
		}
		if out.Overrides, err = filters.CompileOverrides(w.GetTypedPerFilterConfig()); err != nil {
			return err
		}
		f.Clusters, f.Total = append(f.Clusters, out), f.Total+uint64(out.Weight)
	}
	if f.Total == 0 {
		return fmt.Errorf("route has no cluster with a weight above zero")
	}
	return nil
}

func (f *Forward) compileLimits(p *routev3.RouteAction) error {
	if g := p.GetMaxGrpcTimeout(); g != nil { //nolint:staticcheck // Istio's control plane still sends the older field
		d := g.AsDuration()
		f.MaxGRPC = &d
	}
	m := p.GetMaxStreamDuration()
	if err := strict.Only(m, "max_stream_duration", "grpc_timeout_header_max"); err != nil {
		return err
	}
	if m.GetMaxStreamDuration().AsDuration() > 0 {
		return fmt.Errorf("max_stream_duration.max_stream_duration: %w", strict.ErrUnsupported)
	}
	if g := m.GetGrpcTimeoutHeaderMax(); g != nil {
		d := g.AsDuration()
		f.MaxGRPC = &d
	}
	return nil
}

func (f *Forward) compileRewrite(p *routev3.RouteAction) error {
	w := &f.Rewrite
	if p.GetPrefixRewrite() != "" {
		w.Prefix, w.HasPrefix = p.GetPrefixRewrite(), true
	}
	if rr := p.GetRegexRewrite(); rr != nil {
		if w.HasPrefix {
			return fmt.Errorf("prefix_rewrite and regex_rewrite exclude each other")
		}
		var err error
		if w.Regex, w.Substitute, err = compileSubstitution(rr); err != nil {
			return fmt.Errorf("regex_rewrite: %w", err)
		}
	}
	w.Forwarded = p.GetAppendXForwardedHost()
	switch h := p.GetHostRewriteSpecifier().(type) {
	case nil:
	case *routev3.RouteAction_HostRewriteLiteral:
		w.Host = h.HostRewriteLiteral
	case *routev3.RouteAction_HostRewriteHeader:
		w.HostHeader = http.CanonicalHeaderKey(h.HostRewriteHeader)
	case *routev3.RouteAction_AutoHostRewrite:
		if h.AutoHostRewrite.GetValue() {
			return fmt.Errorf("auto_host_rewrite: %w", strict.ErrUnsupported)
		}
	default:
		return fmt.Errorf("host rewrite %T: %w", h, strict.ErrUnsupported)
	}
	return nil
}

func compileHash(p *routev3.RouteAction_HashPolicy) (HashKey, error) {
	k := HashKey{Terminal: p.GetTerminal()}
	switch s := p.GetPolicySpecifier().(type) {
	case *routev3.RouteAction_HashPolicy_Header_:
		if err := strict.Only(s.Header, "header_name"); err != nil {
			return k, err
		}
		k.Header = http.CanonicalHeaderKey(s.Header.GetHeaderName())
	case *routev3.RouteAction_HashPolicy_Cookie_:
		if err := strict.Only(s.Cookie, "name", "ttl", "path", "attributes"); err != nil {
			return k, err
		}
		k.Cookie, k.Path = s.Cookie.GetName(), s.Cookie.GetPath()
		for _, a := range s.Cookie.GetAttributes() {
			k.Attributes += "; " + a.GetName()
			if a.GetValue() != "" {
				k.Attributes += "=" + a.GetValue()
			}
		}
		if strings.ContainsAny(k.Attributes+k.Cookie+k.Path, "\r\n\x00") {
			return k, fmt.Errorf("cookie %q: a control character in it", k.Cookie)
		}
		if t := s.Cookie.GetTtl(); t != nil {
			d := t.AsDuration()
			k.TTL = &d
		}
	case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
		k.SourceIP = s.ConnectionProperties.GetSourceIp()
	case *routev3.RouteAction_HashPolicy_QueryParameter_:
		k.Query = s.QueryParameter.GetName()
	default:
		return k, fmt.Errorf("policy %T: %w", s, strict.ErrUnsupported)
	}
	return k, nil
}
