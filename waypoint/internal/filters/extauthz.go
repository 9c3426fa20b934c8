package filters

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	networkauthz "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// ExtAuthz has another server decide. Which requests it is asked about, an RBAC filter before it says by its shadow rules.
type ExtAuthz struct {
	Cluster    string
	Authority  string // of a gRPC call
	GRPC       bool   // else HTTP
	Timeout    time.Duration
	FailOpen   bool // an answer that does not come lets through
	MarkOpen   bool // and a header says so
	ClearRoute bool // the route is chosen again after what the server changed
	OnError    int  // the status when no answer comes
	Body       *AuthzBody

	enabled  *shadowed // nil = every request
	allowed  []match.String
	hidden   []match.String
	filtered bool // allowed says something
	call     authzHTTP
}

// AuthzBody says how much of a request's body the server gets.
type AuthzBody struct {
	Max     uint32
	Partial bool // a longer body is cut off, instead of being refused
	Bytes   bool // as bytes, not as text
}

type authzHTTP struct {
	prefix, override         string
	add                      []*corev3.HeaderValue
	upstream, upstreamAppend []match.String
	client, clientOnSuccess  []match.String
	clientSet                bool // client says something
}

func (*ExtAuthz) http()    {}
func (*ExtAuthz) network() {}

// shadowed is a condition on what the shadow rules of an RBAC filter found.
type shadowed struct {
	key   string
	value match.String
}

// ShadowKey is the name under which an RBAC filter leaves the policy that its shadow rules found.
func ShadowKey(prefix string) string { return prefix + "shadow_effective_policy_id" }

// Asks says whether the server is asked. found are the policies that shadow rules found, by ShadowKey.
func (f *ExtAuthz) Asks(found map[string]string) bool {
	if f.enabled == nil {
		return true
	}
	v, ok := found[f.enabled.key]
	return ok && f.enabled.value.Match(v)
}

func compileExtAuthz(p *extauthzv3.ExtAuthz) (*ExtAuthz, error) {
	if err := strict.Only(p, "grpc_service", "http_service", "transport_api_version", "failure_mode_allow", "failure_mode_allow_header_add",
		"with_request_body", "clear_route_cache", "status_on_error", "filter_enabled_metadata", "stat_prefix", "allowed_headers",
		"disallowed_headers", "charge_cluster_response_stats", "validate_mutations"); err != nil {
		return nil, err
	}
	f := &ExtAuthz{
		FailOpen: p.GetFailureModeAllow(), MarkOpen: p.GetFailureModeAllowHeaderAdd(), ClearRoute: p.GetClearRouteCache(), OnError: http.StatusForbidden,
	}
	if s := p.GetStatusOnError().GetCode(); s != 0 {
		if s < 200 || s > 599 {
			return nil, fmt.Errorf("status_on_error %d is no final status", s)
		}
		f.OnError = int(s)
	}
	if b := p.GetWithRequestBody(); b != nil {
		if err := f.compileBody(b); err != nil {
			return nil, err
		}
	}
	var err error
	if f.enabled, err = compileShadowed(p.GetFilterEnabledMetadata(), "envoy.filters.http.rbac"); err != nil {
		return nil, err
	}
	if f.allowed, err = headerNames(p.GetAllowedHeaders()); err != nil {
		return nil, fmt.Errorf("allowed_headers: %w", err)
	}
	f.filtered = p.GetAllowedHeaders() != nil
	if f.hidden, err = headerNames(p.GetDisallowedHeaders()); err != nil {
		return nil, fmt.Errorf("disallowed_headers: %w", err)
	}
	switch s := p.GetServices().(type) {
	case *extauthzv3.ExtAuthz_GrpcService:
		return f, f.compileGRPC(s.GrpcService, p.GetTransportApiVersion())
	case *extauthzv3.ExtAuthz_HttpService:
		return f, f.compileHTTP(s.HttpService)
	default:
		return nil, fmt.Errorf("service %T: %w", s, strict.ErrUnsupported)
	}
}

func (f *ExtAuthz) compileBody(b *extauthzv3.BufferSettings) error {
	const most = 1 << 20 // a request holds this much memory while the server thinks
	if err := strict.Only(b, "max_request_bytes", "allow_partial_message", "pack_as_bytes"); err != nil {
		return err
	}
	if n := b.GetMaxRequestBytes(); n == 0 || n > most {
		return fmt.Errorf("with_request_body.max_request_bytes %d is not in 1..%d", n, most)
	}
	f.Body = &AuthzBody{Max: b.GetMaxRequestBytes(), Partial: b.GetAllowPartialMessage(), Bytes: b.GetPackAsBytes()}
	return nil
}

func compileShadowed(p *matcherv3.MetadataMatcher, filter string) (*shadowed, error) {
	if p == nil {
		return nil, nil
	}
	fail := func(err error) (*shadowed, error) { return nil, fmt.Errorf("filter_enabled_metadata: %w", err) }
	if err := strict.Only(p, "filter", "path", "value"); err != nil {
		return fail(err)
	}
	if p.GetFilter() != filter || len(p.GetPath()) != 1 || !strings.HasSuffix(p.GetPath()[0].GetKey(), ShadowKey("")) {
		return fail(fmt.Errorf("metadata %q %v is not the result of shadow rules: %w", p.GetFilter(), p.GetPath(), strict.ErrUnsupported))
	}
	m, ok := p.GetValue().GetMatchPattern().(*matcherv3.ValueMatcher_StringMatch)
	if !ok {
		return fail(fmt.Errorf("value %v: %w", p.GetValue(), strict.ErrUnsupported))
	}
	s, err := match.CompileString(m.StringMatch)
	if err != nil {
		return fail(err)
	}
	return &shadowed{key: p.GetPath()[0].GetKey(), value: s}, nil
}

