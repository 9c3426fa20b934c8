package filters

import (
	"fmt"
	"maps"
	"net/http"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	globalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	setmetadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_metadata/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// defaultAsk is how long Envoy waits for the rate limit service.
const defaultAsk = 20 * time.Millisecond

// GlobalLimit asks a rate limit service about requests.
type GlobalLimit struct {
	Name      string // of the filter
	Cluster   string // of the service
	Authority string // to call it by; empty = the cluster's name
	Timeout   time.Duration
	Answer    LimitAnswer // over the limit
	Failed    int         // status when the service cannot say, and that refuses
	Marked    bool        // a refusal says x-envoy-ratelimited
	Retry     bool        // a refusal with 429 says when it is worth to ask again
	Headers   bool        // the client is told about its limits
	Metadata  string      // namespace for what the service leaves behind

	domain            string
	stage             uint32
	enabled, enforced match.Fraction
	deny              match.Fraction // of the requests about which the service could not say
	own               Limits
	include           RouteInclusion
}

// GlobalRoute is what a route or a virtual host changes of a GlobalLimit.
type GlobalRoute struct {
	own     Limits
	include RouteInclusion
	domain  string
}

func (*GlobalLimit) http() {}
func (*GlobalRoute) http() {}

// Question is what the rate limit service is asked.
type Question struct {
	Domain      string
	Descriptors []Descriptor
}

// Ask says what to ask about a request; without descriptors nothing is asked. by is the most specific change of the route, nil = none.
func (g *GlobalLimit) Ask(f *LimitFacts, route RouteLimits, by *GlobalRoute, rnd match.Rand) Question {
	q := Question{Domain: g.domain}
	if f.Cluster == "" || !g.enabled.Hit(rnd) {
		return q
	}
	own, include := g.own, g.include
	if by != nil {
		include = by.include
		if by.own != nil {
			own = by.own
		}
		if by.domain != "" {
			q.Domain = by.domain
		}
	}
	if own != nil {
		q.Descriptors = own.Descriptors(f, 0)
	} else {
		q.Descriptors = route.descriptors(f, g.stage, include)
	}
	return q
}

// Enforced is asked when the service says that a request is over its limit.
func (g *GlobalLimit) Enforced(rnd match.Rand) bool { return g.enforced.Hit(rnd) }

// Deny is asked when the service did not say.
func (g *GlobalLimit) Deny(rnd match.Rand) bool { return g.deny.Hit(rnd) }

func compileGlobalLimit(p *globalv3.RateLimit) (*GlobalLimit, error) {
	if err := strict.Only(p, "domain", "stage", "request_type", "timeout", "failure_mode_deny", "rate_limited_as_resource_exhausted",
		"rate_limit_service", "enable_x_ratelimit_headers", "disable_x_envoy_ratelimited_header", "rate_limited_status",
		"response_headers_to_add", "status_on_error", "stat_prefix", "filter_enabled", "filter_enforced", "failure_mode_deny_percent",
		"rate_limits", "metadata_namespace", "enable_retry_after_header"); err != nil {
		return nil, err
	}
	g := &GlobalLimit{
		domain: p.GetDomain(), stage: p.GetStage(), Timeout: defaultAsk, Failed: http.StatusInternalServerError,
		Retry: p.GetEnableRetryAfterHeader(), Marked: !p.GetDisableXEnvoyRatelimitedHeader(), enabled: match.Always, enforced: match.Always, Metadata: p.GetMetadataNamespace(),
	}
	if g.Metadata == "" {
		g.Metadata = "envoy.filters.http.ratelimit"
	}
	if g.domain == "" {
		return nil, fmt.Errorf("domain is empty")
	}
	if t := p.GetRequestType(); t != "" && t != "both" {
		return nil, fmt.Errorf("request_type %q: no hop before a waypoint is trusted to say which requests are internal: %w", t, strict.ErrUnsupported)
	}
	if g.stage > 10 {
		return nil, fmt.Errorf("stage %d is above 10", g.stage)
	}
	if t := p.GetTimeout(); t != nil {
		if g.Timeout = t.AsDuration(); g.Timeout <= 0 {
			return nil, fmt.Errorf("timeout %v is not positive: %w", g.Timeout, strict.ErrUnsupported)
		}
	}
	if c := int(p.GetStatusOnError().GetCode()); c >= 400 && c < 600 {
		g.Failed = c
	}
	switch p.GetEnableXRatelimitHeaders() {
	case globalv3.RateLimit_OFF:
	case globalv3.RateLimit_DRAFT_VERSION_03:
		g.Headers = true
	default:
		return nil, fmt.Errorf("enable_x_ratelimit_headers %v: %w", p.GetEnableXRatelimitHeaders(), strict.ErrUnsupported)
	}
	if err := g.compileShares(p); err != nil {
		return nil, err
	}
	if err := g.compileService(p); err != nil {
		return nil, fmt.Errorf("rate_limit_service: %w", err)
	}
	var err error
	if g.Answer, err = compileAnswer(p.GetRateLimitedStatus(), p.GetResponseHeadersToAdd(), p.GetRateLimitedAsResourceExhausted()); err != nil {
		return nil, err
	}
	g.Answer.Detail = "request_rate_limited"
	g.own, err = compileOwnLimits(p.GetRateLimits())
	return g, err
}

func (g *GlobalLimit) compileShares(p *globalv3.RateLimit) (err error) {
	for _, s := range []struct {
		name string
		from *corev3.RuntimeFractionalPercent
		to   *match.Fraction
	}{
		{"filter_enabled", p.GetFilterEnabled(), &g.enabled},
		{"filter_enforced", p.GetFilterEnforced(), &g.enforced},
		{"failure_mode_deny_percent", p.GetFailureModeDenyPercent(), &g.deny},
	} {
		if s.from == nil {
			continue
		}
		if *s.to, err = match.CompileRuntime(s.from); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if p.GetFailureModeDenyPercent() == nil && p.GetFailureModeDeny() {
		g.deny = match.Always
	}
	return nil
}

func (g *GlobalLimit) compileService(p *globalv3.RateLimit) error {
	s := p.GetRateLimitService()
	if err := strict.Only(s, "grpc_service", "transport_api_version"); err != nil {
		return err
	}
	if v := s.GetTransportApiVersion(); v != corev3.ApiVersion_V3 {
		return fmt.Errorf("transport_api_version %v, want V3: %w", v, strict.ErrUnsupported)
	}
	if err := strict.Only(s.GetGrpcService(), "envoy_grpc"); err != nil {
		return err
	}
	e := s.GetGrpcService().GetEnvoyGrpc()
	if err := strict.Only(e, "cluster_name", "authority"); err != nil {
		return err
	}
	if e.GetClusterName() == "" {
		return fmt.Errorf("envoy_grpc.cluster_name is empty")
	}
	g.Cluster, g.Authority = e.GetClusterName(), e.GetAuthority()
	return nil
}

func compileGlobalRoute(p *globalv3.RateLimitPerRoute) (*GlobalRoute, error) {
	if err := strict.Only(p, "vh_rate_limits", "override_option", "rate_limits", "domain"); err != nil {
		return nil, err
	}
	r := &GlobalRoute{domain: p.GetDomain()}
	switch p.GetVhRateLimits() {
	case globalv3.RateLimitPerRoute_OVERRIDE:
	case globalv3.RateLimitPerRoute_INCLUDE:
		r.include = HostToo
	case globalv3.RateLimitPerRoute_IGNORE:
		r.include = HostNever
	default:
		return nil, fmt.Errorf("vh_rate_limits %v: %w", p.GetVhRateLimits(), strict.ErrUnsupported)
	}
	switch p.GetOverrideOption() {
	case globalv3.RateLimitPerRoute_DEFAULT:
	case globalv3.RateLimitPerRoute_OVERRIDE_POLICY:
		r.include = HostUnlessRoute
	case globalv3.RateLimitPerRoute_INCLUDE_POLICY:
		r.include = HostToo
	case globalv3.RateLimitPerRoute_IGNORE_POLICY:
		r.include = HostNever
	default:
		return nil, fmt.Errorf("override_option %v: %w", p.GetOverrideOption(), strict.ErrUnsupported)
	}
	var err error
	r.own, err = compileOwnLimits(p.GetRateLimits())
	return r, err
}

// compileOwnLimits compiles rate_limits that stand in a filter, where there are no stages.
func compileOwnLimits(ps []*routev3.RateLimit) (Limits, error) {
	ls, err := CompileLimits(ps)
	if err != nil {
		return nil, err
	}
	for i, p := range ps {
		if p.GetStage() != nil {
			return nil, fmt.Errorf("rate_limits[%d].stage: a filter's own have none: %w", i, strict.ErrUnsupported)
		}
	}
	return ls, nil
}

// SetMetadata leaves fixed values behind for the filters after it.
type SetMetadata struct {
	entries []metadataEntry
}

type metadataEntry struct {
	namespace string
	value     *structpb.Struct
	overwrite bool
}

func (*SetMetadata) http() {}

// Apply puts the values into what filters have left behind. Maps that others hold are not changed.
func (s *SetMetadata) Apply(to map[string]*structpb.Struct) {
	for _, e := range s.entries {
		old := to[e.namespace]
		if old == nil {
			to[e.namespace] = e.value
			continue
		}
		if e.overwrite {
			to[e.namespace] = merged(old, e.value)
		}
	}
}

// merged joins two structs; what over says counts, structs are joined in turn.
func merged(old, over *structpb.Struct) *structpb.Struct {
	out := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(old.GetFields())+len(over.GetFields()))}
	maps.Copy(out.GetFields(), old.GetFields())
	for k, v := range over.GetFields() {
		if a, b := out.GetFields()[k].GetStructValue(), v.GetStructValue(); a != nil && b != nil {
			v = structpb.NewStructValue(merged(a, b))
		}
		out.Fields[k] = v
	}
	return out
}

func compileSetMetadata(p *setmetadatav3.Config) (*SetMetadata, error) {
	if err := strict.Only(p, "metadata"); err != nil {
		return nil, err
	}
	s := &SetMetadata{}
	for i, m := range p.GetMetadata() {
		if err := strict.Only(m, "metadata_namespace", "allow_overwrite", "value"); err != nil {
			return nil, fmt.Errorf("metadata[%d]: %w", i, err)
		}
		if m.GetMetadataNamespace() == "" || m.GetValue() == nil {
			return nil, fmt.Errorf("metadata[%d] wants metadata_namespace and value", i)
		}
		s.entries = append(s.entries, metadataEntry{namespace: m.GetMetadataNamespace(), value: m.GetValue(), overwrite: m.GetAllowOverwrite()})
	}
	return s, nil
}