func headerNames(p *matcherv3.ListStringMatcher) ([]match.String, error) {
	var out []match.String
	for _, m := range p.GetPatterns() {
		s, err := match.CompileString(m)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func (f *ExtAuthz) compileGRPC(s *corev3.GrpcService, version corev3.ApiVersion) error {
	const usual = 200 * time.Millisecond // Envoy's, where none is given
	f.GRPC = true
	if version != corev3.ApiVersion_V3 {
		return fmt.Errorf("transport_api_version %v: %w", version, strict.ErrUnsupported)
	}
	if err := strict.Only(s, "envoy_grpc", "timeout"); err != nil {
		return err
	}
	e := s.GetEnvoyGrpc()
	if err := strict.Only(e, "cluster_name", "authority"); err != nil {
		return err
	}
	if f.Cluster = e.GetClusterName(); f.Cluster == "" {
		return fmt.Errorf("grpc_service names no cluster: %w", strict.ErrUnsupported)
	}
	if f.Authority = e.GetAuthority(); f.Authority == "" {
		f.Authority = f.Cluster
	}
	if err := match.CheckAuthority(f.Authority); err != nil {
		return err
	}
	var err error
	f.Timeout, err = timeLimit(s.GetTimeout(), usual)
	return err
}

func timeLimit(p *durationpb.Duration, usual time.Duration) (time.Duration, error) {
	if p == nil {
		return usual, nil
	}
	if d := p.AsDuration(); d > 0 {
		return d, nil
	}
	return 0, fmt.Errorf("timeout %v is not positive: a request would wait for ever", p.AsDuration())
}

func (f *ExtAuthz) compileHTTP(s *extauthzv3.HttpService) error {
	if err := strict.Only(s, "server_uri", "path_prefix", "path_override", "authorization_request", "authorization_response"); err != nil {
		return err
	}
	u := s.GetServerUri()
	if err := strict.Only(u, "uri", "cluster", "timeout"); err != nil {
		return err
	}
	if f.Cluster = u.GetCluster(); f.Cluster == "" {
		return fmt.Errorf("server_uri names no cluster: %w", strict.ErrUnsupported)
	}
	var err error
	if f.Timeout, err = timeLimit(u.GetTimeout(), 0); err != nil || f.Timeout == 0 {
		return fmt.Errorf("server_uri needs a timeout: %w", err)
	}
	h := &f.call
	if h.prefix, h.override = s.GetPathPrefix(), s.GetPathOverride(); h.prefix != "" && h.override != "" {
		return fmt.Errorf("path_prefix %q excludes path_override %q", h.prefix, h.override)
	}
	for _, p := range []string{h.prefix, h.override} {
		if p == "" {
			continue
		}
		if _, _, err := match.SplitTarget(p); err != nil || p[0] != '/' {
			return fmt.Errorf("path %q must begin with a slash and be a path", p)
		}
	}
	if err := strict.Only(s.GetAuthorizationRequest(), "headers_to_add"); err != nil {
		return err
	}
	h.add = s.GetAuthorizationRequest().GetHeadersToAdd()
	for _, a := range h.add {
		if err := checkChange(a); err != nil {
			return err
		}
	}
	return h.compileResponse(s.GetAuthorizationResponse())
}

func (h *authzHTTP) compileResponse(r *extauthzv3.AuthorizationResponse) error {
	if err := strict.Only(r, "allowed_upstream_headers", "allowed_upstream_headers_to_append", "allowed_client_headers",
		"allowed_client_headers_on_success"); err != nil {
		return err
	}
	for _, l := range []struct {
		into *[]match.String
		from *matcherv3.ListStringMatcher
	}{
		{&h.upstream, r.GetAllowedUpstreamHeaders()},
		{&h.upstreamAppend, r.GetAllowedUpstreamHeadersToAppend()},
		{&h.client, r.GetAllowedClientHeaders()},
		{&h.clientOnSuccess, r.GetAllowedClientHeadersOnSuccess()},
	} {
		var err error
		if *l.into, err = headerNames(l.from); err != nil {
			return fmt.Errorf("authorization_response: %w", err)
		}
	}
	h.clientSet = len(h.client) > 0
	return nil
}

func compileNetworkExtAuthz(p *networkauthz.ExtAuthz) (*ExtAuthz, error) {
	if err := strict.Only(p, "stat_prefix", "grpc_service", "failure_mode_allow", "transport_api_version", "filter_enabled_metadata"); err != nil {
		return nil, err
	}
	f := &ExtAuthz{FailOpen: p.GetFailureModeAllow(), OnError: http.StatusForbidden}
	var err error
	if f.enabled, err = compileShadowed(p.GetFilterEnabledMetadata(), "envoy.filters.network.rbac"); err != nil {
		return nil, err
	}
	return f, f.compileGRPC(p.GetGrpcService(), p.GetTransportApiVersion())
}

func compileExtAuthzPerRoute(p *extauthzv3.ExtAuthzPerRoute) (HTTP, error) {
	if err := strict.Only(p, "disabled"); err != nil {
		return nil, err
	}
	if !p.GetDisabled() {
		return nil, fmt.Errorf("disabled is not true, so the override says nothing: %w", strict.ErrUnsupported)
	}
	return Off{}, nil
}
